"""A comparison as tables and as one JSON document."""

import dataclasses
import textwrap
from typing import Any

from jaxmoe.cost.memory import memory
from jaxmoe.report import rewrites, temporaries, units
from jaxmoe.report.rewrites import collective_documents, rewrite_document
from jaxmoe.report.rules import allowed
from jaxmoe.report.step_time import step_times
from jaxmoe.report.table import Table
from jaxmoe.report.triangulation import PROGRAM, counted, fault_document, faults, program_differs, summary
from jaxmoe.xla.compare import Check, Comparison, Informational
from jaxmoe.xla.fit import TOTAL

# Where each number of the JSON document comes from, by its key.
SOURCES = {
  "predicted": "formula",
  "program": PROGRAM,
  "compiled": "compiled",
  "rewrites": "compiled",
  "collectives": "compiled",
  "flops.executed": "compiled",
  "flops.useful": "formula",
  "step_s.predicted": "formula",
  "step_s.compiled": "compiled",
  "memory_bytes": "compiled",
  "temporaries.predicted": "formula",
  "temporaries.compiled": "compiled",
  "temporaries.buffers": "compiled",
  "class_bytes": "compiled",
  "capacity_bytes": "document",
  "predicted_bytes": "formula",
  "padding_bytes": "compiled",
  "seconds": "measured",
  "instructions": "compiled",
  "compiler_peak_bytes": "measured",
}

_WIDEST = 64  # characters of a value in a line; a longer one would push its table's last column far right
_TOGETHER = "\N{NO-BREAK SPACE}"


def verdict(c: Comparison) -> str:
  """Agreement and room first, then what was compiled."""
  failed, count = sum(not check.ok for check in c.checks), len(c.checks)
  what = f"{c.deployment.name} on {c.target}, {c.deployment.strategy.product}"
  if not c.agrees:
    wrong = f"{failed} of {count} checks fail, {len(c.unplanned)} collectives are unplanned ({summary(c)})"
    return f"DISAGREES: {what}: {wrong}" + ("" if c.fit.ok else f"; does not fit: {_lacking(c)}")
  held = f"all {count} checks hold, every collective is planned"
  return f"agrees: {what}: {held}{warning(c)}" if c.fit.ok else f"does not fit: {what}: {_lacking(c)}; {held}"


def _lacking(c: Comparison) -> str:
  """By how much a device is too small, and for what."""
  needed, room, more = map(units.bytes_, (c.fit.needed_bytes, c.fit.capacity_bytes, c.fit.excess_bytes))
  largest = f"{c.fit.largest}, {units.bytes_(c.fit.class_bytes[c.fit.largest])}"
  return f"a device must hold at least {needed}, {more} more than its {room} (largest: {largest})"


def warning(c: Comparison) -> str:
  """Where what was compiled has room and the plan has none, for on fake CPU devices no temporaries count."""
  predicted = memory(c.deployment).total
  if not c.fit.ok or predicted <= c.fit.capacity_bytes:
    return ""
  room = units.bytes_(c.fit.capacity_bytes)
  return f"; BUT by the formula a device must hold {units.bytes_(predicted)}, more than its {room}"


def tables(c: Comparison) -> list[Table]:
  where = faults(c)
  found = [_checks(c), *([where] if where else []), _informational(c), _room(c)]
  return [*found, *temporaries.tables(c), rewrites.table(c), _shown(c)]


def document(c: Comparison) -> dict[str, Any]:
  """Bytes and FLOPs of one device in one step; `step_s.compiled` is None where the compiler gives no time."""
  predicted, compiled = step_times(c.deployment, c.compiled)
  return {
    "deployment": c.deployment.name,
    "target": c.target,
    "devices": c.deployment.strategy.devices,
    "product": c.deployment.strategy.product,
    "ok": c.ok,
    "agrees": c.agrees,
    "fits": c.fit.ok,
    "sources": SOURCES,
    "checks": [_row_document(check) | {"ok": check.ok} | fault_document(c, check) for check in c.checks],
    "informational": [_row_document(row) for row in c.informational],
    "rewrites": [rewrite_document(r) for r in c.rewrites],
    "collectives": collective_documents(c),
    "step_s": {"predicted": predicted.seconds, "compiled": compiled.seconds},
    "flops": {"executed": c.compiled.executed_flops, "useful": c.useful_flops},
    "memory_bytes": {
      **dataclasses.asdict(c.compiled.memory),
      "total_bytes": c.compiled.memory.total_bytes,
      "needed_bytes": c.fit.needed_bytes,
      "needed_is": c.fit.counted,
    },
    "temporaries": temporaries.document(c),
    "capacity_bytes": c.fit.capacity_bytes,
    "capacity_of": c.fit.device,
    "predicted_bytes": memory(c.deployment).total,
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
  """The program's own column only where it tells something beside the other two."""
  differs = program_differs(c)
  rows = [
    (
      check.name,
      check.axis or "-",
      units.quantity(check.predicted, check.unit),
      *([_of_program(check)] if differs else []),
      units.quantity(check.compiled, check.unit),
      _error(check),
      allowed(check),
      "ok" if check.ok else "FAILS",
    )
    for check in c.checks
  ]
  own = [PROGRAM] if differs else []
  headers = ["what", "axis", "predicted (formula)", *own, "compiled", "error", "allowed", "verdict"]
  same = "" if differs else f"; {counted(c)} of {len(rows)} counted on the traced program too, and the same"
  return Table(f"Predicted and compiled, one device, one step{same}", headers, rows)


def _of_program(check: Check) -> str:
  return "-" if check.program is None else units.quantity(check.program, check.unit)


def _error(row: Check | Informational) -> str:
  if row.predicted is None:
    return "-"
  return "not predicted" if row.relative_error is None else units.difference(row.relative_error, 2)


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
  predicted = memory(c.deployment).total
  planned = "fits" if predicted <= fit.capacity_bytes else "DOES NOT FIT"
  rows = [
    ("predicted, with temporaries", units.bytes_(predicted), "formula", planned),
    (f"at least: {fit.counted}", units.bytes_(fit.needed_bytes), "compiled", verdict),
    (f"largest class: {fit.largest}", units.bytes_(fit.class_bytes[fit.largest]), "compiled", ""),
    (_capacity(c), units.bytes_(fit.capacity_bytes), "document", ""),
  ]
  return Table("Room on one device", ["what", "size", "source", "verdict"], rows)


def _capacity(c: Comparison) -> str:
  planned = c.deployment.cluster.name
  return "capacity" if c.fit.device == planned else f"capacity of {c.fit.device}, less than of {planned}"


def _shown(c: Comparison) -> Table:
  found, padding = c.compiled.memory, c.compiled.argument_padding_bytes
  useful = units.percent(c.useful_flops / c.compiled.executed_flops)
  rows = [
    ("temp memory", units.bytes_(found.temp_bytes), "compiled; judged by whether it fits, and from below"),
    (TOTAL, units.bytes_(found.total_bytes), f"compiled; {_caution(c)}"),
    ("padding of arguments", units.bytes_(padding), "compiled; left out of the checks"),
    ("useful FLOPs", units.flops(c.useful_flops), f"formula; {useful} of executed"),
    *(said.row for said in step_times(c.deployment, c.compiled)),
    ("compile time", units.seconds(c.compiled.seconds["compile"]), "measured; cached" if c.cached else "measured"),
    ("compiler's memory", units.bytes_(c.compiled.peak_bytes) if c.compiled.peak_bytes else "-", "measured, at most"),
    *_folded("versions", ", ".join(f"{name}{_TOGETHER}{version}" for name, version in c.compiled.versions.items())),
    *(row for name, value in c.compiled.settings.items() for row in _folded(name, value)),
    *(row for note in c.compiled.notes for row in _folded("note", note)),
  ]
  return Table("Shown, not judged", ["what", "value", "source"], rows)


def _folded(name: str, text: str) -> list[tuple[str, str, str]]:
  """A row whose text is long, as several."""
  lines = textwrap.wrap(text, _WIDEST, break_long_words=False, break_on_hyphens=False) or [""]
  return [("" if number else name, line.replace(_TOGETHER, " "), "") for number, line in enumerate(lines)]


def _caution(c: Comparison) -> str:
  """What to know about a target's memory figures."""
  widens = c.compiled.platform == "cpu"
  return "the CPU backend widens 8 and 16 bits to 32" if widens else "as the compiler allocates it"
