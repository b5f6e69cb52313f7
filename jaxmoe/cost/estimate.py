"""Everything the formulas say about one deployment, as plain data; every number of it is a formula's."""

import dataclasses
from typing import Any, get_args

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Remat
from jaxmoe.cost.collectives import Collective, collectives
from jaxmoe.cost.flops import PartFlops, executed_flops, flops_per_token, useful_flops
from jaxmoe.cost.load import load_of
from jaxmoe.cost.memory import MemoryBytes, cache_bytes_per_token, memory
from jaxmoe.cost.network import collective_s
from jaxmoe.cost.parameters import active_parameters, parameters_by_class, total_parameters
from jaxmoe.cost.passes import peak_flops_per_s
from jaxmoe.cost.time import StepTime, step_time

SOURCE = "formula"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
  """One deployment, predicted. Per device unless said otherwise.

  Attributes:
    bubble: share of the pipeline's time in which a stage idles; (S-1)/(M+S-1) for plain schedules.
    mfu: useful FLOPs over what the devices could do at peak in the step's time.
    tokens_per_s: of the whole deployment: trained, prefilled or generated.
    cache_bytes_per_token: of the whole model.
  """

  deployment: Deployment
  parameters: dict[str, int]
  memory: MemoryBytes
  activation_bytes_by_remat: dict[str, int]
  executed: PartFlops
  useful: PartFlops
  flops_per_token_forward: float
  collectives: list[Collective]
  bubble: float
  time: StepTime
  tokens_per_s: float
  mfu: float
  cache_bytes_per_token: int

  @property
  def fits(self) -> bool:
    return self.memory.total <= self.deployment.cluster.memory_bytes

  @property
  def flops_per_token_backward(self) -> float:
    """Two gradients for each forward matmul."""
    return 2 * self.flops_per_token_forward


def estimate(deployment: Deployment, assumed: Assumptions | None = None) -> Estimate:
  """The prediction for `deployment`.

  Args:
    assumed: in place of the deployment's own assumptions.

  Raises:
    UsageError: the cluster states no peak for the job's compute dtype.
  """
  d, m = deployment, deployment.model
  assumed = d.assumptions if assumed is None else assumed
  time, useful = step_time(d, assumed).plain(), useful_flops(d)
  peak = peak_flops_per_s(d.cluster, d.job.precision.compute)
  classes = parameters_by_class(m, d.rules)
  return Estimate(
    deployment=d,
    parameters={"total": total_parameters(m), "active": active_parameters(m), **classes},
    memory=_memory(d, assumed),
    activation_bytes_by_remat={remat: _memory(_with_remat(d, remat), assumed).activations for remat in get_args(Remat)},
    executed=executed_flops(d),
    useful=useful,
    flops_per_token_forward=flops_per_token(d),
    collectives=collectives(d),
    bubble=time.bubble / (time.bubble + _busy_s(time)),
    time=time,
    tokens_per_s=d.batch * d.job.query_length / time.total_s,
    mfu=useful.total / (peak * time.total_s),
    cache_bytes_per_token=cache_bytes_per_token(m, d.job.precision.compute),
  )


def _memory(d: Deployment, assumed: Assumptions) -> MemoryBytes:
  return _whole(memory(d, load_of(d, assumed)))


def _with_remat(d: Deployment, remat: Remat) -> Deployment:
  return dataclasses.replace(d, job=dataclasses.replace(d.job, remat=remat))


def _whole(held: MemoryBytes) -> MemoryBytes:
  """Python's own whole numbers: tables of schedules hold shares of microbatches, as numpy's."""
  return MemoryBytes(**{field.name: round(getattr(held, field.name)) for field in dataclasses.fields(held)})


def _busy_s(time: StepTime) -> float:
  """Time that a stage works on its layers."""
  return sum(time.matmuls.values()) + time.recomputation + time.exchange + time.layer_network


def collectives_by_axis(e: Estimate) -> list[dict[str, Any]]:
  """Rows of (axes, kind): executions, payload bytes and seconds of one step."""
  rows: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}
  for c in e.collectives:
    row = rows.setdefault((c.axes, c.kind), {"axes": c.axes, "kind": c.kind, "count": 0, "bytes": 0, "s": 0.0})
    row["count"] += c.count
    row["bytes"] += c.total_bytes
    row["s"] += float(collective_s(c, e.deployment.strategy, e.deployment.cluster))
  return sorted(rows.values(), key=lambda row: -row["s"])
