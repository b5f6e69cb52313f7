"""What planning asks of the schedules' tables, for whole arrays of stages and microbatches at once. No jax.

The numbers are measured on the tables and packaged: `schedule_facts.json` holds, for each schedule, chunks, number of
stages (1, 2, ...) and number of microbatches (as `fewest_and_step` says) a row

  [most chunks held, then of idle time the multiples of F, B, W, of the least of F and B, F and W, B and W, of all]

without those of W where backward is not split. `make schedules` writes it; `schedule_facts_make` says how far it
measures.
"""

import dataclasses
import functools
import itertools
import json
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmoe.meshes.errors import UsageError

SPLIT = ("zero_bubble", "dualpipe")  # whose backward is B and, by itself, W


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

  Idle time is linear in the costs while their order stays, so a sum of multiples of the costs and of the least of
  several: exact, not a fit.

  Args:
    schedule: as in `Job`: gpipe, 1f1b, interleaved, zero_bubble or dualpipe, of which what runs at once
      takes as long as one after the other.
    chunks: chunks of layers that a stage holds.
    F: time of one microbatch's forward through all the layers of a stage; all stages alike, and messages free.
    B: of its backward; where the schedule has W, of the input gradient alone.
    W: of its weight gradient, if the schedule has W; else it is not read, and B is the whole backward.

  Raises:
    UsageError: no facts about this schedule in this number of chunks.
  """
  facts = _facts(schedule, chunks)
  known, row, _ = facts.look_up(stages, microbatches)
  costs = [np.asarray(cost) for cost in (F, B, W)]
  least = (functools.reduce(np.minimum, (costs[kind] for kind in kinds)) for kinds in facts.kinds)
  idle = sum(cost * multiple for cost, multiple in zip(least, row[1:], strict=True))
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


def fewest_and_step(schedule: str, chunks: int, stages: Any) -> tuple[Any, Any]:
  """The fewest microbatches that a schedule takes, and how many more it may take at a time."""
  if schedule == "dualpipe":
    return 2 * stages, 2
  return (stages, stages) if chunks > 1 else (1, 1)


def parts(kinds: int) -> list[tuple[int, ...]]:
  """What columns belong to: each kind of pass alone, each two, ..., all."""
  return [part for size in range(1, kinds + 1) for part in itertools.combinations(range(kinds), size)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
  """One schedule in one number of chunks.

  Attributes:
    name, chunks: which.
    kinds: the parts, as `parts`, that idle time has any of.
    rows: every row of the file, one below the other, as columns: what is held, then one for each of `kinds`.
    first: the first row of 1, 2, ... stages; `counts`: how many they have, none where there is no such schedule.
    growth: of the chunks held, for every further row after the last.
  """

  name: str
  chunks: int
  kinds: list[tuple[int, ...]]
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
    fewest, step = fewest_and_step(self.name, self.chunks, S)
    row, rest = np.divmod(microbatches - fewest, step)
    last = self.counts[S - 1] - 1
    known = (stages == S) & (row >= 0) & (rest == 0) & (last >= 0)
    place = np.clip(row, 0, last)
    return known, self.rows[:, self.first[S - 1] + place], self.growth[S - 1] * (row - place)


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
  kinds = [2, 3][schedule in SPLIT]
  has = rows[1:].any(axis=1)
  ends = np.cumsum(counts)
  return _Facts(
    name=schedule,
    chunks=chunks,
    kinds=[part for part, any_idle in zip(parts(kinds), has, strict=True) if any_idle],
    rows=rows[[True, *has]],
    first=ends - counts,
    counts=counts,
    growth=rows[0, ends - 1] - rows[0, ends - 2],
  )
