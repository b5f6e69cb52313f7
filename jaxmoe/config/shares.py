"""What one device gets of a job under a strategy: sizes that follow from the three, for one plan or arrays of plans."""

from collections.abc import Callable
from typing import Any, Literal

from jaxmoe.config.arrays import ceil, ceil_div, least, most
from jaxmoe.config.job import Job
from jaxmoe.config.model import ModelConfig
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.rules import PartitionRules


class Shares:
  """A model, a cluster, a strategy and a job; sizes are whole numbers, or arrays that broadcast where plans differ.

  Attributes:
    strategy: a `Strategy`, or columns of strategies that fold alike.
    job: what all plans have in common; what they differ in stands in the columns below.
    batch: sequences of a step.
    chunks: parts of a stage's layers that a microbatch visits one after the other, going round the stages.
    microbatches, zero: as in `Job`.
    recomputed: whether backward runs a layer's forward again (0 or 1).
    hidden_recomputed: whether it runs the experts' first matmuls again rather than keep their rows (0 or 1).
    executes_idle: whether a stage computes in its idle ticks too (0 or 1), as a scan over ticks does.
    skips_masked: whether attention leaves out the blocks of scores that causal masking would zero.
    scatters_messages: whether devices along tensor that hold the same tokens each send a part of them to the next
      stage, which gathers them (Narayanan et al. 2021, section 4.1); with sequence parallelism they hold a part anyway.
    writes_scores: whether attention is not fused, so that scores, their softmax and its dropout go through memory.
  """

  model: ModelConfig
  cluster: Cluster
  job: Job
  strategy: Any
  batch: Any
  chunks: Any
  microbatches: Any
  zero: Any
  recomputed: Any
  hidden_recomputed: Any
  executes_idle: Any
  skips_masked: bool
  scatters_messages: bool = False
  writes_scores: bool = False

  __slots__ = ()

  @property
  def rules(self) -> PartitionRules:
    return PartitionRules(self.strategy)

  @property
  def train(self) -> bool:
    return self.job.kind == "train"

  def by_schedule(self, fact: Callable[[str, int], Any]) -> Any:
    """`fact(schedule, chunks)` of the job's schedule; plans with several schedules have an axis of them."""
    return fact(self.job.schedule, self.job.chunks)

  @property
  def copies(self) -> Any:
    """Stages whose weights a device holds: two where microbatches go through the pipeline both ways."""
    return 1 + (self.job.schedule == "dualpipe")

  @property
  def keys_seen(self) -> Literal["decode", "causal", "full"]:
    """Which keys a query is multiplied with."""
    if self.job.kind == "decode":
      return "decode"
    return "causal" if self.skips_masked else "full"

  @property
  def layers_per_stage(self) -> Any:
    """Layers of the stage that has most."""
    return ceil_div(self.model.num_layers, self.strategy.stage)

  @property
  def sequences_per_device(self) -> Any:
    """Sequences that one device works on; with context parallelism on a part of each."""
    return self.batch // self.strategy.batch_shards

  @property
  def microbatch_sequences(self) -> Any:
    """Sequences of one microbatch on one device."""
    return self.sequences_per_device // self.microbatches

  @property
  def microbatch_tokens(self) -> Any:
    """Tokens of one microbatch on one device, before any slicing for dispatch."""
    return self.microbatch_sequences * self.job.query_length // self.strategy.context

  @property
  def dispatch_tokens(self) -> Any:
    """Tokens that one device routes for one microbatch: its slice of them."""
    return self.microbatch_tokens // self.strategy.size(*self.strategy.slice_axes)

  @property
  def expert_capacity(self) -> Any:
    """C: rows that one device may send to one expert for one microbatch."""
    return expert_capacity(self.dispatch_tokens, self.model, self.job.capacity_factor)

  @property
  def ticks(self) -> Any:
    """Times that each stage runs its layers in one step, idle ticks included where they compute."""
    return self.microbatches + self.executes_idle * (self.strategy.stage - 1)


class OneJob(Shares):
  """Shares of one plan: what plans may differ in is as its job says."""

  __slots__ = ()

  @property
  def batch(self) -> int:
    return self.job.batch

  @property
  def chunks(self) -> int:
    return self.job.chunks

  @property
  def microbatches(self) -> int:
    return self.job.microbatches

  @property
  def zero(self) -> int:
    return self.job.zero

  @property
  def recomputed(self) -> int:
    return int(self.train and self.job.remat == "full")

  @property
  def hidden_recomputed(self) -> int:
    return int(self.train and self.job.remat == "selective")

  @property
  def executes_idle(self) -> int:
    return int(self.job.schedule == "gpipe")


def expert_capacity(tokens: Any, model: ModelConfig, capacity_factor: float) -> Any:
  """ceil(factor x tokens x experts_per_token / num_experts), at most `tokens`."""
  balanced = tokens * model.experts_per_token / model.num_experts
  return least(tokens, most(1, ceil(capacity_factor * balanced)))
