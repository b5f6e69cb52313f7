"""A compiled step's temporary memory by class, and its largest buffers: tables, and a part of the JSON document."""

from collections.abc import Mapping
from typing import Any

from jaxmoe.cost.memory import memory
from jaxmoe.report import units
from jaxmoe.report.table import Table
from jaxmoe.xla.attribution import CLASSES, DISPATCH, GRADIENTS, KEPT, LOGITS, SCORES, WEIGHTS, WORKING
from jaxmoe.xla.compare import Comparison
from jaxmoe.xla.temporaries import GAPS, LARGE, REST, Temporaries

ACTIVATIONS = "activations"
STACKED = "stacked"  # of both gradients and activations, which the compiler's side does not tell apart
WHOLE = "all temporaries"
# What the formulas give as one number -> the classes of buffers that it stands for.
_PREDICTED = {
  "gradients": (GRADIENTS,),
  ACTIVATIONS: (KEPT, WORKING, SCORES, LOGITS),
  "dispatch": (DISPATCH,),
  "gathered": (WEIGHTS,),
}
_SHOWN = 12
_HEADERS = ["class", "predicted (formula)", "compiled", "error", "of all"]


def tables(c: Comparison) -> list[Table]:
  """Nothing where the compiler does not show its buffers."""
  found = c.compiled.temporaries
  return [] if found is None else [_classes(c, found), _largest(found)]


def document(c: Comparison) -> dict[str, Any] | None:
  """Bytes of one device when most are needed; None where the compiler does not show its buffers."""
  found = c.compiled.temporaries
  if found is None:
    return None
  return {
    "predicted": predicted(c),
    "compiled": found.class_bytes,
    "comparison": [
      {"class": name, "predicted": expected, "compiled": size, "relative_error": _relative(expected, size)}
      for name, expected, size in _rows(c, found)
    ],
    "judged": False,
    "on_chip_bytes": found.on_chip_bytes,
    "unattributed": len(found.unknown),
    "listed_from_share": LARGE,
    "buffers": [
      {
        "class": one.kind,
        "bytes": one.bytes,
        "at_peak": one.at_peak,
        "instruction": one.instruction,
        "shape": one.shape,
        "op_name": one.op_name,
        "source": one.source,
      }
      for one in found.large
    ],
  }


def predicted(c: Comparison) -> dict[str, int]:
  """What the formulas expect beside arguments and results."""
  whole = memory(c.deployment)
  sizes = {name: int(getattr(whole, name)) for name in (*_PREDICTED, STACKED)}
  return {**sizes, WHOLE: sum(sizes.values())}


def _rows(c: Comparison, found: Temporaries) -> list[tuple[str, int | None, int | None]]:
  """Classes together that one formula stands for, those that no formula has, and the sum."""
  expected, sizes = predicted(c), found.class_bytes
  rows: list[tuple[str, int | None, int | None]] = [
    (f"{STACKED}, of gradients and activations", expected[STACKED], None)
  ]
  for name, classes in _PREDICTED.items():
    rows.append((name, expected[name], _sum(sizes, classes)))
    if len(classes) > 1:
      rows += [(f"- {one}", None, sizes[one]) for one in classes if one in sizes]
  named = {one for classes in _PREDICTED.values() for one in classes}
  rows += [(one, None, sizes[one]) for one in (*CLASSES, GAPS, REST) if one in sizes and one not in named]
  shown = [(name, planned, size) for name, planned, size in rows if planned or size]
  return [*shown, (WHOLE, expected[WHOLE], sum(sizes.values()))]


def _sum(sizes: Mapping[str, int], classes: tuple[str, ...]) -> int:
  return sum(sizes.get(name, 0) for name in classes)


def _relative(expected: int | None, size: int | None) -> float | None:
  return (size - expected) / expected if expected and size is not None else None


def _classes(c: Comparison, found: Temporaries) -> Table:
  whole = max(1, sum(found.class_bytes.values()))
  rows = []
  for name, expected, size in _rows(c, found):
    error = _relative(expected, size)
    planned = "-" if expected is None else units.bytes_(expected)
    share = "-" if error is None else units.difference(error, 1)
    made, of_all = ("-", "-") if size is None else (units.bytes_(size), units.percent(size / whole))
    rows.append((name, planned, made, share, of_all))
  return Table("Temporaries by class when most are needed, one device; not judged", _HEADERS, rows)


def _largest(found: Temporaries) -> Table:
  rows = [
    (
      one.kind,
      units.bytes_(one.bytes),
      "yes" if one.at_peak else "",
      one.shape,
      _operation(one.op_name),
      one.source,
    )
    for one in found.large[:_SHOWN]
  ]
  count, unknown = len(found.large), len(found.unknown)
  named = "all attributed" if not unknown else f"{unknown} not attributed"
  title = f"Largest of {count} temporaries over {units.percent(LARGE)} of all (compiled), {named}"
  return Table(title, ["class", "size", "at the peak", "shape", "operation", "source"], rows)


def _operation(name: str) -> str:
  """The end of jax's name."""
  return "/".join(name.split("/")[-3:])
