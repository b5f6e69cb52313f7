"""Bytes that one device holds during a step, by class.

Weights, gradients, optimizer state, cache and inputs are exact. Activations and dispatch buffers are a first estimate
of what backward keeps (or of what one layer needs at once); what the compiler allocates beside it is its own affair.
"""

import dataclasses
import math

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.config.model import ModelConfig
from jaxmoe.cost.collectives import ticks
from jaxmoe.cost.flops import gathered_rows
from jaxmoe.cost.parameters import local_parameter_bytes, parameter_tensors
from jaxmoe.cost.support import check_priced

COUNTER_BYTES = 4  # Adam's step counter, int32
ID_BYTES = 4  # token ids and lengths, int32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBytes:
  """One device's bytes; every device of a deployment holds the same."""

  parameters: int
  gradients: int
  optimizer: int
  cache: int
  inputs: int
  activations: int
  dispatch: int

  @property
  def total(self) -> int:
    return sum(getattr(self, field.name) for field in dataclasses.fields(self))


def memory(deployment: Deployment) -> MemoryBytes:
  """What the step needs on one device."""
  d, train = deployment, deployment.job.kind == "train"
  parameter_bytes = local_parameter_bytes(d.model, d.rules, d.job.precision)
  return MemoryBytes(
    parameters=parameter_bytes,
    gradients=parameter_bytes if train else 0,
    optimizer=optimizer_bytes(d) if train else 0,
    cache=0 if train else cache_bytes(d),
    inputs=input_bytes(d),
    activations=activation_bytes(d, d.job.remat),
    dispatch=dispatch_bytes(d),
  )


def optimizer_bytes(d: Deployment) -> int:
  """Adam: two moments of every local parameter, and a counter."""
  count = sum(tensor.local_count(d.rules) for tensor in parameter_tensors(d.model))
  return 2 * count * ITEM_BYTES[d.job.precision.optimizer] + COUNTER_BYTES


def cache_bytes(d: Deployment) -> int:
  """Keys and values of the stage that keeps most: 2 G K numbers a token, or a latent vector whole on every device.

  Layers with local attention keep no more tokens than they see.
  """
  m, length = d.model, d.job.sequence_length
  near = m.local
  slots = [min(length, near.size) if near and layer in near.layers else length for layer in range(m.num_layers)]
  stages = [sum(slots[start : start + d.layers_per_stage]) for start in range(0, m.num_layers, d.layers_per_stage)]
  letters, width = ("BSG", m.num_kv_heads) if m.latent is None else ("BSZ", m.cache_width)
  items = math.prod(d.rules.local_shape("activation", letters, (d.job.batch, max(stages), width)))
  each = 2 * m.head_dim if m.latent is None else 1
  return items * each * ITEM_BYTES[d.job.precision.compute]


def cache_bytes_per_token(model: ModelConfig, dtype: str) -> int:
  """Bytes that one token adds to the whole model's cache, local layers included."""
  return model.num_layers * model.cache_width * ITEM_BYTES[dtype]


def input_bytes(d: Deployment) -> int:
  """Token ids and, in training, targets; in serving, a length a sequence."""
  tokens = d.sequences_per_device * d.job.query_length
  return ID_BYTES * (2 * tokens if d.job.kind == "train" else tokens + d.sequences_per_device)


def activation_bytes(d: Deployment, remat: str) -> int:
  """Training: what backward keeps of every tick and layer, and the logits. Serving: one layer's own intermediates."""
  check_priced(d.model)
  item = ITEM_BYTES[d.job.precision.compute]
  layer_input = d.dispatch_tokens * d.model.d_model * item
  if d.job.kind != "train":
    return layer_input + _layer_bytes(d)
  kept = layer_input if remat == "full" else layer_input + _layer_bytes(d)
  working = _layer_bytes(d) if remat == "full" else 0
  tokens = d.sequences_per_device * d.job.sequence_length
  logits = tokens * (d.model.vocab_size // d.rules.shards("vocabulary", "V")) * max(4, item)
  return ticks(d) * d.layers_per_stage * kept + working + logits


def _layer_bytes(d: Deployment) -> int:
  """Outputs within one layer that its backward reads; scores are recomputed and so are not among them."""
  m, item = d.model, ITEM_BYTES[d.job.precision.compute]
  heads, kv_heads = (n // d.rules.shards("attention", "H") for n in (m.num_heads, m.num_kv_heads))
  normed = d.microbatch_tokens * m.d_model + 2 * d.dispatch_tokens * m.d_model  # before heads; before router; residual
  projected = d.microbatch_tokens * m.head_dim * (2 * heads + 2 * kv_heads)  # query, key, value and their mix
  probabilities = d.dispatch_tokens * m.num_experts
  width = m.d_expert // d.rules.shards("expert", "F")
  hidden = _buffer_rows(d) * width * m.expert_matrices  # before and after the activation, and the gate
  return item * (normed + projected + hidden) + max(4, item) * probabilities


def dispatch_bytes(d: Deployment) -> int:
  """Expert buffers as sent, as received, and the same two on the way back."""
  return 4 * _buffer_rows(d) * d.model.d_model * ITEM_BYTES[d.job.precision.compute]


def _buffer_rows(d: Deployment) -> int:
  """Rows of the arrays that experts read and write."""
  if d.job.transport == "gather":
    return gathered_rows(d)
  return d.model.num_experts * (d.expert_capacity if d.job.transport == "capacity" else d.dispatch_tokens)
