"""Collectives of one kind over the same axes, added up over one run."""

import collections
import dataclasses
from collections.abc import Iterable

from jaxmoe.xla.collectives import Collective

WIDENED_ITEM_BYTES = {2.0: 4.0, 1.0: 2.0}  # bf16 and f16 to f32, f8 to f16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CollectiveTraffic:
  """All collectives of one kind over the same axes, in one run of one device.

  Attributes:
    operations: executions.
    asynchronous: of those, the ones that are started and awaited later.
    unplaced: of the asynchronous, those of which the program does not say what they overlap.
    padding: of `elements`, at most so many are none of the program's.
    packed: executions that send several elements in a word of 32 bits.
    widened_bytes: what `payload_bytes` becomes if 16- and 8-bit payloads are widened.
    hidden_flops, hidden_bytes: matmuls and memory traffic between starts and ends, each counted once.
    sources: `file.py:12` of each operation, or what else says where it comes from.
  """

  operations: float = 0.0
  asynchronous: float = 0.0
  unplaced: float = 0.0
  elements: float = 0.0
  padding: float = 0.0
  padding_bytes: float = 0.0
  packed: float = 0.0
  payload_bytes: float = 0.0
  widened_bytes: float = 0.0
  hidden_flops: float = 0.0
  hidden_bytes: float = 0.0
  group_size: int = 1
  sources: tuple[str, ...] = ()

  def __add__(self, other: "CollectiveTraffic") -> "CollectiveTraffic":
    names = [
      field.name for field in dataclasses.fields(CollectiveTraffic) if field.name not in ("group_size", "sources")
    ]
    return CollectiveTraffic(
      **{name: getattr(self, name) + getattr(other, name) for name in names},
      group_size=max(self.group_size, other.group_size),
      sources=tuple(dict.fromkeys((*self.sources, *other.sources))),
    )


Key = tuple[str, tuple[str, ...]]
NOTHING = CollectiveTraffic()


def totals(listed: Iterable[Collective]) -> dict[Key, CollectiveTraffic]:
  """By kind and axes."""
  found: dict[Key, CollectiveTraffic] = collections.defaultdict(CollectiveTraffic)
  for one in listed:
    found[one.kind, one.axes] += _traffic(one)
  return dict(found)


def _traffic(one: Collective) -> CollectiveTraffic:
  item_bytes, overlap = one.payload_bytes / max(1, one.elements), one.overlap
  return CollectiveTraffic(
    operations=one.count,
    asynchronous=one.count * one.asynchronous,
    unplaced=one.count * (one.asynchronous and overlap is None),
    elements=one.count * one.elements,
    padding=one.count * one.padding,
    padding_bytes=one.count * one.padding * item_bytes,
    packed=one.count * bool(one.packs),
    payload_bytes=one.count * one.payload_bytes,
    widened_bytes=one.count * one.elements * _widened(one, item_bytes),
    hidden_flops=one.count * overlap.own_flops if overlap else 0.0,
    hidden_bytes=one.count * overlap.own_bytes if overlap else 0.0,
    group_size=one.group_size,
    sources=(one.place,) if one.place else (),
  )


def _widened(one: Collective, item_bytes: float) -> float:
  """Bytes of one element after widening; integers and wide floats stay."""
  floating = one.dtype.startswith(("bf", "f"))
  return WIDENED_ITEM_BYTES.get(item_bytes, item_bytes) if floating else item_bytes
