"""Sections of a page that set the compiler's numbers beside the formulas'."""

import dataclasses
from collections.abc import Iterable

from jaxmoe.cost.estimate import SOURCE, Estimate, collectives_by_axis
from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.html_parts import (
  Number,
  Section,
  bars,
  of_bytes,
  of_count,
  of_flops,
  of_seconds,
  quantity,
)
from jaxmoe.report.rewrites import OVERLAP, OVERLAP_IS, overlap, unplanned
from jaxmoe.report.rules import REWRITES, RULES, allowed
from jaxmoe.report.table import Table
from jaxmoe.report.triangulation import PROGRAM, faults, reasons
from jaxmoe.xla.compare import Check, Comparison, Informational
from jaxmoe.xla.totals import CollectiveTraffic

_SILENT = "No device speaks to another."
COMPILED, MEASURED = "compiled", "measured"


def checks(c: Comparison) -> Section:
  """Every row that is judged."""
  rows = [
    (
      check.name,
      check.axis or "-",
      quantity(check.predicted, check.unit),
      "-" if check.program is None else quantity(check.program, check.unit),
      quantity(check.compiled, check.unit),
      _error(check),
      allowed(check),
      "ok" if check.ok else "FAILS",
    )
    for check in c.checks
  ]
  headers = ["what", "axis", f"predicted ({SOURCE})", PROGRAM, COMPILED, "error", "allowed", "verdict"]
  failed = sum(not check.ok for check in c.checks)
  text = f"{len(rows) - failed} of {len(rows)} hold. Bytes and FLOPs of one device in one step."
  why = [(rule.what, allowed(rule), rule.reason) for rule in RULES]
  tables = [
    Table("Predicted and compiled", headers, rows),
    *([where] if (where := faults(c)) else []),
    Table("Why each may differ so far", ["what", "allowed", "why"], why),
    _informational(c),
  ]
  return Section("checks", "Checks", [text, *reasons(c)], tables=tables)


def _informational(c: Comparison) -> Table:
  rows = [
    (
      row.name,
      "-" if row.predicted is None else quantity(row.predicted, row.unit),
      quantity(row.compiled, row.unit),
      "-" if row.predicted is None else _error(row),
      row.reason,
    )
    for row in c.informational
  ]
  return Table("Shown, not judged", ["what", f"predicted ({SOURCE})", COMPILED, "difference", "why"], rows)


def _error(row: Check | Informational) -> str:
  if row.relative_error is None:
    return "not predicted"
  return Number(units.difference(row.relative_error, 2), row.relative_error)


def communication(c: Comparison, e: Estimate) -> Section:
  """Payload over each group of axes."""
  judged = [check for check in c.checks if check.axis]
  axes = sorted({check.axis for check in judged})
  groups = [
    (axis, [(side, of_bytes(sum(sizes)), source) for side, source, sizes in _sides(judged, axis)]) for axis in axes
  ]
  executed = {(r.kind, label(r.axes) or "?"): r.actual for r in c.rewrites}
  seconds = {(cost["kind"], label(cost["axes"])): cost["s"] for cost in collectives_by_axis(e)}
  rows = [
    (
      check.axis,
      check.name,
      of_bytes(check.predicted),
      of_bytes(check.compiled),
      *_executed(executed.get((check.name, check.axis))),
      of_seconds(seconds[check.name, check.axis]) if (check.name, check.axis) in seconds else "-",
    )
    for check in sorted(judged, key=lambda check: check.axis)
  ]
  headers = ["axis", "collective", f"predicted ({SOURCE})", "partitioned (compiled)", "executed (compiled)"]
  headers += ["times (compiled)", f"{OVERLAP} (compiled)", f"time ({SOURCE})"]
  return Section(
    "communication",
    "Communication",
    [f"Payload of one device in one step over each group of mesh axes. {OVERLAP_IS}" if axes else _SILENT],
    [bars("Bytes by axis", groups)] if groups else [],
    [Table("Collectives", headers, rows)] if rows else [],
  )


def _executed(found: CollectiveTraffic | None) -> tuple[str, str, str]:
  """Bytes, times and overlap; a collective over several TPU slices is executed as others, which the rewrites list."""
  if found is None:
    return "taken apart", "-", "-"
  return of_bytes(found.payload_bytes), of_count(found.operations), overlap(found)


def _sides(judged: list[Check], axis: str) -> Iterable[tuple[str, str, list[float]]]:
  here = [check for check in judged if check.axis == axis]
  yield "predicted", SOURCE, [check.predicted for check in here]
  yield COMPILED, COMPILED, [check.compiled for check in here]


def flops(c: Comparison, e: Estimate) -> Section:
  """What is executed, what the compiler counts, and what the model itself needs."""
  useful = {**dataclasses.asdict(e.useful), "all": c.useful_flops}
  groups, rows = [], []
  for check in (check for check in c.checks if check.unit == "FLOPs"):
    part = check.name.partition(" matmuls")[0]
    needed = of_flops(useful[part]) if part in useful and check.name.endswith("matmuls") else None
    executed, found = of_flops(check.predicted), of_flops(check.compiled)
    measures = [("executed", executed, SOURCE), ("executed", found, COMPILED)]
    groups.append((check.name, [*measures, *([("useful", needed, SOURCE)] if needed is not None else [])]))
    rows.append((check.name, executed, found, "-" if needed is None else needed))
  share = units.percent(c.useful_flops / c.compiled.executed_flops) if c.compiled.flops else "-"
  rest = "the rest is recomputation, padding, masked scores and idle ticks"
  text = f"{share} of the executed FLOPs ({COMPILED}) are useful ({SOURCE}); {rest}."
  headers = ["part", f"executed ({SOURCE})", "executed (compiled)", f"useful ({SOURCE})"]
  return Section(
    "flops",
    "FLOPs by part",
    [text],
    [bars("One device, one step", groups)],
    [Table("Matmul FLOPs", headers, rows)],
  )


def notes(c: Comparison) -> Section:
  """What a reader should know before trusting the rest."""
  warnings = [*c.deployment.warnings, *c.compiled.notes]
  warnings += [f"Check fails: {check.name} {check.axis}".rstrip() for check in c.checks if not check.ok]
  warnings += [f"Unplanned collective: {unplanned(r)}" for r in c.unplanned]
  if not c.fit.ok:
    warnings.append(f"Does not fit: {units.bytes_(c.fit.excess_bytes)} too much, most of it {c.fit.largest}")
  rows = [
    (
      r.kind,
      label(r.axes) or "?",
      of_bytes(r.planned.payload_bytes),
      of_bytes(r.actual.payload_bytes),
      ", ".join(r.names),
      "; ".join(REWRITES[name] for name in r.names),
    )
    for r in c.rewrites
  ]
  headers = ["collective", "axis", "partitioned (compiled)", "executed (compiled)", "rewrite", "meaning"]
  return Section(
    "notes",
    "Warnings and rewrites",
    warnings or ["No warnings."],
    tables=[Table("What the backend made of the collectives", headers, rows)] if rows else [],
  )


def versions(c: Comparison) -> Section:
  """What made these numbers, and how long it took."""
  made = [(name, version, COMPILED) for name, version in c.compiled.versions.items()]
  made += [(name, setting, COMPILED) for name, setting in c.compiled.settings.items()]
  took = [(f"{phase}, time", of_seconds(s), MEASURED) for phase, s in c.compiled.seconds.items()]
  size = [("instructions", of_count(c.compiled.instructions), COMPILED)]
  rows = [("platform", c.compiled.platform, COMPILED), *made, *size, *took]
  text = ["The compile is an earlier one's, kept."] if c.cached else []
  return Section(
    "versions", "Versions", text, tables=[Table(f"Made for {c.target} by", ["what", "value", "source"], rows)]
  )
