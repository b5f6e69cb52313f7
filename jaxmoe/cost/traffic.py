"""Memory traffic of one device in one step: what the model's operations read and write, summed over ticks and passes.

Attention counts as fused: scores stay on the chip. A compiler that writes them, converts dtypes in passes of their own,
or copies what it could have kept, moves more; `least_bytes` is what every program must move.
"""

import dataclasses
from typing import Any

from jaxmoe.config.arrays import ceil_div
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import TRAIN_PASSES
from jaxmoe.cost.flops import expert_rows, passes
from jaxmoe.cost.holdings import Holding, gradient_bytes, holdings, master_bytes, optimizer_bytes, weight_bytes
from jaxmoe.cost.layer import Operation, attention_operations, dense_operations, expert_operations
from jaxmoe.cost.memory import cache_bytes
from jaxmoe.cost.parameters import parameter_tensors
from jaxmoe.cost.stage import stage_layers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartBytes:
  """Bytes read and written by part of the step; `experts` holds the router and every feed-forward."""

  attention: float
  experts: float
  head: float
  optimizer: float

  @property
  def total(self) -> float:
    return self.attention + self.experts + self.head + self.optimizer


def executed_bytes(deployment: Deployment, *, kernel: str | None = None) -> PartBytes:
  """What one device moves, with `gather` as expected; `kernel` as in `expert_rows`."""
  d = deployment
  stage = stage_layers(d)[0]

  def moved(operations: list[Operation], layers: Any) -> float:
    return sum(d.ticks * layers * passes(d, op) * op.bytes for op in operations)

  experts = moved(expert_operations(d, expert_rows(d, kernel).expected), stage.routed)
  return PartBytes(
    attention=moved(attention_operations(d), stage.all),
    experts=experts + moved(dense_operations(d), stage.dense),
    head=(TRAIN_PASSES if d.train else 1) * head_bytes(d),
    optimizer=update_bytes(d, holdings(d, stage)) if d.train else 0.0,
  )


def head_bytes(d: Shares) -> Any:
  """Of one pass over the head: its weights, tokens and logits."""
  m, precision = d.model, d.job.precision
  columns = ceil_div(m.vocab_size, d.rules.shards("vocabulary", "V"))
  tokens = d.sequences_per_device * (d.job.sequence_length if d.train else 1) / d.strategy.context
  numbers = tokens * (m.d_model + columns)
  return columns * m.d_model * ITEM_BYTES[precision.weights] + numbers * ITEM_BYTES[precision.compute]


def update_bytes(d: Shares, held: list[Holding]) -> Any:
  """Of the optimizer: its state and this device's part of the weights read and written, gradients read."""
  state = optimizer_bytes(d, held) + master_bytes(d, held)
  return 2 * state + gradient_bytes(d, held) + 2 * weight_bytes(d, held)


def least_bytes(deployment: Deployment) -> float:
  """What no program can leave out.

  In training all weights and moments are read and written. In serving weights are read, but for rows of the embedding
  and, with `gather`, experts that no token may visit; a cache is read in decode and written in prefill.
  """
  d, precision = deployment, deployment.job.precision
  if d.train:
    held = holdings(d, stage_layers(d)[0])
    return 2 * (weight_bytes(d, held) + optimizer_bytes(d, held) + master_bytes(d, held))
  read = [t for t in parameter_tensors(d.model) if t.name != "embedding" or d.model.tied_embeddings]
  certain = [t for t in read if t.role != "expert" or d.job.transport != "gather"]
  return sum(t.local_bytes(d.rules, precision) for t in certain) + cache_bytes(d)
