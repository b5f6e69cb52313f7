"""Pipeline schedules as plain data: a table (tick, stage) -> work, checked when built. No jax.

A schedule fixes what each stage does and in which order; `schedule_timing` says how long that takes, `schedule_makers`
builds the known ones and `schedule_drawing` prints them.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

from jaxmoe.meshes.errors import UsageError

Kind = Literal["F", "B", "W"]
KINDS: tuple[Kind, ...] = ("F", "B", "W")


class Work(NamedTuple):
  """One pass of one microbatch through one chunk of a stage's layers.

  Attributes:
    kind: F forward; B backward, or its input gradient alone where the schedule has W; W weight gradient.
    chunk: which of the stage's chunks of layers.
  """

  kind: Kind
  microbatch: int
  chunk: int = 0


type Cell = tuple[Work, ...]
type Place = tuple[int, int]  # stage, chunk
type Route = tuple[Place, ...]  # of a microbatch's forward; its backward goes the other way


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
  """What every stage does at every tick. One that exists is valid: every piece of work once, after all that it needs.

  Attributes:
    routes: microbatch m goes through all layers by route m, or m modulo their number where they are fewer.
    kinds: the passes that each microbatch makes: F, F and B, or F, B and W.
    per_tick: the most pieces of work in one cell; they run in the order of the cell.
    joined: whether a cell's pieces run at once instead, and end together; then only W may need another of them, its B.
    table: `table[tick][stage]` is a cell; what it makes reaches other stages at the next tick.
  """

  stages: int
  microbatches: int
  routes: tuple[Route, ...]
  kinds: tuple[Kind, ...] = ("F", "B")
  per_tick: int = 1
  joined: bool = False
  table: tuple[tuple[Cell, ...], ...]

  def __post_init__(self):
    check_sizes(self.stages, self.microbatches, self.chunks)
    if not self.kinds or self.kinds != KINDS[: len(self.kinds)]:
      raise UsageError(f"kinds must be F, or F and B, or F, B and W, got {self.kinds}")
    validate(self)

  @property
  def chunks(self) -> int:
    """Chunks of layers that each stage holds (`v` of interleaved schedules)."""
    return 1 + max(chunk for route in self.routes for _, chunk in route)

  @property
  def ticks(self) -> int:
    return len(self.table)

  @property
  def idle_ticks(self) -> tuple[int, ...]:
    """Ticks in which a stage has nothing to do, by stage."""
    return tuple(sum(not row[stage] for row in self.table) for stage in range(self.stages))

  @property
  def bubble_shares(self) -> tuple[float, ...]:
    """Idle ticks / ticks, by stage."""
    return tuple(idle / self.ticks for idle in self.idle_ticks)

  def work(self) -> Iterator[tuple[int, int, Work]]:
    """(tick, stage, work) of every piece, by tick, then stage, then place in the cell."""
    for tick, row in enumerate(self.table):
      for stage, cell in enumerate(row):
        for work in cell:
          yield tick, stage, work

  def cells(self) -> Iterator[tuple[int, Cell]]:
    """(stage, what runs at once) in the order of `work`."""
    for stage, cell in itertools.chain.from_iterable(map(enumerate, self.table)):
      if self.joined and cell:
        yield stage, cell
      elif not self.joined:
        yield from ((stage, (work,)) for work in cell)

  def order(self, stage: int) -> list[Work]:
    """The stage's work from first to last."""
    return [work for row in self.table for work in row[stage]]


def check_sizes(stages: int, microbatches: int, chunks: int = 1) -> None:
  """Raises UsageError unless all are at least 1."""
  for name, size in (("stages", stages), ("microbatches", microbatches), ("chunks", chunks)):
    if size < 1:
      raise UsageError(f"a pipeline schedule needs {name} of at least 1, got {size}")


def through(stages: int, chunks: int = 1) -> Route:
  """Chunk 0 of every stage from the first to the last, then chunk 1, ..."""
  return tuple((stage, chunk) for chunk in range(chunks) for stage in range(stages))


class Needs:
  """What must be done before a piece of work. Made of the routes, none of which share a place."""

  def __init__(self, routes: tuple[Route, ...]):
    self.before = {here: place for route in routes for place, here in itertools.pairwise(route)}
    self.after = {here: place for route in routes for here, place in itertools.pairwise(route)}

  def __call__(self, stage: int, work: Work) -> list[tuple[int, Work]]:
    """(stage, work) pairs. F needs F at the place before; B needs its own F and B at the place after; W its own B."""
    kind, microbatch, chunk = work
    if kind == "W":
      return [(stage, Work("B", microbatch, chunk))]
    place = (self.before if kind == "F" else self.after).get((stage, chunk))
    received = [(place[0], Work(kind, microbatch, place[1]))] if place else []
    return received if kind == "F" else [(stage, Work("F", microbatch, chunk)), *received]


def validate(schedule: Schedule) -> None:
  """Raises ValueError that names the first violation, by tick and stage, and last what never comes."""
  done: dict[tuple[int, Work], int] = {}
  needs, wanted = Needs(schedule.routes), dict.fromkeys(all_work(schedule))
  for tick, row in enumerate(schedule.table):
    if len(row) != schedule.stages:
      raise ValueError(f"tick {tick} has {len(row)} cells, expected one for each of {schedule.stages} stages")
    for stage, cell in enumerate(row):
      if len(cell) > schedule.per_tick:
        raise ValueError(f"stage {stage} does {_labels(cell)} at tick {tick}; at most {schedule.per_tick} may be done")
      for work in cell:
        if (stage, work) not in wanted:
          raise ValueError(f"stage {stage} does {label(work)} at tick {tick}, which is none of {_expected(schedule)}")
        if fault := _fault(needs(stage, work), done, tick, stage, work, schedule.joined):
          raise ValueError(f"stage {stage} does {label(work)} at tick {tick}, which {fault}")
        done[stage, work] = tick
  for stage, work in wanted:
    if (stage, work) not in done:
      raise ValueError(f"stage {stage} never does {label(work)}")


def _fault(
  needed: list[tuple[int, Work]], done: dict[tuple[int, Work], int], tick: int, stage: int, work: Work, joined: bool
) -> str | None:
  """What is wrong with this piece of work, given when those before it were done."""
  if (stage, work) in done:
    return f"it already did at tick {done[stage, work]}"
  for source, other in needed:
    when = done.get((source, other))
    at_once = source != stage or (joined and work.kind != "W")
    if when is None or (when == tick and at_once):
      return f"needs {label(other)} of stage {source} first"
  return None


def all_work(schedule: Schedule) -> Iterator[tuple[int, Work]]:
  """Every (stage, work) that the schedule must hold."""
  for microbatch, kind in itertools.product(range(schedule.microbatches), schedule.kinds):
    for stage, chunk in schedule.routes[microbatch % len(schedule.routes)]:
      yield stage, Work(kind, microbatch, chunk)


def in_flight(schedule: Schedule, *, chunk: int | None = None, until: Kind | None = None) -> tuple[int, ...]:
  """The most activations that each stage holds at once: microbatches whose F is done and whose last pass is not.

  Args:
    chunk: counts one chunk's microbatches only; without it, all chunks', each of as many layers as a chunk has.
    until: the pass that frees an activation, by default the last: W where backward is split. With W, the part that only
      B reads is free earlier: count that with `until="B"`.

  Raises:
    UsageError: `until` is a pass that the schedule does not make.
  """
  last = until or schedule.kinds[-1]
  if last not in schedule.kinds:
    raise UsageError(f"until={last!r}: this schedule has only {_passes(schedule)}, so nothing would ever be freed")
  return tuple(
    _peak([work.kind for work in schedule.order(stage) if chunk in (None, work.chunk)], last)
    for stage in range(schedule.stages)
  )


def _peak(kinds: list[Kind], until: Kind) -> int:
  held = peak = 0
  for kind in kinds:
    held += kind == "F"
    peak = max(peak, held)
    held -= kind == until
  return peak


def label(work: Work) -> str:
  """`F0` is forward of microbatch 0, `F0:1` the same for chunk 1."""
  return f"{work.kind}{work.microbatch}:{work.chunk}" if work.chunk else f"{work.kind}{work.microbatch}"


def _passes(schedule: Schedule) -> str:
  """The kinds in words: `F, B`."""
  return ", ".join(schedule.kinds)


def _expected(schedule: Schedule) -> str:
  return f"{_passes(schedule)} of {schedule.microbatches} microbatches in {schedule.chunks} chunks"


def _labels(cell: Cell) -> str:
  return "+".join(map(label, cell))
