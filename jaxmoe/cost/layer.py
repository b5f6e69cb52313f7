"""What one layer does to one microbatch on one device: matmul FLOPs and memory traffic of each part, forward.

Sizes may be arrays, one entry a plan. Traffic counts an operation's inputs and outputs once: what stays on chip between
operations is not deducted, what is read again is not added.
"""

import dataclasses
from typing import Any

from jaxmoe.config.arrays import ceil_div
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import (
  FUSED_SCORE_BACKWARD,
  MASK_BYTES,
  PERMUTED_PASSES,
  ROUNDING,
  SCORE_GRADIENT_PASSES,
  SCORE_PASSES,
  STREAM_PASSES,
  TRAIN_PASSES,
  WIDE_BYTES,
)
from jaxmoe.cost.parameters import parameter_tensors
from jaxmoe.cost.token_flops import mean_keys


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
  """One part of a layer.

  Attributes:
    part: `projections`, `scores`, `router`, `experts`, `shared`, `dense` or `elementwise`.
    bytes: read and written.
    backward: passes of backward over it, in units of forward: two gradients where it has weights; five matmuls for
      the two of scores; twice the traffic of elementwise work.
    weight_pass: whether one pass of backward is the weights' gradient, which can wait.
  """

  part: str
  flops: Any
  bytes: Any
  backward: Any = 2
  weight_pass: bool = True


def attention_operations(d: Shares) -> list[Operation]:
  """Projections, scores, and the norms and sums of the residual stream around them."""
  m, T, item = d.model, d.microbatch_tokens, ITEM_BYTES[d.job.precision.compute]
  count, stored = _local_matrices(d, "attention")
  heads, kv_heads = (
    n / d.rules.shards("attention", letter) for n, letter in ((m.num_heads, "H"), (m.num_kv_heads, "G"))
  )
  rotated = T * m.head_dim * 2 * (heads + kv_heads)
  projected = 2 * T * m.d_model + rotated
  return [
    Operation("projections", 2 * T * count, stored + item * projected),
    *_score_operations(d, heads),
    *_conversion(d, projected),
    Operation("elementwise", 0, item * (STREAM_PASSES * residual_tokens(d) * m.d_model + rotated), 2, False),
  ]


def _score_operations(d: Shares, heads: Any) -> list[Operation]:
  """Fused, backward computes the scores again; else it does so only where the whole layer is not.

  Unfused, each score is written, read and written by softmax, read and written by dropout with a mask of a byte, and
  read. Of its backward, dropout reads the mask and a gradient and writes one, softmax reads two numbers and writes one.
  """
  m, T, item = d.model, d.microbatch_tokens, ITEM_BYTES[d.job.precision.compute]
  flops, numbers = _score_flops(d, heads), T * m.head_dim * 2 * heads + _keys_read(d)
  if not d.writes_scores:
    return [Operation("scores", flops, item * numbers, FUSED_SCORE_BACKWARD, False)]
  scores, again = T * multiplied_keys(d) * heads, 1 - d.recomputed
  forward, backward = SCORE_PASSES * item + MASK_BYTES, SCORE_GRADIENT_PASSES * item + MASK_BYTES
  return [
    Operation("scores", flops, item * (numbers + 2 * scores), 2 + again, False),
    Operation("elementwise", 0, scores * forward, backward / forward + again, False),
  ]


def expert_operations(d: Shares, rows: Any) -> list[Operation]:
  """Router, routed experts over `rows` rows, shared expert, permutation of rows and the residual stream."""
  m, item = d.model, ITEM_BYTES[d.job.precision.compute]
  width = m.d_expert / d.rules.shards("expert", "F")
  _, stored = _local_matrices(d, "expert")
  scored = m.num_experts + (m.shared is not None and m.shared.weighed)  # a weighed shared expert has a gate
  router_bytes = d.dispatch_tokens * (m.d_model * item + scored * max(WIDE_BYTES, item))
  stream = STREAM_PASSES * residual_tokens(d) * m.d_model
  moved = PERMUTED_PASSES * (m.num_experts > 1) * rows * m.d_model + rows * width * m.expert_matrices + stream
  operations = [
    Operation("router", 2 * d.dispatch_tokens * m.d_model * scored, router_bytes),
    Operation(
      "experts" if m.num_experts > 1 else "dense",
      2 * rows * m.expert_matrices * m.d_model * width,
      stored * _visited(d, rows) + item * rows * (2 * m.d_model + m.expert_matrices * width),
    ),
    Operation("elementwise", 0, item * moved, 2, False),
    *_conversion(d, rows * (2 * m.d_model + m.expert_matrices * width)),
  ]
  if m.shared is not None:
    operations += _network(d, "shared", m.shared.d_hidden / d.rules.shards("dense", "J"), "expert")
  return operations


def dense_operations(d: Shares) -> list[Operation]:
  """The network of a layer without experts, and the residual stream."""
  m, item = d.model, ITEM_BYTES[d.job.precision.compute]
  if m.dense is None:
    return []
  width = m.dense.d_hidden / d.rules.shards("dense", "I")
  moved = STREAM_PASSES * residual_tokens(d) * m.d_model + d.microbatch_tokens * width * m.expert_matrices
  return [*_network(d, "dense", width, "dense"), Operation("elementwise", 0, item * moved, 2, False)]


def _network(d: Shares, part: str, width: Any, stack: str) -> list[Operation]:
  m, T, item = d.model, d.microbatch_tokens, ITEM_BYTES[d.job.precision.compute]
  count, stored = _local_matrices(d, "dense", stack)
  numbers = T * (2 * m.d_model + m.expert_matrices * width)
  return [Operation(part, 2 * T * count, stored + item * numbers), *_conversion(d, numbers)]


def _local_matrices(d: Shares, role: str, stack: str | None = None) -> tuple[Any, Any]:
  """Weights of one layer's matrices of this role on one device, and their bytes as stored."""
  precision = d.job.precision
  tensors = [
    t for t in parameter_tensors(d.model) if t.role == role and t.is_matrix and t.stack in ("all", "expert", "dense")
  ]
  counts = [(t, t.layer_count(d.rules)) for t in tensors if stack is None or t.stack == stack]
  return sum(n for _, n in counts), sum(n * ITEM_BYTES[t.dtype(precision)] for t, n in counts)


def _conversion(d: Shares, numbers: Any) -> list[Operation]:
  """Inputs and outputs of matmuls in a dtype of their own, read and written in it where they are multiplied.

  Inputs in forward, gradients of outputs in the input's gradient, both once more, along tokens, in the weights'.
  """
  precision = d.job.precision
  if precision.matmuls in (None, precision.compute):
    return []
  each = ITEM_BYTES[precision.compute] + ITEM_BYTES[precision.matmuls]
  return [Operation("elementwise", 0, each * numbers / 2, TRAIN_PASSES)]


def _score_flops(d: Shares, heads: Any) -> Any:
  """The two matmuls of queries with keys and of scores with values, over the keys that are multiplied."""
  m = d.model
  width = 2 * m.head_dim
  if m.latent is not None:
    width = m.cache_width + m.latent.rank if d.job.kind == "decode" else m.head_dim + m.latent.value_dim
  return 2 * d.microbatch_tokens * multiplied_keys(d) * heads * width


def multiplied_keys(d: Shares) -> float:
  """Keys that a query is multiplied with, on average over layers: all, or with masked blocks skipped those it sees."""
  m = d.model
  if m.local is None:
    return mean_keys(m, 0, d.job.sequence_length, d.keys_seen)
  return sum(mean_keys(m, layer, d.job.sequence_length, d.keys_seen) for layer in range(m.num_layers)) / m.num_layers


def _keys_read(d: Shares) -> Any:
  """Numbers of keys and values read: the cache's in decode, else those of the microbatch itself."""
  m = d.model
  width = m.cache_width if m.latent is not None else m.cache_width / d.rules.shards("attention", "G")
  if d.job.kind == "decode":
    return d.microbatch_sequences * multiplied_keys(d) * width
  return d.microbatch_tokens * d.strategy.context * width


def residual_tokens(d: Shares) -> Any:
  """Tokens of the residual stream on one device."""
  return ceil_div(d.dispatch_tokens, sequence_shards(d))


def sequence_shards(d: Shares) -> Any:
  """Parts that sequence parallelism alone slices the residual stream into: where experts need tokens whole."""
  return d.strategy.size(*d.strategy.sequence_axes) if d.strategy.sequence_parallel else 1


def _visited(d: Shares, rows: Any) -> Any:
  """Share of a device's experts whose weights are read: those that at least one row visits."""
  experts = d.model.num_experts / d.rules.shards("expert", "E")
  if d.job.transport in ("capacity", "dense"):
    return 1
  return 1 - (1 - 1 / (experts + (experts == 1) * ROUNDING)) ** rows
