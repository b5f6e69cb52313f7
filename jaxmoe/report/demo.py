"""The demo's story as short tables: document, plan, placement, predicted, compiled, running."""

import dataclasses
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import Estimate
from jaxmoe.report import estimate as estimate_report
from jaxmoe.report import placement, units, verification
from jaxmoe.report.table import Table
from jaxmoe.train.reduced import ReducedRun
from jaxmoe.xla.compare import Comparison

SHOWN_RANKS = (0, 1, 2, -1)
SHOWN_STEPS = (0, 4, 9, 14, 19)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Everything the demo found; `tolerance` is the largest allowed difference from the reference, by dtype."""

  deployment: Deployment
  reduced: Deployment
  estimate: Estimate
  comparison: Comparison
  training: ReducedRun
  tolerance: dict[str, float]
  seconds: dict[str, float]

  @property
  def right(self) -> bool:
    """Sharded loss and gradients equal the reference's."""
    found = self.training.agreement
    return all(found[t].loss <= limit and found[t].gradient <= limit for t, limit in self.tolerance.items())

  @property
  def learns(self) -> bool:
    losses = [step["loss"] for step in self.training.history]
    return losses[-1] < losses[0]

  @property
  def ok(self) -> bool:
    return self.comparison.ok and self.right and self.learns


def verdict(o: Outcome) -> str:
  """One line on whether plan, compiler and running model agree."""
  agree = "agrees" if o.ok else "DISAGREES"
  return f"{agree}: plan, compiler and running model of {o.deployment.name} ({units.seconds(sum(o.seconds.values()))})"


def tables(o: Outcome) -> list[Table]:
  return [_plan(o), _placement(o), _compared(o), _correct(o), _training(o)]


def document(o: Outcome) -> dict[str, Any]:
  return {
    "ok": o.ok,
    "sources": {"reduced": "formula", "agreement": "measured", "training": "measured", "seconds": "measured"},
    "estimate": estimate_report.document(o.estimate),
    "verification": verification.document(o.comparison),
    "reduced": {"devices": o.reduced.strategy.devices, "product": o.reduced.strategy.product},
    "agreement": {dtype: dataclasses.asdict(a) for dtype, a in o.training.agreement.items()},
    "training": o.training.history,
    "seconds": o.seconds,
  }


def _plan(o: Outcome) -> Table:
  e, d = o.estimate, o.deployment
  rows = [
    ("devices", d.strategy.product, "document"),
    ("job", f"{d.job.kind}, {d.job.batch} sequences of {d.job.sequence_length} tokens", "document"),
    ("parameters", f"{e.parameters['total']:,} total, {e.parameters['active']:,} active", "formula"),
    ("memory", f"{units.bytes_(e.memory.total)} of {units.bytes_(d.cluster.memory_bytes)} a device", "formula"),
    ("step time", f"{units.seconds(e.time.total_s)}, bound by {e.time.bottleneck}, nothing overlapped", "formula"),
    ("throughput", f"{units.rate(e.tokens_per_s, 'tokens/s')}, {units.percent(e.mfu)} MFU", "formula"),
  ]
  return Table(f"1. The plan of {d.name}: {d.title}", ["what", "value", "source"], rows)


def _placement(o: Outcome) -> Table:
  rows = placement.placements(o.deployment)
  shown = [placement.cells(o.deployment, rows[rank]) for rank in SHOWN_RANKS]
  return Table(f"2. Placement ({placement.SOURCE})", placement.HEADERS, shown)


def _compared(o: Outcome) -> Table:
  table = verification.tables(o.comparison)[0]
  title = f"3. Compiled for {o.deployment.strategy.devices} devices and compared"
  return dataclasses.replace(table, title=title)


def _correct(o: Outcome) -> Table:
  rows = [
    (dtype, f"{found.loss:.1e}", f"{found.gradient:.1e}", f"{o.tolerance[dtype]:.0e}", "measured")
    for dtype, found in o.training.agreement.items()
  ]
  headers = ["dtype", "loss differs by", "gradients differ by", "allowed", "source"]
  return Table(f"4. Reduced copy, {o.reduced.strategy.product}, against one device", headers, rows)


def _training(o: Outcome) -> Table:
  rows = [
    (str(i + 1), f"{o.training.history[i]['loss']:.3f}", f"{o.training.history[i]['drop_rate']:.1%}", "measured")
    for i in SHOWN_STEPS
  ]
  return Table("5. The reduced copy trains on real text", ["step", "loss", "dropped", "source"], rows)
