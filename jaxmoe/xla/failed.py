"""A compiler that refuses a program: what it said, and what of the program is too large if memory is the reason."""

import dataclasses
import re
from collections.abc import Mapping

from jaxmoe.xla.attribution import Facts, Sizes, class_of

TEMPORARIES = "temporaries"
SCRATCH = "temporaries: scratch that the compiler adds"
OTHERS = "temporaries: not listed by the compiler"

_EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|[Rr]an out of memory|[Oo]ut of memory")
_SIZE = r"([\d.]+)([KMGT]?)B?\b"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LONGEST = 800
# What TPU's compiler says once it knows how much the program needs, in all ...
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
# ... or before it lays out anything: this counts arguments and results too, whatever it is called.
_REQUIRED = re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_HEAP = re.compile(rf"\bHLO temp\s+{_SIZE}")
_SCOPED = re.compile(rf"\bscoped\s+{_SIZE}")
_ALLOCATION = re.compile(rf"^  \d+\. Size: {_SIZE}$(.*?)^     Allocation type: (.+?)$", re.MULTILINE | re.DOTALL)
_SHAPE = re.compile(r"Shape: \(*([a-z]\w*)\[([\d,]*)\]")
_LISTED_FROM = "Largest program allocations"


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
  """One allocation that the compiler's message lists."""

  bytes: int
  kind: str
  op_name: str
  shape: str


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryReport:
  """What a compiler's message says about memory; `needed` and `available` are None where it does not say them."""

  needed_bytes: int | None = None
  available_bytes: int | None = None
  class_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
  largest: tuple[Listed, ...] = ()


class CompileFailed(Exception):
  """The compiler's own message, shortened.

  Attributes:
    message: as it is shown.
    class_bytes: of one device's arguments and results by class; with the temporaries where the compiler says them.
    said: what else of memory the message said.
  """

  def __init__(self, message: str, class_bytes: Mapping[str, int], said: MemoryReport | None = None):
    super().__init__(message, dict(class_bytes), said)  # all, so that it pickles
    self.message = message
    self.said = said or MemoryReport()
    self.class_bytes = {**class_bytes, **self.said.class_bytes}

  def __str__(self) -> str:
    return self.message

  @property
  def out_of_memory(self) -> bool:
    return bool(_EXHAUSTED.search(self.message))

  @property
  def largest(self) -> str:
    """The class that takes most."""
    return max(self.class_bytes, key=lambda name: self.class_bytes[name])

  @property
  def excess_bytes(self) -> int | None:
    """What is too much; None where the compiler does not say."""
    if self.said.needed_bytes is None or self.said.available_bytes is None:
      return None
    return self.said.needed_bytes - self.said.available_bytes


def refused(text: str, held: Mapping[str, int], sizes: Sizes) -> CompileFailed:
  """What a compiler says, with the classes of what it lists.

  Args:
    held: bytes of one device's arguments and results, by class.
  """
  return CompileFailed(shortened(text.partition(_LISTED_FROM)[0]), held, _said(text, held, sizes))


def shortened(text: str) -> str:
  """The first lines of what a compiler says, without stack frames, on one line."""
  lines = (line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("@", "at ")))
  whole = " ".join(" ".join("".join(c if c.isprintable() else " " for c in line) for line in lines).split())
  return whole if len(whole) <= _LONGEST else whole[:_LONGEST].rstrip() + " ..."


def _said(text: str, held: Mapping[str, int], sizes: Sizes) -> MemoryReport:
  if early := _REQUIRED.search(text):
    needed, available = _bytes(*early.groups()[:2]), _bytes(*early.groups()[2:])
    return MemoryReport(needed, available, {TEMPORARIES: max(0, needed - sum(held.values()))})
  if used := _USED.search(text):
    largest = tuple(_listed(text, sizes))
    return MemoryReport(_bytes(*used.groups()[:2]), _bytes(*used.groups()[2:]), _by_class(text, largest), largest)
  return MemoryReport()


def _by_class(text: str, largest: tuple[Listed, ...]) -> dict[str, int]:
  """Temporaries; what the compiler does not list is what is left of the heap.

  It calls that fragmentation, also where arrays that loops carry lie there.
  """
  found: dict[str, int] = {}
  for one in largest:
    found[one.kind] = found.get(one.kind, 0) + one.bytes
  found.pop(SCRATCH, None)
  heap, scoped = (_first(pattern, text) for pattern in (_HEAP, _SCOPED))
  rest = {OTHERS: max(0, heap - sum(found.values())), SCRATCH: scoped}
  return {name: size for name, size in {**found, **rest}.items() if size}


def _listed(text: str, sizes: Sizes):
  """Temporaries among the largest allocations."""
  listed = text.partition(_LISTED_FROM)[2]
  for number, unit, described, kind in _ALLOCATION.findall(listed):
    shape, op_name = _SHAPE.search(described), re.search(r'op_name="([^"]*)"', described)
    name, written = op_name[1] if op_name else "", re.search(r"Shape: (.*)", described)
    if kind == "scoped":
      yield Listed(_bytes(number, unit), SCRATCH, name, written[1] if written else "")
    elif kind == "HLO temp" and shape:
      dims = tuple(int(length) for length in shape[2].split(",") if length)
      facts = Facts(names=[name] if name else [], dtype=shape[1], dims=dims)
      yield Listed(
        _bytes(number, unit), f"{TEMPORARIES}: {class_of(facts, sizes)}", name, written[1] if written else ""
      )


def _first(pattern: re.Pattern[str], text: str) -> int:
  found = pattern.search(text)
  return _bytes(found[1], found[2]) if found else 0


def _bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])
