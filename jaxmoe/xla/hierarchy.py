"""What a compiler for several TPU slices makes of a collective: one within each slice, and one between them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxmoe.xla.between_slices import Slices, Split
from jaxmoe.xla.collectives import Collective

REDUCE, SCATTER, GATHER, PERMUTE = "all-reduce", "reduce-scatter", "all-gather", "collective-permute"

# Kind -> (kind, where, share of the payload) of its parts; w devices of a group are in one slice.
_PARTS = {
  REDUCE: ((SCATTER, "within", "1"), (REDUCE, "between", "1/w"), (GATHER, "within", "1")),
  GATHER: ((GATHER, "between", "1/w"), (GATHER, "within", "1")),
  SCATTER: ((SCATTER, "within", "1"), (SCATTER, "between", "1/w")),
  PERMUTE: ((PERMUTE, "between", "1"), (PERMUTE, "within", "1")),
}
# An all-reduce that is too small to be scattered.
_WHOLE = ((REDUCE, "within", "1"), (REDUCE, "between", "1"))
_MOST_SUMS = 20_000  # of subsets that are tried: their number can double with each all-reduce

_Divided = tuple[Collective, Split]


def in_slices(
  partitioned: Iterable[Collective], optimised: Iterable[Collective], axis_sizes: Mapping[str, int], slices: Slices
) -> tuple[list[Collective], set[tuple[str, tuple[str, ...]]]]:
  """A partitioned program's collectives, those over several slices taken apart; and (kind, axes) of the parts.

  An all-reduce is taken for scattered unless the optimised module lacks its gather.
  """
  found: list[Collective] = []
  divided: list[_Divided] = []
  for one in partitioned:
    split = slices.split(one.axes, axis_sizes)
    if split.between > 1 and split.within > 1 and one.kind in _PARTS:
      divided.append((one, split))
    else:
      found.append(one)
  whole = [
    one for axes in {split.axes_within for _, split in divided} for one in _whole(axes, divided, found, optimised)
  ]
  parts = [part for one, split in divided for part in _parts(one, split, whole=any(one is other for other in whole))]
  return [*found, *parts], {(part.kind, part.axes) for part in parts}


def _whole(
  axes: tuple[str, ...], divided: list[_Divided], undivided: list[Collective], optimised: Iterable[Collective]
) -> Sequence[Collective]:
  """All-reduces whose gathers within slices over `axes` the optimised module lacks."""
  here = [one for one, split in divided if split.axes_within == axes]
  planned = [one for one in here if one.kind in (REDUCE, GATHER)] + _gathers(undivided, axes)
  missing = sum(map(_size, planned)) - sum(_size(one) for one in _gathers(optimised, axes) if not one.between_slices)
  return _adding_up([one for one in here if one.kind == REDUCE], missing)


def _gathers(listed: Iterable[Collective], axes: tuple[str, ...]) -> list[Collective]:
  return [one for one in listed if (one.kind, one.axes) == (GATHER, axes)]


def _adding_up(listed: Iterable[Collective], missing: float) -> Sequence[Collective]:
  """Some whose sizes add up to `missing`; none if there are no such."""
  sums: dict[float, tuple[Collective, ...]] = {0.0: ()}
  for one in sorted(listed, key=_size):
    more = {total + _size(one): (*chosen, one) for total, chosen in sums.items() if total + _size(one) <= missing}
    sums = {**more, **sums}
    if missing in sums or len(sums) > _MOST_SUMS:
      break
  return sums.get(missing, ())


def _size(one: Collective) -> float:
  return one.count * one.elements


def _parts(one: Collective, split: Split, *, whole: bool) -> Iterator[Collective]:
  """A permute crosses slices along all of its axes, as not every pair does; others along those that join slices."""
  for kind, where, share in _WHOLE if whole else _PARTS[one.kind]:
    divisor = split.within if share == "1/w" else 1
    between = one.axes if kind == PERMUTE else split.axes_between
    yield dataclasses.replace(
      one,
      kind=kind,
      axes=split.axes_within if where == "within" else between,
      group_size=split.within if where == "within" else split.between,
      payload_bytes=one.payload_bytes / divisor,
      elements=-(-one.elements // divisor),
    )
