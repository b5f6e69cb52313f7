"""Prices every legal plan and keeps the best; what does not fit or cannot keep a limit is counted by its reason."""

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost import time as pricing
from jaxmoe.cost.memory import peak_bytes
from jaxmoe.cost.plans import Column
from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.pipeline.schedule_facts import supported
from jaxmoe.planner.question import Question
from jaxmoe.planner.rows import Family, families, legal_rows, plans

ROWS_AT_ONCE = 2048  # arrays of a chunk stay in the processor's cache


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Candidate:
  """One priced plan; smaller is better: by the objective, then by memory.

  Attributes:
    score: what the objective minimises.
    choice: family, sizes by name, then places along schedules, rematerialisations and levels of zero.
  """

  score: float
  memory_bytes: float
  step_s: float = dataclasses.field(compare=False)
  devices: int = dataclasses.field(compare=False)
  family: Family = dataclasses.field(compare=False)
  sizes: dict[str, int] = dataclasses.field(compare=False)
  choice: tuple[int, int, int] = dataclasses.field(compare=False)

  @property
  def name(self) -> str:
    """`dp4_pp16_ep16_tp2`, axes of one device left out."""
    letters = {"dp": DATA, "pp": STAGE, "ep": EXPERT, "tp": TENSOR, "cp": CONTEXT}
    return "_".join(f"{short}{self.sizes[axis]}" for short, axis in letters.items() if self.sizes[axis] > 1) or "single"

  def deployment(self, question: Question) -> Deployment:
    """The plan as `place`, `estimate` and `verify` take it."""
    space, sizes = question.space, self.sizes
    schedule, chunks = space.schedules[self.choice[0]]
    folding = {field: getattr(self.family, field) for field in ("heads_over", "experts_over", "order")}
    strategy = Strategy(
      **{axis: sizes[axis] for axis in (*AXES, CONTEXT)}, **folding, sequence_parallel=space.sequence_parallel
    )
    job = dataclasses.replace(
      question.job,
      batch=sizes["batch"],
      microbatches=sizes["batch"] // strategy.batch_shards // sizes["sequences"],
      schedule=schedule,
      chunks=chunks,
      remat=space.remats[self.choice[1]],
      zero=space.zeros[self.choice[2]],
      transport=self.family.transport,  # pyright: ignore[reportArgumentType]
    )
    return Deployment(
      name=self.name, title=f"{question.model.name} on {question.cluster.name}", model=question.model, cluster=question.cluster, strategy=strategy, job=job
    )


@dataclasses.dataclass(slots=True)
class Found:
  """What a search leaves.

  Attributes:
    best: the best plans that keep every limit, the best first.
    smallest: of all legal plans, the one that needs least memory.
    fastest: of the plans that fit the devices' memory, the fastest.
    priced: plans whose memory was priced; `fitting`: of those, the ones that also keep every limit.
    rejected: reason -> plans.
  """

  best: list[Candidate]
  smallest: Candidate | None
  fastest: Candidate | None
  priced: int
  fitting: int
  rejected: Counter[str]

  @property
  def considered(self) -> int:
    return self.priced + sum(count for reason, count in self.rejected.items() if reason not in LIMITS)


DOES_NOT_FIT = "does not fit the memory of a device"
NO_SCHEDULE = "no such schedule for so many stages and microbatches"
TOO_SLOW = "a step takes longer than the limit"
TOO_FEW_TOKENS = "fewer tokens a second and device than the limit"
LIMITS = (DOES_NOT_FIT, TOO_SLOW, TOO_FEW_TOKENS)


def search(question: Question, keep: int = 10) -> Found:
  """Every legal plan of the space on each number of devices, priced; the `keep` best."""
  found = Found([], None, None, 0, 0, Counter())
  for devices, batch in itertools.product(question.device_counts, question.batches or (question.job.batch,)):
    one = dataclasses.replace(question, job=dataclasses.replace(question.job, batch=batch), batches=())
    _search(one, devices, found, keep)
  found.best = distinct(found.best)[:keep]
  return found


def _search(question: Question, devices: int, found: Found, keep: int) -> None:
  for family in families(question.space):
    rows = legal_rows(question, devices, family)
    found.rejected += rows.rejected
    for chunk in _chunks(rows.columns):
      _price(question, devices, family, chunk, found, 2 * keep)


def distinct(candidates: list[Candidate]) -> list[Candidate]:
  """Without plans that differ in the order of axes alone, where it changes nothing."""
  seen: set[Any] = set()
  kept: list[Candidate] = []
  for c in candidates:
    key = (c.score, c.memory_bytes, c.choice, tuple(c.sizes.values()), dataclasses.replace(c.family, order=()))
    if key not in seen:
      seen.add(key)
      kept.append(c)
  return kept


def _chunks(columns: dict[str, Column]) -> Iterator[dict[str, Column]]:
  for start in range(0, len(columns[STAGE]), ROWS_AT_ONCE):
    yield {name: column[start : start + ROWS_AT_ONCE] for name, column in columns.items()}


def _price(question: Question, devices: int, family: Family, columns: dict[str, Column], found: Found, keep: int):
  """Memory of all; time of the rows of which any plan fits."""
  space = question.space
  block = plans(question, family, columns)
  possible = _possible(block)
  shape = (len(columns[STAGE]), len(space.schedules), len(space.remats), len(space.zeros))
  found.rejected[NO_SCHEDULE] += int((~possible).sum()) * len(space.remats) * len(space.zeros)
  found.priced += int(possible.sum()) * len(space.remats) * len(space.zeros)
  with np.errstate(invalid="ignore"):
    used = np.where(possible, peak_bytes(block, question.assumptions.load), np.inf)
  used = np.broadcast_to(used, shape)
  fits = used <= question.cluster.memory_bytes - question.constraints.reserve_bytes
  found.rejected[DOES_NOT_FIT] += int((~fits & possible).sum())
  place = _Place(question, devices, family, columns)
  if used.size:
    smallest = place.candidate(np.unravel_index(int(used.argmin()), shape), used, np.zeros(shape))
    if np.isfinite(smallest.memory_bytes):
      found.smallest = min(filter(None, (found.smallest, smallest)), key=lambda c: c.memory_bytes)
  rows = fits.any(axis=(1, 2, 3))
  if rows.any():
    kept = {name: column[rows] for name, column in columns.items()}
    _time(_Place(question, devices, family, kept), used[rows], fits[rows], found, keep)


def _possible(block: Any) -> Any:
  """Schedules that exist for a row; of those of a single stage the first alone, for they are all the same."""
  stage, microbatches = block.strategy.stage, block.microbatches
  columns = [
    supported(schedule, chunks, stage, microbatches)
    & (stage * chunks <= block.model.num_layers)
    & ((stage > 1) | (place == 0))
    for place, (schedule, chunks) in enumerate(block.schedules)
  ]
  return np.concatenate(columns, axis=1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
  """Where plans of a block come from, to name one of them."""

  question: Question
  devices: int
  family: Family
  columns: dict[str, Column]

  def candidate(self, index: Any, used: Any, step_s: Any) -> Candidate:
    row, *choice = (int(i) for i in index)
    seconds = float(step_s[index])
    return Candidate(
      score=score(self.question, self.devices, seconds),
      memory_bytes=float(used[index]),
      step_s=seconds,
      devices=self.devices,
      family=self.family,
      sizes={"batch": self.question.job.batch, **{name: int(column[row]) for name, column in self.columns.items()}},
      choice=(choice[0], choice[1], choice[2]),
    )


def score(question: Question, devices: int, step_s: float) -> float:
  """What the objective minimises."""
  tokens = question.job.batch * question.job.query_length
  match question.objective:
    case "latency":
      return step_s
    case "throughput" | "cost":
      return step_s * devices / tokens
    case "devices":
      return devices + step_s * 1e-9  # the faster of equally few


def _time(place: _Place, used: Any, fits: Any, found: Found, keep: int) -> None:
  """Prices the time of rows that fit, and keeps the best."""
  question, limits = place.question, place.question.constraints
  block = plans(question, place.family, place.columns)
  with np.errstate(invalid="ignore"):
    step_s = np.broadcast_to(pricing.step_s(block, question.assumptions), used.shape)
  step_s = np.where(fits, step_s, np.inf)
  fastest = place.candidate(np.unravel_index(int(step_s.argmin()), used.shape), used, step_s)
  found.fastest = min(filter(None, (found.fastest, fastest)), key=lambda c: c.step_s)
  for reason, least_s in _limits(question, place.devices):
    late = np.isfinite(step_s) & (step_s > least_s)
    found.rejected[reason] += int(late.sum())
    step_s = np.where(late, np.inf, step_s)
  kept = int(np.isfinite(step_s).sum())
  found.fitting += kept
  best = np.argpartition(step_s, min(keep, step_s.size - 1), axis=None)[: min(keep, kept)]
  added = [place.candidate(np.unravel_index(int(i), used.shape), used, step_s) for i in best]
  found.best = heapq.nsmallest(keep, itertools.chain(found.best, (c for c in added if np.isfinite(c.step_s))))


def _limits(question: Question, devices: int) -> Iterator[tuple[str, float]]:
  """(reason, longest step that keeps the limit)."""
  limits, job = question.constraints, question.job
  if limits.max_step_s is not None:
    yield TOO_SLOW, limits.max_step_s
  if limits.min_tokens_per_s_per_device is not None:
    yield TOO_FEW_TOKENS, job.batch * job.query_length / devices / limits.min_tokens_per_s_per_device
