"""A comparison as tables and as one JSON document."""

import dataclasses
from typing import Any

from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.table import Table
from jaxmoe.xla.compare import Check, Comparison


def verdict(c: Comparison) -> str:
  """Agreement first, then what was compiled."""
  failed = sum(not check.ok for check in c.checks)
  what = f"{c.deployment.name} on {c.target}, {c.deployment.strategy.product}"
  if c.ok:
    return f"agrees: {what}: all {len(c.checks)} checks hold, every collective is planned"
  return f"DISAGREES: {what}: {failed} of {len(c.checks)} checks fail, {len(c.unplanned)} collectives are unplanned"


def tables(c: Comparison) -> list[Table]:
  return [_checks(c), _rewrites(c), _shown(c)]


def document(c: Comparison) -> dict[str, Any]:
  """Bytes and FLOPs of one device in one step."""
  return {
    "deployment": c.deployment.name,
    "target": c.target,
    "devices": c.deployment.strategy.devices,
    "product": c.deployment.strategy.product,
    "ok": c.ok,
    "checks": [_check_document(check) for check in c.checks],
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
    "memory_bytes": {**dataclasses.asdict(c.compiled.memory), "total_bytes": c.compiled.memory.total_bytes},
    "padding_bytes": {"arguments": c.compiled.argument_padding_bytes, "aliases": c.compiled.alias_padding_bytes},
    "seconds": c.compiled.seconds,
    "instructions": c.compiled.instructions,
    "versions": c.compiled.versions,
  }


def _check_document(check: Check) -> dict[str, Any]:
  fields = dataclasses.asdict(check)
  sources = {"predicted_source": "formula", "compiled_source": "compiled"}
  return {**fields, "relative_error": check.relative_error, "ok": check.ok, **sources}


def _checks(c: Comparison) -> Table:
  rows = [
    (
      check.name,
      check.axis or "-",
      units.quantity(check.predicted, check.unit),
      units.quantity(check.compiled, check.unit),
      _error(check),
      "exact" if check.tolerance == 0 else units.percent(check.tolerance),
      "ok" if check.ok else "FAILS",
    )
    for check in c.checks
  ]
  headers = ["what", "axis", "predicted (formula)", "compiled", "error", "allowed", "verdict"]
  return Table("Predicted and compiled, one device, one step", headers, rows)


def _error(check: Check) -> str:
  if check.relative_error is None:
    return "not predicted"
  return f"{100 * check.relative_error:+.2f} %" if check.relative_error else "0"


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
    ("temp memory", units.bytes_(memory.temp_bytes), "compiled; the backend's own affair, not judged"),
    ("argument + output + temp - alias", units.bytes_(memory.total_bytes), f"compiled; {_caution(c.target)}"),
    ("padding of arguments", units.bytes_(padding), "compiled; left out of the checks"),
    ("useful FLOPs", units.flops(c.useful_flops), f"formula; {useful} of executed"),
    ("compile time", units.seconds(c.compiled.seconds["compile"]), "measured"),
    ("versions", ", ".join(f"{k} {v}" for k, v in c.compiled.versions.items()), ""),
  ]
  return Table("Shown, not judged", ["what", "value", "source"], rows)


def _caution(target: str) -> str:
  """What to know about a target's memory figures."""
  return "the CPU backend widens 8 and 16 bits to 32" if target.startswith("cpu") else "as the compiler allocates it"
