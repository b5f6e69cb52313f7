"""XLA's buffer assignment: where in memory each temporary value lies, and while which operations it is needed.

The compiler's statistics give sums only, so this reads what XLA writes beside the modules it dumps: the assignment, and
the live ranges on the schedule with all loops written in line.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

_ASSIGNMENT = "*after_optimizations-buffer-assignment.txt"
_POSITIONS = "*after_optimizations-buffer-assignment-values.txt"
_LIVE_RANGES = "*after_optimizations-live-range.txt"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (?:color (\d+), )?.*preallocated-temp")
_VALUE = re.compile(r"^ value: <(\d+) ([^{ ]+)(?:\{([\d,]*)\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)$")
_POSITION = re.compile(r"^  ([^\s{]+)", re.MULTILINE)
_LIFE = re.compile(r"^    (\S+?)\{([\d,]*)\}:(\d+)-(\d+)$", re.MULTILINE)

MAIN, ON_CHIP = 0, 1  # XLA's memory spaces: a TPU's HBM or all that a GPU or CPU has, and a TPU's vector memory


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
  """One array that an instruction makes.

  Attributes:
    index: of the array in the instruction's result, `1` or `1,0`; empty if that is no tuple.
    offset: in the memory of all temporaries, bytes.
    positions: all instructions whose result it is or is a part of: of an asynchronous one, its start and end too.
    begin, end: first and last step of the schedule that need it.
  """

  instruction: str
  index: str
  shape: str
  offset: int
  bytes: int
  begin: int
  end: int
  positions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
  """Values that share one place because they are one array: carried by a loop, or updated in place."""

  values: tuple[Value, ...]

  @property
  def offset(self) -> int:
    return self.values[0].offset

  @property
  def bytes(self) -> int:
    return self.values[0].bytes

  @property
  def begin(self) -> int:
    return self.values[0].begin

  @property
  def end(self) -> int:
    return max(value.end for value in self.values)


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
  """Temporaries of one device's program.

  Attributes:
    heap_bytes: of main memory that they lie in, gaps between them included.
    on_chip_bytes: of a TPU's vector memory.
    buffers: of main memory.
  """

  heap_bytes: int
  on_chip_bytes: int
  buffers: tuple[Buffer, ...]

  def at_peak(self) -> list[tuple[Buffer, int]]:
    """Buffers that are needed when most bytes are, each with those bytes that no other one before it covers."""
    step = _busiest_step(self.buffers)
    found, covered = [], 0
    for buffer in sorted(self.buffers, key=lambda buffer: (buffer.offset, -buffer.bytes)):
      if buffer.begin <= step <= buffer.end:
        end = buffer.offset + buffer.bytes
        found.append((buffer, max(0, end - max(covered, buffer.offset))))
        covered = max(covered, end)
    return found


def read_assignment(folder: pathlib.Path) -> Assignment | None:
  """From a folder of dumps; None if this compiler writes none."""
  files = [sorted(folder.glob(pattern)) for pattern in (_ASSIGNMENT, _LIVE_RANGES, _POSITIONS)]
  return parse(*(found[-1].read_text() for found in files)) if all(files) else None


def parse(assignment: str, live_ranges: str, positions: str = "") -> Assignment:
  """From the text of each."""
  places = _positions(positions)
  lives = {(name, index): (int(begin), int(end)) for name, index, begin, end in _LIFE.findall(live_ranges)}
  sizes: dict[int, int] = {}
  values: list[Value] = []
  memory = None
  for line in assignment.splitlines():
    if line.startswith("allocation"):
      heap = _ALLOCATION.match(line)
      memory = int(heap[2] or MAIN) if heap else None
      if heap and memory is not None:
        sizes[memory] = sizes.get(memory, 0) + int(heap[1])
    elif memory == MAIN and (found := _VALUE.match(line)):
      number, name, index, size, offset, shape = found.groups()
      life = lives.get((name, index or ""))
      if life and int(size):
        values.append(Value(name, index or "", shape, int(offset), int(size), *life, places.get(number, ())))
  return Assignment(sizes.get(MAIN, 0), sizes.get(ON_CHIP, 0), tuple(_buffers(values)))


def _positions(text: str) -> dict[str, tuple[str, ...]]:
  """Number of a value -> names of instructions."""
  found = {}
  for entry in text.split("\n<")[1:]:
    listed = entry.partition(" positions:\n")[2].partition("\n uses:")[0]
    found[entry.partition(" ")[0]] = tuple(_POSITION.findall(listed))
  return found


def _buffers(values: Iterable[Value]) -> Iterator[Buffer]:
  """Values at one place whose lives overlap must be one array, or the assignment would be wrong."""
  by_place: dict[tuple[int, int], list[Value]] = {}
  for value in sorted(values, key=lambda value: (value.begin, value.end)):
    by_place.setdefault((value.offset, value.bytes), []).append(value)
  for here in by_place.values():
    together, end = here[:1], here[0].end
    for value in here[1:]:
      if value.begin > end:
        yield Buffer(tuple(together))
        together = []
      together.append(value)
      end = max(end, value.end)
    yield Buffer(tuple(together))


def _busiest_step(buffers: Iterable[Buffer]) -> int:
  changes: dict[int, int] = {}
  for buffer in buffers:
    changes[buffer.begin] = changes.get(buffer.begin, 0) + buffer.bytes
    changes[buffer.end + 1] = changes.get(buffer.end + 1, 0) - buffer.bytes
  held = most = best = 0
  for step in sorted(changes):
    held += changes[step]
    if held > most:
      most, best = held, step
  return best
