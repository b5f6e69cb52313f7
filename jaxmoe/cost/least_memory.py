"""The least that a step takes: derived from what must exist at one moment, whatever a compiler does."""

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.cost.activations import buffer_rows, layer_input_bytes
from jaxmoe.cost.holdings import holdings, in_layers, stacked_holdings, stored_gradient_bytes
from jaxmoe.cost.memory import argument_bytes, cache_bytes, kept_microbatches
from jaxmoe.cost.stage import stage_layers


def least_step_bytes(d: Deployment) -> int:
  """Of one device: all arguments, and the least beside them."""
  return int(sum(argument_bytes(d).values())) + least_temporary_bytes(d)


def least_temporary_bytes(d: Deployment) -> int:
  """Of one device: temporaries, and results that are not updated arguments.

  Training: the larger of two moments. Between two microbatches stand the sums of the layers' gradients, and every
  argument is still needed. Before the first backward pass stand the inputs of all layers, of all microbatches in
  flight: they come out of one loop and go into another, which no compiler runs twice. Serving: in the last layer's
  experts stand the residual stream, which is added afterwards, what is sent to other devices, and in prefill the cache
  of all layers before.
  """
  if d.train:
    return max(_summed_gradients(d), _kept_inputs(d))
  layers = d.layers_per_stage
  made = cache_bytes(d) * (layers - 1) // layers if d.job.kind == "prefill" else 0
  return int(layer_input_bytes(d) + _sent_bytes(d) + made)


def _summed_gradients(d: Deployment) -> int:
  """Of layers alone: those of embedding and head may be summed up in a loop of their own."""
  if d.microbatches < 2:
    return 0
  layers = in_layers(stacked_holdings(d))
  stages = (holdings(d, stage, layers) for stage in stage_layers(d))
  return min(sum(int(stored_gradient_bytes(held, d.job.precision)) for held in stage) for stage in stages)


def _kept_inputs(d: Deployment) -> int:
  """A scan over ticks keeps idle ones too, but need not."""
  layers = min(int(stage.all) for stage in stage_layers(d))
  return layers * int(layer_input_bytes(d)) * min(int(kept_microbatches(d)), d.microbatches)


def _sent_bytes(d: Deployment) -> int:
  """An all-to-all reads a buffer of its own; other transports may do with less."""
  if d.job.transport != "capacity" or d.rules.shards("expert", "E") == 1:
    return 0
  return int(buffer_rows(d)) * d.model.d_model * ITEM_BYTES[d.job.precision.compute]
