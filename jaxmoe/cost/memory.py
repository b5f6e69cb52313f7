"""Bytes that one device holds during a step, by class.

Weights, gradients, optimizer state, cache and inputs are exact. Activations and dispatch buffers are a first estimate
of what backward keeps (or of what one layer needs at once); what the compiler allocates beside it is its own affair.
Sizes may be arrays, one entry a plan.
"""

import dataclasses
import functools
import itertools
from typing import Any

from jaxmoe.config.arrays import ceil_div, most, table_of, total
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.shares import Shares
from jaxmoe.cost.activations import (
  attention_tensors,
  buffer_rows,
  dense_tensors,
  expert_tensors,
  hidden_bytes,
  layer_input_bytes,
  total_bytes,
)
from jaxmoe.cost.constants import DISPATCH_BUFFERS, INT_BYTES, WIDE_BYTES
from jaxmoe.cost.holdings import (
  Stacked,
  gradient_bytes,
  holdings,
  master_bytes,
  optimizer_bytes,
  stacked_holdings,
  weight_bytes,
)
from jaxmoe.cost.stage import StageLayers, stage_layers
from jaxmoe.pipeline.schedule_facts import in_flight


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBytes:
  """Bytes of the device that holds most.

  Attributes:
    master: a second, wider copy of the weights.
    gathered: weights of the layers at work, where zero 3 leaves each device a part of them.
    stacked: where one scan runs all ticks, arrays over all microbatches and ticks.
  """

  parameters: Any
  gradients: Any
  optimizer: Any
  cache: Any
  inputs: Any
  activations: Any
  dispatch: Any
  master: Any = 0
  gathered: Any = 0
  stacked: Any = 0

  @property
  def total(self) -> Any:
    return total(getattr(self, field.name) for field in dataclasses.fields(self))


def memory(d: Shares, load: Any = 1) -> MemoryBytes:
  """What the step needs on one device of the heaviest stage.

  Args:
    load: rows of the busiest device's experts over the mean.
  """
  stacked = stacked_holdings(d)
  kinds = [_of_stage(d, stage, stacked, load) for stage in stage_layers(d)]
  if len(kinds) == 1:
    return kinds[0]
  few, many = kinds
  heavier = many.total > few.total
  fields = (field.name for field in dataclasses.fields(MemoryBytes))
  return MemoryBytes(**{name: _chosen(heavier, getattr(many, name), getattr(few, name)) for name in fields})


def argument_bytes(d: Shares) -> dict[str, Any]:
  """By class, what the step is given on one device; prefill makes its cache."""
  held = memory(d)
  own = {"train": {"optimizer": held.optimizer}, "prefill": {}, "decode": {"cache": held.cache}}[d.job.kind]
  return {"parameters": held.parameters, "inputs": held.inputs, **own}


def peak_bytes(d: Shares, load: Any = 1) -> Any:
  """The total of `memory` alone."""
  stacked = stacked_holdings(d)
  return functools.reduce(most, (_of_stage(d, stage, stacked, load).total for stage in stage_layers(d)))


def _chosen(condition: Any, first: Any, second: Any) -> Any:
  return first * condition + second * (condition == 0)


def _of_stage(d: Shares, stage: StageLayers, stacked: Stacked, load: Any) -> MemoryBytes:
  held = holdings(d, stage, stacked)
  return MemoryBytes(
    parameters=weight_bytes(d, held),
    gradients=gradient_bytes(d, held) if d.train else 0,
    optimizer=optimizer_bytes(d, held) if d.train else 0,
    master=master_bytes(d, held) if d.train else 0,
    cache=0 if d.train else cache_bytes(d),
    inputs=input_bytes(d),
    activations=activation_bytes(d, stage, load),
    dispatch=dispatch_bytes(d, load),
    gathered=gathered_bytes(d, stacked),
    stacked=stacked_bytes(d),
  )


def stacked_bytes(d: Shares) -> Any:
  """What a scan over ticks holds beside the tick at work, whose iterations share one program.

  It takes all microbatches at once, embedded. In training it also gives the outputs of all ticks; while backward runs,
  the gradients of both stand in their place. Gradients of weights are added up in place (`jaxmoe/model/stacked.py`).
  """
  return d.executes_idle * (d.microbatches + d.train * d.ticks) * layer_input_bytes(d)


def gathered_bytes(d: Shares, stacked: Stacked) -> Any:
  """With zero 3: two layers' weights that have replicas, in the compute dtype, one at work and one on its way."""
  layers = [held for stack in ("all", "expert") for held in stacked.get(stack, ())]
  count = sum(held.count * (d.strategy.size(*held.axes) > 1) for held in layers)
  return 2 * count * ITEM_BYTES[d.job.precision.compute] * ((d.zero >= 3) * 1)


def cache_bytes(d: Shares) -> Any:
  """Keys and values of the stage that keeps most: 2 G K numbers a token, or a latent vector whole on every device.

  Layers with local attention keep no more tokens than they see.
  """
  m = d.model
  letters, width = ("G", m.num_kv_heads) if m.latent is None else ("Z", m.cache_width)
  each = 2 * m.head_dim if m.latent is None else 1
  numbers = ceil_div(width, d.rules.shards("activation", letters)) * each
  return (
    ceil_div(d.sequences_per_device * _cached_slots(d), d.strategy.context)
    * numbers
    * ITEM_BYTES[d.job.precision.compute]
  )


def _cached_slots(d: Shares) -> Any:
  """Slots of all layers of the stage that has most."""
  length, near = d.job.sequence_length, d.model.local
  if near is None:
    return length * d.layers_per_stage
  slots = [min(length, near.size) if layer in near.layers else length for layer in range(d.model.num_layers)]

  def of_heaviest(stages: int) -> int:
    return max(_by_stage(slots, stages))

  return table_of(of_heaviest, d.strategy.stage)


def _by_stage(slots: list[int], stages: int) -> list[int]:
  """Layers in their order, the first stages with one more where they do not divide."""
  size, more = divmod(len(slots), stages)
  starts = [stage * size + min(stage, more) for stage in range(stages + 1)]
  return [sum(slots[start:end]) for start, end in itertools.pairwise(starts)]


def cache_bytes_per_token(model: ModelConfig, dtype: str) -> int:
  """Bytes that one token adds to the whole model's cache, local layers included."""
  return model.num_layers * model.cache_width * ITEM_BYTES[dtype]


def input_bytes(d: Shares) -> Any:
  """Token ids and, in training, targets; in serving, a length a sequence."""
  tokens = ceil_div(d.sequences_per_device * d.job.query_length, d.strategy.context)
  return INT_BYTES * (2 * tokens if d.train else tokens + d.sequences_per_device)


def activation_bytes(d: Shares, stage: StageLayers, load: Any = 1) -> Any:
  """Training: what backward keeps of every microbatch in flight, and logits. Serving: one layer's own intermediates."""
  layer_input = layer_input_bytes(d)
  inner = tuple(map(total_bytes, (attention_tensors(d), expert_tensors(d, load), dense_tensors(d))))
  if not d.train:
    return layer_input + inner[0] + most(inner[1], inner[2])
  again = d.recomputed
  kept = stage.all * (layer_input + (1 - again) * inner[0])
  kept = kept + (1 - again) * (stage.routed * inner[1] + stage.dense * inner[2])
  working = again * (inner[0] + most(inner[1], inner[2])) + d.hidden_recomputed * hidden_bytes(d, load)
  return kept_microbatches(d) * kept + working + logit_bytes(d)


def kept_microbatches(d: Shares) -> Any:
  """Microbatches whose activations a stage holds at once; a scan over ticks keeps its idle ones too."""
  if isinstance(d.executes_idle, int) and d.executes_idle:
    return d.ticks
  held = d.by_schedule(lambda schedule, chunks: in_flight(schedule, chunks, d.strategy.stage, d.microbatches))
  return _chosen(d.executes_idle, d.ticks, held)


def logit_bytes(d: Shares) -> Any:
  """Logits of one microbatch."""
  columns = ceil_div(d.model.vocab_size, d.rules.shards("vocabulary", "V"))
  return d.microbatch_tokens * columns * max(WIDE_BYTES, ITEM_BYTES[d.job.precision.compute])


def dispatch_bytes(d: Shares, load: Any = 1) -> Any:
  """Expert buffers as sent, as received, and the same two on the way back."""
  return DISPATCH_BUFFERS * buffer_rows(d, load) * d.model.d_model * ITEM_BYTES[d.job.precision.compute]
