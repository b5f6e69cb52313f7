"""What planning asks of the schedules' tables, for whole arrays of stages and microbatches at once. No jax.

The numbers are measured on the tables and packaged: `schedule_facts.json` holds, for each schedule, chunks, number of
stages (1, 2, ...) and number of microbatches (1, 2, ...; interleaved schedules: 1, 2, ... times the stages) a row

  [most chunks held, idle ticks if F, B and W take one each, if only F takes one, if only B does, if only W does]

without W where backward is not split. `make schedules` writes it; `schedule_facts_make` says how far it measures.
"""

import dataclasses
import functools
import json
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmoe.meshes.errors import UsageError


def idle_s(
  schedule: str,
  chunks: int,
  stages: ArrayLike,
  microbatches: ArrayLike,
  F: ArrayLike,
  B: ArrayLike,
  W: ArrayLike = 0.0,
) -> NDArray[np.float64]:
  """Time without work of each stage, from the first forward to the end of the last pass; NaN if not `supported`.

  Idle time is convex in the costs, as a longest path, and linear while the cheapest kind of pass stays the cheapest.
  So it is the sum of what the costs do together, at the cheapest, and of what each adds alone: exact, not a fit.

  Args:
    schedule: as in `Job`: gpipe, 1f1b, interleaved or zero_bubble.
    chunks: chunks of layers that a stage holds.
    F: time of one microbatch's forward through all the layers of a stage; all stages alike, and messages free.
    B: of its backward; where the schedule has W, of the input gradient alone.
    W: of its weight gradient, if the schedule has W; else it is not read, and B is the whole backward.

  Raises:
    UsageError: no facts about this schedule in this number of chunks.
  """
  known, (_, together, *alone), _ = _facts(schedule, chunks).look_up(stages, microbatches)
  costs = [np.asarray(cost) for cost in (F, B, W)[: len(alone)]]
  least = functools.reduce(np.minimum, costs)
  idle = least * together + sum((cost - least) * ticks for cost, ticks in zip(costs, alone, strict=True))
  return np.where(known, idle / chunks, np.nan)


def in_flight(schedule: str, chunks: int, stages: ArrayLike, microbatches: ArrayLike) -> NDArray[np.float64]:
  """Most microbatches that the busiest stage holds at once, a chunk's counting 1/chunks; NaN if not `supported`.

  Held from F until the last pass, so until W where backward is split.

  Raises:
    UsageError: as for `idle_s`.
  """
  known, (held, *_), growth = _facts(schedule, chunks).look_up(stages, microbatches)
  return np.where(known, (held + growth) / chunks, np.nan)


def supported(schedule: str, chunks: int, stages: ArrayLike, microbatches: ArrayLike) -> NDArray[np.bool_]:
  """Whether there is such a schedule, and facts about so many stages and chunks.

  Raises:
    UsageError: no schedule of that name.
  """
  if _table(schedule, chunks) is None:
    return np.zeros(np.broadcast_shapes(np.shape(stages), np.shape(microbatches)), bool)
  return _facts(schedule, chunks).look_up(stages, microbatches)[0]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
  """One schedule in one number of chunks.

  Attributes:
    in_rounds: whether microbatches come in multiples of the stages.
    rows: every row of the file, one below the other, as columns.
    first: the first row of 1, 2, ... stages; `counts`: how many they have.
    growth: of the chunks held, for every further round after the last row.
  """

  in_rounds: bool
  rows: NDArray[np.float64]
  first: NDArray[np.int64]
  counts: NDArray[np.int64]
  growth: NDArray[np.float64]

  def look_up(
    self, stages: ArrayLike, microbatches: ArrayLike
  ) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """(whether there are facts, the columns of the nearest row, chunks held beyond that row's)."""
    stages, microbatches = np.asarray(stages), np.asarray(microbatches)
    S = np.clip(stages, 1, len(self.first))
    rounds, rest = np.divmod(microbatches, S) if self.in_rounds else (microbatches, 0)
    known = (stages == S) & (rounds >= 1) & (rest == 0)
    place = np.clip(rounds, 1, self.counts[S - 1])
    return known, self.rows[:, self.first[S - 1] + place - 1], self.growth[S - 1] * (rounds - place)


type _Table = list[list[list[int]]]


@functools.cache
def _file() -> dict[str, dict[str, _Table]]:
  return json.loads((resources.files("jaxmoe.pipeline") / "schedule_facts.json").read_text())


def _table(schedule: str, chunks: int) -> _Table | None:
  """[stages][round] -> row; None for chunks that the file does not have. One chunk of interleaved is plain 1F1B."""
  if schedule not in _file():
    raise UsageError(f"schedule must be one of {', '.join(_file())}, got {schedule!r}")
  plain = schedule == "interleaved" and chunks == 1
  return _file()["1f1b" if plain else schedule].get(str(chunks))


@functools.cache
def _facts(schedule: str, chunks: int) -> _Facts:
  table = _table(schedule, chunks)
  if table is None:
    have = ", ".join(_file()[schedule])
    raise UsageError(f"there are facts about {schedule} with {have} chunks, got {chunks}; add them by `make schedules`")
  counts = np.array([len(rows) for rows in table])
  rows = np.array([row for rows in table for row in rows], float).T
  ends = np.cumsum(counts)
  return _Facts(
    in_rounds=chunks > 1,
    rows=rows,
    first=ends - counts,
    counts=counts,
    growth=rows[0, ends - 1] - rows[0, ends - 2],
  )
