"""Where a disagreement lies - formula, program or compiler - and which operations it is about."""

from typing import Any

from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.rules import FAULTS
from jaxmoe.report.table import Table
from jaxmoe.xla.compare import Check, Comparison
from jaxmoe.xla.triangulate import Item, added, evidence

PROGRAM = "program"  # source of what is counted on the program as jax traced it

_VERB = {"formula": "the formula has", "program": "the program has", "compiled": "the compiler has"}


def program_differs(c: Comparison) -> bool:
  """Whether the program's own numbers tell a reader something: a check fails, or they are others than the rest."""
  return any(not check.ok or not (check.planned and check.translated) for check in c.checks)


def counted(c: Comparison) -> int:
  """Checks of which the program says something."""
  return sum(check.program is not None for check in c.checks)


def faults(c: Comparison) -> Table | None:
  """A row for each check that fails and each collective that nobody planned; None if there are none."""
  rows = [
    (check.name, check.axis or "-", check.fault or "", _named(evidence(c, check), check.unit)) for check in _failed(c)
  ]
  rows += [(r.kind, label(r.axes) or "?", "compiler", _named(added(c, r), "bytes")) for r in c.unplanned]
  headers = ["what", "axis", "lies in", f"what each has (formula, {PROGRAM}, compiled)"]
  return Table("Where the disagreements lie", headers, rows) if rows else None


def reasons(c: Comparison) -> list[str]:
  """Why the checks that fail are said to lie where they do, each once."""
  found = {check.fault for check in _failed(c)}
  return [f"Lies in {fault}: {why}" for fault, why in FAULTS.items() if fault in found]


def fault_document(c: Comparison, check: Check) -> dict[str, Any]:
  """Of any check: where it lies and which operations it is about, None and empty if it holds."""
  items = [] if check.ok else evidence(c, check)
  return {
    "program_source": PROGRAM,
    "lies_in": check.fault,
    "lies_in_why": FAULTS[check.fault] if check.fault else None,
    "operations": [
      {"side": i.side, "name": i.name, "scope": i.scope, "line": i.line, "amount": i.total} for i in items
    ],
  }


def summary(c: Comparison) -> str:
  """`2 in formula or program, 1 in compiler`; empty where nothing fails."""
  found = [str(check.fault) for check in _failed(c)] + ["compiler"] * len(c.unplanned)
  return ", ".join(f"{found.count(fault)} in {fault}" for fault in dict.fromkeys(found))


def _failed(c: Comparison) -> list[Check]:
  return [check for check in c.checks if not check.ok]


def _named(items: list[Item], unit: str) -> str:
  sides = {side: [item for item in items if item.side == side] for side in _VERB}
  said = [f"{_VERB[side]} {', '.join(_one(item, unit) for item in mine)}" for side, mine in sides.items() if mine]
  return "; ".join(said) or "-"


def _one(item: Item, unit: str) -> str:
  scope, line = f" in {item.scope}" if item.scope else "", f" at {item.line}" if item.line else ""
  return f"{item.name}{scope}{line} ({units.quantity(item.total, unit)})"
