"""Work that the compiler's rematerialisation adds: it computes again what would take too much memory to keep."""

import collections

from jaxmoe.xla.walk import Visit

# XLA's rematerialisation names copies `dot.3.remat`, `dot.3.remat2`, `dot.3.remat.1`; the original may be gone.
_MARK = ".remat"


def original(name: str) -> str:
  """Of a copy, the name of the operation that it is of; else the name itself."""
  return name.partition(_MARK)[0]


class Copies:
  """Work of operations and of their copies; a fusion is copied whole."""

  def __init__(self):
    self._work: dict[tuple[str, str], dict[str, float]] = collections.defaultdict(
      lambda: collections.defaultdict(float)
    )

  def add(self, visit: Visit, work: float) -> None:
    x, frame = visit.instruction, visit.frame
    while frame.site is not None and frame.site.instruction.opcode == "fusion":
      x, frame = frame.site.instruction, frame.site.frame
    self._work[frame.computation.name, original(x.name)][x.name] += work

  @property
  def recomputed(self) -> float:
    """Of each operation all but one copy."""
    return sum(sum(copies.values()) - max(copies.values()) for copies in self._work.values())
