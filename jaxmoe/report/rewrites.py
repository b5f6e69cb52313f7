"""What a backend made of the collectives: each rewrite by name, and what the asynchronous ones overlap."""

from typing import Any

from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.table import Table
from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.compare import Comparison
from jaxmoe.xla.rewrites import Rewrite
from jaxmoe.xla.totals import CollectiveTraffic

OVERLAP = "overlap"
OVERLAP_IS = (
  "Behind an asynchronous collective lies the work that the module's schedule puts between its start and its end:"
  " how much can hide it, not how much does."
)


def table(c: Comparison) -> Table:
  rows = [
    (
      r.kind,
      label(r.axes) or "?",
      units.bytes_(r.planned.payload_bytes),
      units.bytes_(r.actual.payload_bytes),
      overlap(r.actual),
      ", ".join(r.names) + _where(r),
    )
    for r in c.rewrites
  ]
  headers = ["collective", "axis", "partitioned", "optimised", OVERLAP, "explained by"]
  return Table("What the backend made of the collectives (compiled)", headers, rows)


def overlap(found: CollectiveTraffic) -> str:
  """`synchronous`; `behind 12.3 GFLOP, 4 of 6 asynchronous`; `behind 1.2 MiB of memory traffic`."""
  if not found.operations:
    return "-"
  if not found.asynchronous:
    return "synchronous"
  if found.unplaced == found.asynchronous:
    return "asynchronous, over what is not said"
  moved = f"{units.bytes_(found.hidden_bytes)} of memory traffic"
  behind = units.flops(found.hidden_flops) if found.hidden_flops else moved
  some = f", {found.asynchronous:g} of {found.operations:g} asynchronous" * (found.asynchronous < found.operations)
  return f"behind {behind}{some}" + f", of {found.unplaced:g} not said" * (found.unplaced > 0)


def unplanned(r: Rewrite) -> str:
  """`all-reduce over data (step.py:12)`: a collective that nobody planned, and where the program asks for it."""
  return f"{r.kind} over {label(r.axes) or '?'}{_where(r)}"


def _where(r: Rewrite) -> str:
  """Lines of the program, as the compiler keeps them; only of what needs looking for."""
  if r.planned_for:
    return ""
  return f" ({', '.join(r.actual.sources) or 'the compiler names no line'})"


def rewrite_document(r: Rewrite) -> dict[str, Any]:
  """The row of one (kind, axes), for JSON."""
  found = r.actual
  return {
    "kind": r.kind,
    "axis": label(r.axes) or "?",
    "rewrites": r.names,
    "planned_bytes": r.planned.payload_bytes,
    "executed_bytes": found.payload_bytes,
    "operations": {"planned": r.planned.operations, "executed": found.operations, "asynchronous": found.asynchronous},
    "overlap": _overlap_document(found),
    "ok": r.planned_for,
    "lies_in": None if r.planned_for else "compiler",
    "lines": found.sources,
  }


def _overlap_document(found: CollectiveTraffic) -> dict[str, float] | None:
  """None where nothing is asynchronous; `not_said` counts executions of which the module does not say."""
  if not found.asynchronous:
    return None
  return {"flops": found.hidden_flops, "moved_bytes": found.hidden_bytes, "not_said": found.unplaced}


def collective_documents(c: Comparison) -> list[dict[str, Any]]:
  """Every collective that the optimised module executes, for JSON."""
  names = {(r.kind, r.axes): r.names for r in c.rewrites}
  return [_document(one) | {"rewrites": names[one.kind, one.axes]} for one in c.compiled.optimised]


def _document(one: Collective) -> dict[str, Any]:
  behind = one.overlap and {"flops": one.overlap.flops, "moved_bytes": one.overlap.moved_bytes}
  return {
    "name": one.name,
    "kind": one.kind,
    "axis": label(one.axes) or "?",
    "group_size": one.group_size,
    "dtype": one.dtype,
    "packs": one.packs or None,
    "payload_bytes": one.payload_bytes,
    "elements": one.elements,
    "padding": one.padding,
    "count": one.count,
    "bound": one.bound,
    "between_slices": one.between_slices,
    "asynchronous": one.asynchronous,
    "overlap": behind,
    "scope": one.op_name,
    "line": one.source or None,
  }
