"""Explain an optimised module's collectives by the partitioned program's, one named rewrite at a time.

Totals over one run are compared for each (kind, axes), not operation by operation: compilers split, merge and
move operations.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator

from jaxmoe.xla.collectives import Collective

WIDENED_ITEM_BYTES = {2.0: 4.0, 1.0: 2.0}  # bf16 and f16 to f32, f8 to f16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
  """All collectives of one kind over the same axes, in one run of one device.

  Attributes:
    operations: executions.
    asynchronous: of those, the ones that are started and awaited later.
    widened_bytes: what `payload_bytes` becomes if 16- and 8-bit payloads are widened.
  """

  operations: float = 0.0
  asynchronous: float = 0.0
  elements: float = 0.0
  payload_bytes: float = 0.0
  widened_bytes: float = 0.0
  group_size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
  """How the traffic of one (kind, axes) came about.

  Attributes:
    names: `same`; or `widened` (16 bits to 32, 8 to 16) or `narrowed` (32 to 16), and `combined` (the same in fewer
      operations) or `split` (in more), `peeled` (iterations of a loop written out), `async` (started early, awaited
      later); `removed` (fewer elements: dead or merged);
      `reduce_scatter_as_all_reduce`; `reordered` (an all-reduce moved across a reduce-scatter); or
      `unplanned`: no rewrite explains it.
  """

  names: tuple[str, ...]
  kind: str
  axes: tuple[str, ...]
  planned: Traffic
  actual: Traffic

  @property
  def planned_for(self) -> bool:
    return "unplanned" not in self.names


Key = tuple[str, tuple[str, ...]]
NOTHING = Traffic()


def explain(partitioned: Iterable[Collective], optimised: Iterable[Collective]) -> list[Rewrite]:
  """One entry for each (kind, axes) of either list, in order of kind and axes."""
  partitioned, optimised = list(partitioned), list(optimised)
  planned, actual = _totals(partitioned), _totals(optimised)
  peeled = set(_peeled(partitioned, optimised))
  moved = dict(_across_kinds(planned, actual))
  rewrites = []
  for key in sorted(planned.keys() | actual.keys()):
    before, after = planned.get(key, NOTHING), actual.get(key, NOTHING)
    names = moved.get(key) or _names(before, after, peeled=key in peeled)
    rewrites.append(Rewrite(names=names, kind=key[0], axes=key[1], planned=before, actual=after))
  return rewrites


def _totals(listed: Iterable[Collective]) -> dict[Key, Traffic]:
  totals: dict[Key, Traffic] = collections.defaultdict(Traffic)
  for one in listed:
    total = totals[one.kind, one.axes]
    totals[one.kind, one.axes] = Traffic(
      operations=total.operations + one.count,
      asynchronous=total.asynchronous + one.count * one.asynchronous,
      elements=total.elements + one.count * one.elements,
      payload_bytes=total.payload_bytes + one.count * one.payload_bytes,
      widened_bytes=total.widened_bytes + one.count * one.elements * _widened(one),
      group_size=one.group_size,
    )
  return dict(totals)


def _widened(one: Collective) -> float:
  """Bytes of one element after widening; integers and wide floats stay."""
  item_bytes = one.payload_bytes / max(1, one.elements)
  floating = one.dtype.startswith(("bf", "f"))
  return WIDENED_ITEM_BYTES.get(item_bytes, item_bytes) if floating else item_bytes


def _names(planned: Traffic, actual: Traffic, *, peeled: bool) -> tuple[str, ...]:
  if actual.elements > planned.elements * (1 + 1e-9):
    return ("unplanned",)
  if not math.isclose(actual.elements, planned.elements):
    return ("removed",)
  names: list[str] = []
  if not math.isclose(actual.payload_bytes, planned.payload_bytes):
    if planned.payload_bytes / 2 <= actual.payload_bytes < planned.payload_bytes:
      names.append("narrowed")
    elif planned.payload_bytes < actual.payload_bytes <= planned.widened_bytes * (1 + 1e-9):
      names.append("widened")
    else:
      return ("unplanned",)
  if not math.isclose(actual.operations, planned.operations):
    names.append("combined" if actual.operations < planned.operations else "split")
  if peeled:
    names.append("peeled")
  if actual.asynchronous > planned.asynchronous:
    names.append("async")
  return tuple(names) or ("same",)


def _peeled(partitioned: Iterable[Collective], optimised: Iterable[Collective]) -> Iterator[Key]:
  """Where what one operation did in a loop is done as often by several, the loop and what was taken out of it."""
  before, after = _by_origin(partitioned), _by_origin(optimised)
  for origin in before.keys() & after.keys():
    planned, actual = before[origin], after[origin]
    if len(actual) > len(planned) and math.isclose(sum(actual), sum(planned)) and max(actual) < max(planned):
      yield origin[0]


def _by_origin(listed: Iterable[Collective]) -> dict[tuple[Key, str], list[float]]:
  """Executions of each operation that jax traced at one place."""
  found: dict[tuple[Key, str], list[float]] = collections.defaultdict(list)
  for one in listed:
    found[(one.kind, one.axes), one.op_name].append(one.count)
  return found


def _across_kinds(planned: dict[Key, Traffic], actual: dict[Key, Traffic]) -> Iterator[tuple[Key, tuple[str, ...]]]:
  """Rewrites that show only when reduce-scatters and all-reduces are seen together."""
  scatters = {axes: traffic for (kind, axes), traffic in planned.items() if kind == "reduce-scatter"}
  for axes, scatter in scatters.items():
    missing = scatter.elements - actual.get(("reduce-scatter", axes), NOTHING).elements
    reduce = ("all-reduce", axes)
    surplus = actual.get(reduce, NOTHING).elements - planned.get(reduce, NOTHING).elements
    if missing > 0 and math.isclose(missing, surplus):
      yield ("reduce-scatter", axes), ("reduce_scatter_as_all_reduce",)
      yield reduce, ("reduce_scatter_as_all_reduce",)
  for (kind, axes), before in planned.items():
    after = actual.get((kind, axes), NOTHING)
    if kind == "all-reduce" and after.elements and _moved_across(before, after, scatters.values()):
      yield (kind, axes), ("reordered",)


def _moved_across(before: Traffic, after: Traffic, scatters: Iterable[Traffic]) -> bool:
  """An all-reduce that moves across a reduce-scatter grows or shrinks by the size of the latter's group."""
  ratio = max(after.elements, before.elements) / min(after.elements, before.elements)
  return ratio > 1 and any(math.isclose(ratio, scatter.group_size) for scatter in scatters)
