"""Prices every legal plan and keeps the best; what does not fit or cannot keep a limit is counted by its reason."""

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxmoe.cost import time as pricing
from jaxmoe.cost.load import load_of
from jaxmoe.cost.memory import peak_bytes
from jaxmoe.cost.plans import Column, Plans
from jaxmoe.meshes.axes import STAGE
from jaxmoe.pipeline.schedule_facts import supported
from jaxmoe.planner.candidate import Block, Candidate, distinct, rank
from jaxmoe.planner.question import Question
from jaxmoe.planner.rows import REPEATED, Family, families, legal_rows, plans
from jaxmoe.planner.space import Space

# Arrays of a chunk stay in the processor's cache; a row of serving is one plan, a row of training many.
ROWS_AT_ONCE, PLANS_AT_ONCE = 2048, 1 << 14


type See = Callable[[Block, Any, Any], None]


@dataclasses.dataclass(slots=True)
class Found:
  """What a search leaves.

  Attributes:
    best: the best plans that keep every limit, the best first.
    smallest: of all legal plans, the one that needs least memory.
    fastest: of the plans that fit the devices' memory, the fastest.
    busiest: of those whose step keeps its limit, the one with most tokens a second and device.
    priced: legal plans, whose memory was priced.
    timed: of those, the ones whose time was priced too: all choices of a row of which any fits.
    fitting: of those, the ones that keep every limit.
    rejected: reason -> plans.
    see: is shown every block of plans of which one fits: where they come from, their bytes and their seconds, which
      are infinite for what breaks a limit.
  """

  best: list[Candidate] = dataclasses.field(default_factory=list["Candidate"])
  smallest: Candidate | None = None
  fastest: Candidate | None = None
  busiest: Candidate | None = None
  priced: int = 0
  timed: int = 0
  fitting: int = 0
  rejected: Counter[str] = dataclasses.field(default_factory=Counter[str])
  see: See | None = None

  @property
  def considered(self) -> int:
    return self.priced + sum(count for reason, count in self.rejected.items() if reason not in LIMITS)


DOES_NOT_FIT = "does not fit the memory of a device"
NO_SCHEDULE = "no such schedule for so many stages and microbatches"
NO_REPLICAS = "zero without replicas to split anything among"
TOO_SLOW = "a step takes longer than the limit"
TOO_FEW_TOKENS = "fewer tokens a second and device than the limit"
LIMITS = (DOES_NOT_FIT, TOO_SLOW, TOO_FEW_TOKENS)
REPETITIONS = (REPEATED, NO_REPLICAS)  # of legal plans


def search(question: Question, keep: int = 10, see: See | None = None) -> Found:
  """Every legal plan of the space on each number of devices, priced; the `keep` best.

  Args:
    see: as in `Found`.
  """
  found = Found(see=see)
  for devices in question.device_counts:
    _search(question, devices, found, keep)
    if question.objective == "devices" and found.best:
      break  # more are not fewer
  found.best = distinct(found.best)[:keep]
  return found


def _search(question: Question, devices: int, found: Found, keep: int) -> None:
  for family in families(question.space):
    rows = legal_rows(question, devices, family)
    found.rejected += rows.rejected
    for chunk in _chunks(rows.columns, max(ROWS_AT_ONCE, PLANS_AT_ONCE // question.space.choices)):
      _price(question, devices, family, chunk, found, keep * len(question.space.orders))


def _chunks(columns: dict[str, Column], rows: int) -> Iterator[dict[str, Column]]:
  for start in range(0, len(columns[STAGE]), rows):
    yield {name: column[start : start + rows] for name, column in columns.items()}


def _price(question: Question, devices: int, family: Family, columns: dict[str, Column], found: Found, keep: int):
  """Memory of all; time of the rows of which any plan fits."""
  space = question.space
  block = plans(question, family, columns)
  legal = _legal(block, space, found.rejected)
  found.priced += int(legal.sum()) * len(space.remats)
  with np.errstate(invalid="ignore"):
    used = np.where(legal, peak_bytes(block, load_of(block, question.assumptions)), np.inf)
  shape = (len(columns[STAGE]), len(space.schedules), len(space.remats), len(space.zeros))
  used = np.broadcast_to(used, shape)
  fits = used <= question.cluster.memory_bytes - question.constraints.reserve_bytes
  found.rejected[DOES_NOT_FIT] += int((~fits & legal).sum())
  smallest = Block(question, devices, family, columns).least(used, used, np.full(shape, np.inf))
  found.smallest = _lesser(found.smallest, smallest, lambda c: c.memory_bytes)
  rows = fits.any(axis=(1, 2, 3))
  if rows.any():
    found.timed += int(legal[rows].sum()) * len(space.remats)
    kept = {name: column[rows] for name, column in columns.items()}
    _time(Block(question, devices, family, kept), used[rows], fits[rows], found, keep)


def _legal(block: Plans, space: Space, rejected: Counter[str]) -> Any:
  """(rows, schedules, 1, levels of zero), whether there is such a plan and none before it is the same."""
  exists, fresh = _schedules(block)
  replicas = block.strategy.size(*block.strategy.token_axes) > 1
  splits = replicas | (np.arange(len(space.zeros)) == 0)
  each = len(space.remats) * len(space.zeros)
  rejected[NO_SCHEDULE] += int((~exists).sum()) * each
  rejected[REPEATED] += int((exists & ~fresh).sum()) * each
  rejected[NO_REPLICAS] += int((exists & fresh & ~splits).sum()) * len(space.remats)
  return exists & fresh & splits


def _schedules(block: Plans) -> tuple[Any, Any]:
  """Whether a row has a schedule, and does not have it yet: with one stage, all but a scan over ticks are the same."""
  stage, microbatches, layers = block.strategy.stage, block.microbatches, block.model.num_layers
  exists: list[Column] = []
  fresh: list[Column] = []
  taken: Column = np.zeros(stage.shape, bool)
  for schedule, chunks in block.schedules:
    exists.append(supported(schedule, chunks, stage, microbatches) & (stage * chunks <= layers))
    if schedule == "gpipe":
      exists[-1] &= (layers % stage == 0) | (not block.train)
      fresh.append(np.ones(stage.shape, bool))
    else:
      fresh.append(~taken)
      taken = taken | (exists[-1] & (stage == 1))
  return np.concatenate(exists, axis=1), np.concatenate(fresh, axis=1)


def _time(place: Block, used: Any, fits: Any, found: Found, keep: int) -> None:
  """Prices the time of rows that fit, and keeps the best."""
  question = place.question
  block = plans(question, place.family, place.columns)
  with np.errstate(invalid="ignore"):
    step_s = np.broadcast_to(pricing.step_s(block, question.assumptions), used.shape)
  step_s = np.where(fits, step_s, np.inf)
  found.fastest = _lesser(found.fastest, place.least(step_s, used, step_s), lambda c: c.step_s)
  for reason, longest_s in _limits(question, place.devices, block.batch):
    if reason == TOO_FEW_TOKENS:
      busiest = place.least(step_s / block.batch, used, step_s)
      found.busiest = _lesser(found.busiest, busiest, lambda c: c.device_s_per_sequence)
    late = np.isfinite(step_s) & (step_s > longest_s)
    found.rejected[reason] += int(late.sum())
    step_s = np.where(late, np.inf, step_s)
  found.fitting += int(np.isfinite(step_s).sum())
  ranks = rank(question, place.devices, block.batch, step_s)
  added = [place.candidate(int(i), used, step_s) for i in _least(ranks, step_s, used, keep)]
  found.best = heapq.nsmallest(keep, itertools.chain(found.best, added))
  if found.see is not None:
    found.see(place, used, step_s)


def _lesser(one: Candidate | None, other: Candidate | None, number: Callable[[Candidate], float]) -> Candidate | None:
  return min(filter(None, (one, other)), key=number, default=None)


def _least(ranks: Any, step_s: Any, used: Any, keep: int) -> Any:
  """Places of the `keep` least ranks that are finite; of equal ones, of the shortest time, then of the least memory."""
  last = np.partition(ranks, min(keep, ranks.size) - 1, axis=None)[min(keep, ranks.size) - 1]
  near = np.flatnonzero((ranks <= last) & np.isfinite(step_s))
  return near[np.lexsort((used.flat[near], step_s.flat[near], ranks.flat[near]))][:keep]


def _limits(question: Question, devices: int, batch: Any) -> Iterator[tuple[str, Any]]:
  """(reason, longest step that keeps the limit), the limit of tokens last."""
  limits, job = question.constraints, question.job
  if limits.max_step_s is not None:
    yield TOO_SLOW, limits.max_step_s
  if limits.min_tokens_per_s_per_device is not None:
    yield TOO_FEW_TOKENS, batch * job.query_length / devices / limits.min_tokens_per_s_per_device
