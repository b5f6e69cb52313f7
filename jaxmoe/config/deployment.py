"""A deployment: one model, on one cluster, under one strategy, doing one job; what its document claims."""

import dataclasses
import math
from typing import Literal

from jaxmoe.config.job import Job
from jaxmoe.config.model import ModelConfig, nearest_divisor
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Strategy

ExpertNumbering = Literal["per_layer", "across_stages"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
  """A number that a document states: what it is about, its value and its unit, with the document's words."""

  name: str
  value: float
  unit: str
  quote: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
  """How a contradictory or missing statement of a document was read, and why."""

  statement: str
  reading: str
  assumption: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
  """What `place`, `estimate` and `verify` work on.

  Attributes:
    expert_numbering: how its document numbers experts: 0 to E-1 in every layer, or on through the stages.

  Raises:
    UsageError: the strategy needs more devices than the cluster has, or a dimension does not divide over its
      axes; the message names the field and the nearest legal value.
  """

  name: str
  title: str
  model: ModelConfig
  cluster: Cluster
  strategy: Strategy
  job: Job
  expert_numbering: ExpertNumbering = "per_layer"
  document: str | None = None
  claims: tuple[Claim, ...] = ()
  readings: tuple[Reading, ...] = ()

  def __post_init__(self):
    if self.strategy.devices > self.cluster.devices:
      raise UsageError(
        f"strategy needs {self.strategy.product}, but cluster {self.cluster.name} has {self.cluster.devices};"
        " shrink an axis or name a larger cluster"
      )
    for field, size, axes in self._divisions():
      parts = self.strategy.size(*axes)
      if size % parts:
        raise UsageError(
          f"{field}={size} must be a multiple of {' x '.join(axes)} = {parts};"
          f" the nearest legal {field} is {max(1, round(size / parts)) * parts},"
          f" or split it {nearest_divisor(size, parts)} ways"
        )
    if self.sequences_per_device % self.job.microbatches:
      raise UsageError(
        f"job.microbatches={self.job.microbatches} must divide the"
        f" {self.sequences_per_device} sequences of a device; the nearest legal value is"
        f" {nearest_divisor(self.sequences_per_device, self.job.microbatches)}"
      )
    if self.microbatch_tokens % self.strategy.size(*self.strategy.slice_axes):
      raise UsageError(
        f"a microbatch of {self.microbatch_tokens} tokens must divide over"
        f" {' x '.join(self.strategy.slice_axes)} = {self.strategy.size(*self.strategy.slice_axes)};"
        " use fewer microbatches"
      )

  def _divisions(self) -> list[tuple[str, int, tuple[str, ...]]]:
    rules, model = self.rules, self.model
    return [
      ("model.num_layers", model.num_layers, rules.axes("attention", "L")),
      ("model.num_heads", model.num_heads, rules.axes("attention", "H")),
      ("model.num_kv_heads", model.num_kv_heads, rules.axes("attention", "G")),
      ("model.num_experts", model.num_experts, rules.axes("expert", "E")),
      ("model.d_expert", model.d_expert, rules.axes("expert", "F")),
      *self._hidden_widths(),
      ("model.vocab_size", model.vocab_size, rules.axes("vocabulary", "V")),
      ("job.batch", self.job.batch, rules.axes("activation", "B")),
    ]

  def _hidden_widths(self) -> list[tuple[str, int, tuple[str, ...]]]:
    """Widths of dense layers and of shared experts, in models that have them."""
    parts = (("dense", "I", self.model.dense), ("shared", "J", self.model.shared))
    return [(f"model.{name}.d_hidden", x.d_hidden, self.rules.axes("dense", letter)) for name, letter, x in parts if x]

  @property
  def rules(self) -> PartitionRules:
    return PartitionRules(self.strategy)

  @property
  def layers_per_stage(self) -> int:
    return self.model.num_layers // self.strategy.stage

  @property
  def sequences_per_device(self) -> int:
    return self.job.batch // self.strategy.size(*self.strategy.batch_axes)

  @property
  def microbatch_sequences(self) -> int:
    """Sequences of one microbatch on one device."""
    return self.sequences_per_device // self.job.microbatches

  @property
  def microbatch_tokens(self) -> int:
    """Tokens of one microbatch on one device, before any slicing for dispatch."""
    return self.microbatch_sequences * self.job.query_length

  @property
  def dispatch_tokens(self) -> int:
    """Tokens that one device routes for one microbatch: its slice of them."""
    return self.microbatch_tokens // self.strategy.size(*self.strategy.slice_axes)

  @property
  def expert_capacity(self) -> int:
    """C: rows that one device may send to one expert for one microbatch."""
    return expert_capacity(self.dispatch_tokens, self.model, self.job.capacity_factor)


def expert_capacity(tokens: int, model: ModelConfig, capacity_factor: float) -> int:
  """ceil(factor x tokens x experts_per_token / num_experts), at most `tokens`."""
  balanced = tokens * model.experts_per_token / model.num_experts
  return min(tokens, max(1, math.ceil(capacity_factor * balanced)))
