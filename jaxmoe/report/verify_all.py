"""Several comparisons as one table and one JSON document."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.report import units
from jaxmoe.report.table import Table
from jaxmoe.xla.compare import Comparison
from jaxmoe.xla.verify import IN_ALL


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
  """What became of one deployment.

  Attributes:
    name: as the catalogue has it.
    deployment: None if it cannot be read.
    comparison: None if there is none: the compiler or the target refused, or something broke.
    refusal: then, why.
  """

  name: str
  deployment: Deployment | None
  target: str
  comparison: Comparison | None = None
  refusal: str = ""

  @property
  def verdict(self) -> str:
    if self.comparison is None:
      return f"refused: {self.refusal}"
    if not self.comparison.agrees:
      return "DISAGREES"
    return "agrees" if self.comparison.fit.ok else "does not fit"

  @property
  def devices(self) -> int | None:
    return self.deployment.strategy.devices if self.deployment else None

  @property
  def ok(self) -> bool:
    return self.comparison is not None and self.comparison.ok


def table(outcomes: Sequence[Outcome]) -> Table:
  """Deployment, target, devices, verdict, checks that hold, seconds and memory of the compile."""
  headers = ["deployment", "target", "devices", "verdict", "checks held", "compiled in", "compiler's memory"]
  return Table("", headers, [_row(outcome) for outcome in outcomes])


def _row(o: Outcome) -> tuple[str, ...]:
  said, *_ = o.verdict.splitlines()  # a process that died says its last lines
  start = (o.name, o.target, "-" if o.devices is None else str(o.devices), said)
  if o.comparison is None:
    return (*start, "-", "-", "-")
  c, peak = o.comparison, o.comparison.compiled.peak_bytes
  took = units.seconds(c.compiled.seconds[IN_ALL]) + (" (cached)" if c.cached else "")
  return (*start, f"{_held(c)} of {len(c.checks)}", took, units.bytes_(peak) if peak else "-")


def _held(c: Comparison) -> int:
  return sum(check.ok for check in c.checks)


def document(target: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
  return {
    "target": target,
    "ok": all(outcome.ok for outcome in outcomes),
    "sources": {"checks_held": "compiled", "seconds": "measured", "compiler_peak_bytes": "measured"},
    "deployments": [_entry(outcome) for outcome in outcomes],
  }


def _entry(o: Outcome) -> dict[str, Any]:
  start = {
    "deployment": o.name,
    "target": o.target,
    "devices": o.devices,
    "ok": o.ok,
    "verdict": o.verdict,
  }
  if o.comparison is None:
    return start
  c = o.comparison
  return {
    **start,
    "checks_held": _held(c),
    "checks": len(c.checks),
    "unplanned_collectives": len(c.unplanned),
    "seconds": c.compiled.seconds[IN_ALL],
    "compiler_peak_bytes": c.compiled.peak_bytes,
    "cached": c.cached,
    "notes": c.compiled.notes,
    "versions": c.compiled.versions,
  }
