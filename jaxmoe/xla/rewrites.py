"""Explain an optimised module's collectives by the partitioned program's, one named rewrite at a time.

Totals over one run are compared for each (kind, axes), not operation by operation: compilers split, merge and
move operations.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

from jaxmoe.xla.between_slices import Slices
from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.hierarchy import in_slices
from jaxmoe.xla.recomputed import original
from jaxmoe.xla.totals import NOTHING, CollectiveTraffic, Key, totals

REDUCE, SCATTER = "all-reduce", "reduce-scatter"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
  """How the traffic of one (kind, axes) came about.

  Attributes:
    names: `same`; or `widened` (16 bits to 32, 8 to 16) or `narrowed` (32 to 16), `packed` (several elements in a word)
      and `padded` (shares or tiles filled up), and `combined` (the same in fewer operations) or `split` (in more),
      `peeled` (iterations of a loop written out), `async` (started early, awaited later); `removed` (fewer elements:
      dead or merged); `reduce_scatter_as_all_reduce` and `all_reduce_as_reduce_scatter`; `reordered` (an all-reduce
      moved across a reduce-scatter); `halo` (neighbours hand on what equal shares of a padded array hold for each
      other); `recomputed` (done again where a result takes too much memory to keep); `hierarchical` (one within each
      TPU slice and one between them); or `unplanned`: no rewrite explains it.
  """

  names: tuple[str, ...]
  kind: str
  axes: tuple[str, ...]
  planned: CollectiveTraffic
  actual: CollectiveTraffic

  @property
  def planned_for(self) -> bool:
    return "unplanned" not in self.names


def explain(
  partitioned: Iterable[Collective],
  optimised: Iterable[Collective],
  axis_sizes: Mapping[str, int] | None = None,
  slices: Slices | None = None,
) -> list[Rewrite]:
  """One entry for each (kind, axes) of either list, in order of kind and axes.

  Args:
    axis_sizes, slices: of a program for several TPU slices. What is planned is then the partitioned program's, with
      every collective over several slices taken apart.
  """
  partitioned, optimised, parts = list(partitioned), list(optimised), set[Key]()
  if slices and axis_sizes:
    partitioned, parts = in_slices(partitioned, optimised, axis_sizes, slices)
  planned, actual, again = totals(partitioned), totals(optimised), _recomputed(optimised)
  optimised = [one for one in optimised if one not in again]
  halos = _halos(optimised)
  judged = totals(one for one in optimised if one not in halos)
  named = dict(_reordered(partitioned, optimised)) | dict(_reductions(planned, judged))
  marks = [
    ("peeled", set(_peeled(partitioned, optimised))),
    ("halo", {(one.kind, one.axes) for one in halos}),
    ("recomputed", {(one.kind, one.axes) for one in again}),
    ("hierarchical", parts),
  ]
  rewrites = []
  for key in sorted(planned.keys() | actual.keys()):
    before, after = planned.get(key, NOTHING), actual.get(key, NOTHING)
    names = named.get(key) or _own_names(before, judged.get(key, NOTHING))
    marked = tuple(mark for mark, keys in marks if key in keys)
    late = ("async",) if after.asynchronous > before.asynchronous else ()
    rewrites.append(
      Rewrite(names=_together(names, marked, late), kind=key[0], axes=key[1], planned=before, actual=after)
    )
  return rewrites


def _own_names(planned: CollectiveTraffic, actual: CollectiveTraffic) -> tuple[str, ...]:
  """Rewrites that one (kind, axes) shows by itself."""
  names: list[str] = []
  surplus, extra_bytes = actual.elements - planned.elements, 0.0
  if math.isclose(actual.elements, planned.elements):
    surplus = 0.0
  elif surplus > 0:
    if surplus > actual.padding * (1 + 1e-9) or not planned.elements:
      return ("unplanned",)
    extra_bytes = actual.padding_bytes * surplus / actual.padding
    names.append("padded")
  else:
    names.append("removed")
  wide = _width(planned, actual.payload_bytes - extra_bytes, removed=surplus < 0)
  if wide is None:
    return ("unplanned",)
  names += wide
  if actual.packed:
    names.append("packed")
  if actual.elements and surplus >= 0 and not math.isclose(actual.operations, planned.operations):
    names.append("combined" if actual.operations < planned.operations else "split")
  return tuple(names) or ("same",)


def _width(planned: CollectiveTraffic, sent_bytes: float, *, removed: bool) -> list[str] | None:
  """Bits of an element, more or fewer; None where nobody widens so far. Of fewer elements only the most is known."""
  if math.isclose(sent_bytes, planned.payload_bytes):
    return []
  if sent_bytes > planned.widened_bytes * (1 + 1e-9):
    return None
  if removed:
    return []
  if sent_bytes > planned.payload_bytes:
    return ["widened"]
  return ["narrowed"] if sent_bytes >= planned.payload_bytes / 2 else None


def _together(*parts: tuple[str, ...]) -> tuple[str, ...]:
  """All names; `same` and `unplanned` stand alone."""
  names = tuple(name for part in parts for name in part)
  if "unplanned" in names:
    return ("unplanned",)
  return tuple(name for name in names if name != "same") or ("same",)


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


def _reductions(
  planned: dict[Key, CollectiveTraffic], actual: dict[Key, CollectiveTraffic]
) -> Iterator[tuple[Key, tuple[str, ...]]]:
  """Where an all-reduce does a reduce-scatter's work, or the other way: what one has more, the other has less."""
  for axes in sorted({axes for kind, axes in planned.keys() | actual.keys() if kind in (REDUCE, SCATTER)}):
    keys = (REDUCE, axes), (SCATTER, axes)
    before, after = ([side.get(key, NOTHING) for key in keys] for side in (planned, actual))
    surplus = [a.elements - b.elements for a, b in zip(after, before, strict=True)]
    if not (min(surplus) < 0 < max(surplus)) or math.isclose(after[0].elements, before[0].elements):
      continue
    name = "reduce_scatter_as_all_reduce" if surplus[0] > 0 else "all_reduce_as_reduce_scatter"
    names = _own_names(before[0] + before[1], after[0] + after[1])
    if names != ("unplanned",):
      yield keys[0], _together((name,), names)
      yield keys[1], _together((name,), names)


def _recomputed(optimised: list[Collective]) -> list[Collective]:
  """Of each operation and its copies all but the one that moves most."""
  copies: dict[tuple[Key, str], dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
  for one in optimised:
    copies[(one.kind, one.axes), original(one.name)][one.name] += one.count * one.payload_bytes
  kept = {max(sizes, key=lambda name: sizes[name]) for sizes in copies.values()}
  return [one for one in optimised if one.name not in kept]


def _halos(optimised: list[Collective]) -> list[Collective]:
  """Permutes that hand on what a padded reduction over the same axes left with a neighbour."""
  padded = {one.axes for one in optimised if one.padding and one.kind in (REDUCE, SCATTER)}
  return [one for one in optimised if one.halo and one.axes in padded]


def _reordered(before: list[Collective], after: list[Collective]) -> Iterator[tuple[Key, tuple[str, ...]]]:
  """All-reduces that moved behind a reduce-scatter: of those that are not as before, its group's part is left."""
  groups = {one.group_size for one in before if one.kind == SCATTER}
  for axes in {one.axes for one in before if one.kind == REDUCE}:
    sizes = [collections.Counter(_sizes(side, axes)) for side in (before, after)]
    gone, come = (float(sum((sizes[i] - sizes[1 - i]).elements())) for i in (0, 1))
    if come and any(math.isclose(gone, come * group) for group in groups):
      yield (REDUCE, axes), ("reordered",)


def _sizes(listed: Iterable[Collective], axes: tuple[str, ...]) -> list[float]:
  return [one.count * one.elements for one in listed if (one.kind, one.axes) == (REDUCE, axes)]
