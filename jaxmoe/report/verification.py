"""A comparison as tables and as one JSON document."""

import dataclasses
from typing import Any

from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.table import Table
from jaxmoe.xla.compare import Check, Comparison, Informational
from jaxmoe.xla.fit import TOTAL

# Where each number of the JSON document comes from, by its key.
SOURCES = {
  "predicted": "formula",
  "compiled": "compiled",
  "rewrites": "compiled",
  "flops.executed": "compiled",
  "flops.useful": "formula",
  "memory_bytes": "compiled",
  "class_bytes": "compiled",
  "capacity_bytes": "document",
  "padding_bytes": "compiled",
  "seconds": "measured",
  "instructions": "compiled",
  "compiler_peak_bytes": "measured",
}


def verdict(c: Comparison) -> str:
  """Agreement and room first, then what was compiled."""
  failed, count = sum(not check.ok for check in c.checks), len(c.checks)
  what = f"{c.deployment.name} on {c.target}, {c.deployment.strategy.product}"
  if not c.agrees:
    faults = f"{failed} of {count} checks fail, {len(c.unplanned)} collectives are unplanned"
    return f"DISAGREES: {what}: {faults}" + ("" if c.fit.ok else f"; does not fit: {_lacking(c)}")
  unread = c.compiled.optimised is None
  held = f"all {count} checks hold, " + ("collectives as partitioned" if unread else "every collective is planned")
  return f"agrees: {what}: {held}" if c.fit.ok else f"does not fit: {what}: {_lacking(c)}; {held}"


def _lacking(c: Comparison) -> str:
  """By how much a device is too small, and for what."""
  needed, room, more = map(units.bytes_, (c.fit.needed_bytes, c.fit.capacity_bytes, c.fit.excess_bytes))
  largest = f"{c.fit.largest}, {units.bytes_(c.fit.class_bytes[c.fit.largest])}"
  return f"a device must hold at least {needed}, {more} more than its {room} (largest: {largest})"


def tables(c: Comparison) -> list[Table]:
  return [_checks(c), _informational(c), _room(c), _rewrites(c), _shown(c)]


def document(c: Comparison) -> dict[str, Any]:
  """Bytes and FLOPs of one device in one step."""
  return {
    "deployment": c.deployment.name,
    "target": c.target,
    "devices": c.deployment.strategy.devices,
    "product": c.deployment.strategy.product,
    "ok": c.ok,
    "agrees": c.agrees,
    "fits": c.fit.ok,
    "sources": SOURCES,
    "checks": [_row_document(check) | {"ok": check.ok} for check in c.checks],
    "informational": [_row_document(row) for row in c.informational],
    "rewrites": [
      {
        "kind": r.kind,
        "axis": label(r.axes) or "?",
        "rewrites": r.names,
        "planned_bytes": r.planned.payload_bytes,
        "executed_bytes": r.actual.payload_bytes,
        "ok": r.planned_for,
      }
      for r in c.rewrites
    ],
    "flops": {"executed": c.compiled.flops, "useful": c.useful_flops},
    "memory_bytes": {
      **dataclasses.asdict(c.compiled.memory),
      "total_bytes": c.compiled.memory.total_bytes,
      "needed_bytes": c.fit.needed_bytes,
      "needed_is": c.fit.counted,
    },
    "capacity_bytes": c.fit.capacity_bytes,
    "class_bytes": c.fit.class_bytes,
    "largest_class": c.fit.largest,
    "padding_bytes": {"arguments": c.compiled.argument_padding_bytes, "aliases": c.compiled.alias_padding_bytes},
    "seconds": c.compiled.seconds,
    "instructions": c.compiled.instructions,
    "versions": c.compiled.versions,
    "settings": c.compiled.settings,
    "notes": c.compiled.notes,
    "compiler_peak_bytes": c.compiled.peak_bytes,
    "cached": c.cached,
  }


def _row_document(row: Check | Informational) -> dict[str, Any]:
  sources = {"predicted_source": "formula", "compiled_source": "compiled"}
  return {**dataclasses.asdict(row), "relative_error": row.relative_error, **sources}


def _checks(c: Comparison) -> Table:
  rows = [
    (
      check.name,
      check.axis or "-",
      units.quantity(check.predicted, check.unit),
      units.quantity(check.compiled, check.unit),
      _error(check),
      _allowed(check),
      "ok" if check.ok else "FAILS",
    )
    for check in c.checks
  ]
  headers = ["what", "axis", "predicted (formula)", "compiled", "error", "allowed", "verdict"]
  return Table("Predicted and compiled, one device, one step", headers, rows)


def _allowed(check: Check) -> str:
  if check.at_least:
    return "more"
  return "exact" if check.tolerance == 0 else units.percent(check.tolerance)


def _error(row: Check | Informational) -> str:
  if row.predicted is None:
    return "-"
  if row.relative_error is None:
    return "not predicted"
  return f"{100 * row.relative_error:+.2f} %" if row.relative_error else "0"


def _informational(c: Comparison) -> Table:
  rows = [
    (
      row.name,
      "-" if row.predicted is None else units.quantity(row.predicted, row.unit),
      units.quantity(row.compiled, row.unit),
      _error(row),
      row.reason,
    )
    for row in c.informational
  ]
  headers = ["what", "predicted (formula)", "compiled", "difference", "why it is not judged"]
  return Table("Memory traffic and work beside matmuls, one device, one step", headers, rows)


def _room(c: Comparison) -> Table:
  fit = c.fit
  verdict = "fits" if fit.ok else "DOES NOT FIT"
  rows = [
    (f"at least: {fit.counted}", units.bytes_(fit.needed_bytes), "compiled", verdict),
    (f"largest class: {fit.largest}", units.bytes_(fit.class_bytes[fit.largest]), "compiled", ""),
    ("capacity", units.bytes_(fit.capacity_bytes), "document", ""),
  ]
  return Table("Room on one device", ["what", "size", "source", "verdict"], rows)


def _rewrites(c: Comparison) -> Table:
  rows = [
    (
      r.kind,
      label(r.axes) or "?",
      units.bytes_(r.planned.payload_bytes),
      units.bytes_(r.actual.payload_bytes),
      ", ".join(r.names),
    )
    for r in c.rewrites
  ]
  headers = ["collective", "axis", "partitioned", "optimised", "explained by"]
  return Table("What the backend made of the collectives (compiled)", headers, rows)


def _shown(c: Comparison) -> Table:
  memory, padding = c.compiled.memory, c.compiled.argument_padding_bytes
  useful = units.percent(c.useful_flops / c.compiled.flops)
  rows = [
    ("temp memory", units.bytes_(memory.temp_bytes), "compiled; the backend's own affair, not predicted"),
    (TOTAL, units.bytes_(memory.total_bytes), f"compiled; {_caution(c)}"),
    ("padding of arguments", units.bytes_(padding), "compiled; left out of the checks"),
    ("useful FLOPs", units.flops(c.useful_flops), f"formula; {useful} of executed"),
    ("compile time", units.seconds(c.compiled.seconds["compile"]), "measured; cached" if c.cached else "measured"),
    ("compiler's memory", units.bytes_(c.compiled.peak_bytes) if c.compiled.peak_bytes else "-", "measured, at most"),
    ("versions", ", ".join(f"{k} {v}" for k, v in c.compiled.versions.items()), ""),
    *((name, value, "") for name, value in c.compiled.settings.items()),
    *(("note", note, "") for note in c.compiled.notes),
  ]
  return Table("Shown, not judged", ["what", "value", "source"], rows)


def _caution(c: Comparison) -> str:
  """What to know about a target's memory figures."""
  widens = c.compiled.platform == "cpu"
  return "the CPU backend widens 8 and 16 bits to 32" if widens else "as the compiler allocates it"
