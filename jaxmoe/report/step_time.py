"""Predicted time of one step: by the planner's formulas, and by the compiler's own estimate."""

import dataclasses

from jaxmoe.config.assumptions import NOTHING_HIDDEN, Assumptions
from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import SOURCE, estimate
from jaxmoe.report import units
from jaxmoe.xla.compiled_step import CompiledStep

_COMPILED = "compiled; counts what is in a loop once, as if nothing waited"
_GIVES_NONE = "compiled; this compiler gives none"
_NO_PEAK = f"{SOURCE}; the cluster states no peak for this dtype"


@dataclasses.dataclass(frozen=True, slots=True)
class StepTime:
  """Seconds of a step; None where a side gives none, and then `source` says why."""

  what: str
  seconds: float | None
  source: str

  @property
  def row(self) -> tuple[str, str, str]:
    return (self.what, "-" if self.seconds is None else units.seconds(self.seconds), self.source)


def predicted_s(d: Deployment, assumed: Assumptions | None = None) -> float | None:
  """The planner's step on the deployment's own cluster; None if that states no peak for the compute dtype."""
  has_peak = d.job.precision.compute in d.cluster.peak_flops_per_s
  return estimate(d, assumed).time.total_s if has_peak else None


def step_times(d: Deployment, compiled: CompiledStep) -> tuple[StepTime, StepTime]:
  """The planner's, with nothing hidden, and the compiler's own estimate."""
  predicted, optimal = predicted_s(d, NOTHING_HIDDEN), compiled.optimal_s
  return (
    StepTime(f"step on {d.cluster.name}, by the planner", predicted, _NO_PEAK if predicted is None else SOURCE),
    StepTime("step, by the compiler's estimate", optimal, _GIVES_NONE if optimal is None else _COMPILED),
  )
