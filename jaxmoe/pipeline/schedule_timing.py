"""How long a schedule takes once its passes have costs. No jax.

A stage does its work in the table's order and starts each piece as soon as it is free and its inputs are there. A
result reaches another stage `send` after its end, while the sender goes on: messages overlap with compute but are never
free to the receiver. Units are the caller's: ticks, seconds.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxmoe.meshes.errors import UsageError
from jaxmoe.pipeline.schedules import Cell, Needs, Schedule, Work


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
  """Time of one pass over one chunk of layers: one number, or one a stage where stages differ.

  Attributes:
    F: forward.
    B: backward; its input gradient alone where the schedule has W.
    W: weight gradient.
    FBW: all three at once, in a cell of a schedule that joins them; without it, as long as one after the other.
    send: from the end of work on one stage to its arrival on another.
  """

  F: float | Sequence[float] = 1
  B: float | Sequence[float] = 1
  W: float | Sequence[float] = 1
  FBW: float | Sequence[float] | None = None
  send: float = 0

  def by_stage(self, stages: int) -> dict[str, tuple[float, ...]]:
    """Kind, or all of them -> cost on each stage.

    Raises:
      UsageError: costs for another number of stages, or not 0 or more.
    """
    given = {"F": self.F, "B": self.B, "W": self.W} | ({} if self.FBW is None else {"FBW": self.FBW})
    costs = {kind: _spread(cost, stages) for kind, cost in given.items()}
    for kind, by_stage in costs.items():
      if len(by_stage) != stages:
        raise UsageError(f"{len(by_stage)} costs of {kind} for {stages} stages: give one number, or one a stage")
    if not all(cost >= 0 for cost in (self.send, *itertools.chain(*costs.values()))):
      raise UsageError(f"costs must be 0 or more, got {self}")
    return costs


def _spread(cost: float | Sequence[float], stages: int) -> tuple[float, ...]:
  return tuple(cost) if isinstance(cost, Iterable) else (cost,) * stages


class Span(NamedTuple):
  """One piece of work, or several that run at once, and when."""

  cell: Cell
  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
  """When each stage does what: `spans[stage]`, from first to last."""

  spans: tuple[tuple[Span, ...], ...]

  @property
  def makespan(self) -> float:
    """End of the last piece of work; the first starts at 0."""
    return max(stage[-1].end for stage in self.spans)

  @property
  def idle(self) -> tuple[float, ...]:
    """Time without work between 0 and the makespan, by stage."""
    return tuple(self.makespan - sum(span.end - span.start for span in stage) for stage in self.spans)

  @property
  def bubble_shares(self) -> tuple[float, ...]:
    """Idle time / makespan, by stage."""
    return tuple(idle / self.makespan if idle else 0.0 for idle in self.idle)


def time_schedule(schedule: Schedule, costs: Costs) -> Timeline:
  """Every piece of work at its earliest time; with unit costs, where a table of one piece a tick has it.

  Raises:
    UsageError: costs for another number of stages, or not 0 or more.
  """
  cost, needs = costs.by_stage(schedule.stages), Needs(schedule.routes)
  ends: dict[tuple[int, Work], float] = {}
  spans: list[list[Span]] = [[] for _ in range(schedule.stages)]
  free: list[float] = [0] * schedule.stages
  for stage, cell in schedule.cells():
    start = free[stage]
    for source, needed in itertools.chain.from_iterable(needs(stage, work) for work in cell):
      end = ends.get((source, needed), 0)  # what has not ended is made in this cell
      start = max(start, end + (costs.send if source != stage else 0))
    free[stage] = start + _cell_cost(cell, stage, cost)
    ends |= {(stage, work): free[stage] for work in cell}
    spans[stage].append(Span(cell, start, free[stage]))
  return Timeline(spans=tuple(map(tuple, spans)))


def _cell_cost(cell: Cell, stage: int, cost: dict[str, tuple[float, ...]]) -> float:
  together = cost.get("".join(work.kind for work in cell))
  return together[stage] if together else sum(cost[work.kind][stage] for work in cell)
