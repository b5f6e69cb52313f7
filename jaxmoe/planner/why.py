"""Two plans of one model for one kind of job, term by term."""

import dataclasses

from jaxmoe.cost.estimate import Estimate, collectives_by_axis
from jaxmoe.meshes.axes import label
from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
  """One number of both plans; 0 where a plan does not have it."""

  name: str
  a: float
  b: float

  @property
  def difference(self) -> float:
    return self.b - self.a


@dataclasses.dataclass(frozen=True, slots=True)
class Why:
  """Terms of each kind, the largest difference first; those of a kind add up to the plans' totals.

  Attributes:
    time, memory, flops, axes: seconds of a step; bytes of a device; executed matmul FLOPs of a device; payload bytes of
      a device over each group of axes.
    token_time: seconds of one device for a token, which alone compares steps of other batches or on other devices.
  """

  a: Estimate
  b: Estimate
  time: list[Term]
  token_time: list[Term]
  memory: list[Term]
  flops: list[Term]
  axes: list[Term]


def share(term: Term, terms: list[Term]) -> float | None:
  """Its part of the total's difference: above 1 where other terms go the other way, None where the totals are equal."""
  whole = sum(other.difference for other in terms)
  size = sum(abs(other.difference) for other in terms)
  return term.difference / whole + 0.0 if abs(whole) > 1e-9 * size else None  # no -0.0


def why(a: Estimate, b: Estimate) -> Why:
  """Plan `b` against plan `a`.

  Raises:
    UsageError: they are of different models or kinds of job.
  """
  _check_alike(a, b)
  return Why(
    a,
    b,
    time=_terms(a.time.terms(), b.time.terms()),
    token_time=_terms(token_time_s(a), token_time_s(b)),
    memory=_terms(dataclasses.asdict(a.memory), dataclasses.asdict(b.memory)),
    flops=_terms(dataclasses.asdict(a.executed), dataclasses.asdict(b.executed)),
    axes=_terms(axis_bytes(a), axis_bytes(b)),
  )


def token_time_s(e: Estimate) -> dict[str, float]:
  """Term of time -> seconds of one device for a token."""
  share = e.deployment.strategy.devices / (e.tokens_per_s * e.time.total_s)
  return {name: s * share for name, s in e.time.terms().items()}


def same_work(a: Estimate, b: Estimate) -> bool:
  """Whether a step computes as many tokens on as many devices."""
  one, other = a.deployment, b.deployment
  same = one.job.batch * one.job.query_length == other.job.batch * other.job.query_length
  return same and one.strategy.devices == other.strategy.devices


def axis_bytes(e: Estimate) -> dict[str, float]:
  """Group of axes -> payload of one device and step."""
  found: dict[str, float] = {}
  for row in collectives_by_axis(e):
    found[label(row["axes"])] = found.get(label(row["axes"]), 0.0) + row["bytes"]
  return found


def _terms(a: dict[str, float], b: dict[str, float]) -> list[Term]:
  names = [*a, *(name for name in b if name not in a)]
  terms = [Term(name, float(a.get(name, 0)), float(b.get(name, 0))) for name in names]
  return sorted((term for term in terms if term.a or term.b), key=lambda term: -abs(term.difference))


def _check_alike(a: Estimate, b: Estimate) -> None:
  one, other = a.deployment, b.deployment
  if one.job.kind != other.job.kind:
    raise UsageError(
      f"expected two plans of one kind of job, got {one.name} to {one.job.kind} and {other.name} to {other.job.kind};"
      " a step of one says nothing of the other"
    )
  fields = [field.name for field in dataclasses.fields(one.model) if field.name != "name"]
  differing = [name for name in fields if getattr(one.model, name) != getattr(other.model, name)]
  if differing:
    name = differing[0]
    values = f"{getattr(one.model, name)} and {getattr(other.model, name)}"
    raise UsageError(
      f"expected two plans of one model, got {one.name} of {one.model.name} and {other.name} of {other.model.name},"
      f" which differ in {name}: {values[:80]}"
    )
