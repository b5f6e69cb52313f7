"""Section of a page for a step that ran: prediction, compiler and clock side by side."""

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.report import units
from jaxmoe.report.html_parts import Number, Section, of_bytes, of_count, of_flops, of_rate, of_seconds, of_share
from jaxmoe.report.measured import MEASURED, verdict
from jaxmoe.report.table import Table
from jaxmoe.xla.compare import Comparison
from jaxmoe.xla.measured import Measured

COMPILED = "compiled"

type _Row = tuple[str, str, str, str]


def measured(c: Comparison, e: Estimate | None, m: Measured) -> Section:
  """What each of the three says; `-` where one says nothing. Without `e` the formulas have no time."""
  headers = ["what", f"predicted ({SOURCE})", COMPILED, MEASURED]
  rows = [_time(c, e, m), *_rates(c, e, m), *_shares(e, m), *_counts(c, e, m)]
  predicted_for = f"The prediction is for {c.deployment.cluster.name}, the clock ran on {m.devices} {m.device}."
  return Section(
    "measured",
    "Measured",
    [verdict(c.deployment, m) + ".", predicted_for],
    tables=[Table("Predicted, compiled and measured", headers, rows), _steps(m)],
  )


def _time(c: Comparison, e: Estimate | None, m: Measured) -> _Row:
  optimal = c.compiled.optimal_s
  predicted = "-" if e is None else of_seconds(e.time.total_s)
  return ("one step", predicted, "-" if optimal is None else of_seconds(optimal), of_seconds(m.median_s))


def _rates(c: Comparison, e: Estimate | None, m: Measured) -> list[_Row]:
  tokens = c.deployment.job.batch * c.deployment.job.query_length
  useful = of_rate(c.useful_flops / m.median_s, "FLOP/s")
  return [
    (
      "tokens",
      "-" if e is None else of_rate(e.tokens_per_s, "tokens/s"),
      "-",
      of_rate(tokens / m.median_s, "tokens/s"),
    ),
    (
      "useful matmuls of a device",
      "-" if e is None else of_rate(e.useful.total / e.time.total_s, "FLOP/s"),
      "-",
      useful,
    ),
  ]


def _shares(e: Estimate | None, m: Measured) -> list[_Row]:
  """The pipeline's idle ticks compute on what they have, so on a clock they are work."""
  predicted: dict[str, Number] = {}
  if e is not None:
    total = e.time.total_s
    predicted["compute"] = of_share((e.time.local_s + e.time.bubble) / total)
    predicted["collective"] = of_share(e.time.network_s / total)
  names = {
    "compute": "share of computing, idle ticks included",
    "collective": "share of collectives",
    "idle": "share of waiting",
  }
  return [(names[kind], predicted.get(kind, "-"), "-", of_share(share)) for kind, share in m.shares.items()]


def _counts(c: Comparison, e: Estimate | None, m: Measured) -> list[_Row]:
  matmuls = next(check for check in c.checks if check.name == "all matmuls")
  held = "-" if e is None else of_bytes(e.memory.total)
  peak = "-" if m.peak_bytes is None else of_bytes(m.peak_bytes)
  return [
    ("memory of a device", held, of_bytes(c.compiled.memory.total_bytes), peak),
    ("matmuls of a device", of_flops(matmuls.predicted), of_flops(matmuls.compiled), "-"),
  ]


def _steps(m: Measured) -> Table:
  rows = [
    ("steps", of_count(len(m.seconds))),
    ("steps before the first timed one", of_count(m.warm_up)),
    ("fastest step", of_seconds(min(m.seconds))),
    ("slowest step", of_seconds(max(m.seconds))),
    ("distance of the quartiles", of_share(m.spread)),
    ("devices", f"{units.devices(m.devices)}: {m.device} ({m.platform})"),
    ("versions", ", ".join(f"{name} {version}" for name, version in m.versions.items())),
  ]
  return Table("The clock", ["what", MEASURED], rows)
