"""A deployment: one model, on one cluster, under one strategy, doing one job; what its document claims."""

import dataclasses
from typing import Literal

from jaxmoe.config.assumptions import NOTHING_HIDDEN, Assumptions
from jaxmoe.config.divisions import check
from jaxmoe.config.job import Job
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.shares import OneJob
from jaxmoe.meshes.cluster import Cluster
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
class Deployment(OneJob):
  """What `place`, `estimate` and `verify` work on.

  Attributes:
    expert_numbering: how its document numbers experts: 0 to E-1 in every layer, or on through the stages.
    assumptions: what a prediction of it takes for granted.

  Raises:
    UsageError: the strategy needs more devices than the cluster has, or a dimension does not divide over its
      axes; the message names the field and the nearest legal values.
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
  assumptions: Assumptions = NOTHING_HIDDEN

  def __post_init__(self):
    check(self)
    self.assumptions.check_experts(self.model.num_experts)

  @property
  def warnings(self) -> tuple[str, ...]:
    """What is legal and yet unlikely to be meant, one sentence each."""
    length, limit = self.job.sequence_length, self.model.max_sequence_length
    if limit is None or length <= limit:
      return ()
    limits = f"job.sequence_length={length} exceeds model.max_sequence_length={limit}"
    return (f"{limits}; positions beyond it were never trained",)

  @property
  def skips_masked(self) -> bool:
    return False
