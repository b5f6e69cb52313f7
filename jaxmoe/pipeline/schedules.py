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
    chunk: which of the stage's chunks of layers; microbatches go through chunk 0 of every stage, then chunk 1, ...
  """

  kind: Kind
  microbatch: int
  chunk: int = 0


type Cell = tuple[Work, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
  """What every stage does at every tick. One that exists is valid: every piece of work once, after all that it needs.

  Attributes:
    chunks: chunks of layers that each stage holds (`v` of interleaved schedules).
    kinds: the passes that each microbatch makes: F, F and B, or F, B and W.
    per_tick: the most pieces of work in one cell; they run in the order of the cell.
    table: `table[tick][stage]` is a cell; what it makes reaches other stages at the next tick.
  """

  stages: int
  microbatches: int
  chunks: int = 1
  kinds: tuple[Kind, ...] = ("F", "B")
  per_tick: int = 1
  table: tuple[tuple[Cell, ...], ...]

  def __post_init__(self):
    check_sizes(self.stages, self.microbatches, self.chunks)
    if not self.kinds or self.kinds != KINDS[: len(self.kinds)]:
      raise UsageError(f"kinds must be F, or F and B, or F, B and W, got {self.kinds}")
    validate(self)

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

  def order(self, stage: int) -> list[Work]:
    """The stage's work from first to last."""
    return [work for row in self.table for work in row[stage]]


def check_sizes(stages: int, microbatches: int, chunks: int = 1) -> None:
  """Raises UsageError unless all are at least 1."""
  for name, size in (("stages", stages), ("microbatches", microbatches), ("chunks", chunks)):
    if size < 1:
      raise UsageError(f"a pipeline schedule needs {name} of at least 1, got {size}")


def needs(stage: int, work: Work, *, stages: int, chunks: int) -> list[tuple[int, Work]]:
  """(stage, work) pairs that must be done before.

  Chunk c of stage s is at position c x stages + s of the model. F needs F at the position before; B needs its own F and
  B at the position after; W needs its own B.
  """
  kind, microbatch, chunk = work
  if kind == "W":
    return [(stage, Work("B", microbatch, chunk))]
  neighbour = chunk * stages + stage + (-1 if kind == "F" else 1)
  inside = 0 <= neighbour < chunks * stages
  received = [(neighbour % stages, Work(kind, microbatch, neighbour // stages))] if inside else []
  return received if kind == "F" else [(stage, Work("F", microbatch, chunk)), *received]


def validate(schedule: Schedule) -> None:
  """Raises ValueError that names the first violation, by tick and stage, and last what never comes."""
  done: dict[tuple[int, Work], int] = {}
  for tick, row in enumerate(schedule.table):
    if len(row) != schedule.stages:
      raise ValueError(f"tick {tick} has {len(row)} cells, expected one for each of {schedule.stages} stages")
    for stage, cell in enumerate(row):
      if len(cell) > schedule.per_tick:
        raise ValueError(f"stage {stage} does {_labels(cell)} at tick {tick}; at most {schedule.per_tick} may be done")
      for work in cell:
        if fault := _fault(schedule, done, tick, stage, work):
          raise ValueError(f"stage {stage} does {label(work)} at tick {tick}, {fault}")
        done[stage, work] = tick
  for stage, work in all_work(schedule):
    if (stage, work) not in done:
      raise ValueError(f"stage {stage} never does {label(work)}")


def _fault(schedule: Schedule, done: dict[tuple[int, Work], int], tick: int, stage: int, work: Work) -> str | None:
  """What is wrong with this piece of work, given when those before it were done."""
  sizes = {"stages": schedule.stages, "chunks": schedule.chunks}
  if not _exists(schedule, work):
    return f"which is none of {_passes(schedule)} of {schedule.microbatches} microbatches in {schedule.chunks} chunks"
  if (stage, work) in done:
    return f"which it already did at tick {done[stage, work]}"
  for source, needed in needs(stage, work, **sizes):
    when = done.get((source, needed))
    if when is None or (source != stage and when == tick):
      return f"which needs {label(needed)} of stage {source} first"
  return None


def _exists(schedule: Schedule, work: Work) -> bool:
  in_range = 0 <= work.microbatch < schedule.microbatches and 0 <= work.chunk < schedule.chunks
  return work.kind in schedule.kinds and in_range


def all_work(schedule: Schedule) -> Iterator[tuple[int, Work]]:
  """Every (stage, work) that the schedule must hold."""
  ranges = (range(schedule.stages), schedule.kinds, range(schedule.microbatches), range(schedule.chunks))
  for stage, kind, microbatch, chunk in itertools.product(*ranges):
    yield stage, Work(kind, microbatch, chunk)


def in_flight(schedule: Schedule, *, chunk: int | None = None, until: Kind | None = None) -> tuple[int, ...]:
  """The most activations that each stage holds at once: microbatches whose F is done and whose last pass is not.

  Args:
    chunk: counts one chunk's microbatches only; without it, all chunks, each a 1/chunks share of a stage's layers.
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


def _labels(cell: Cell) -> str:
  return "+".join(map(label, cell))
