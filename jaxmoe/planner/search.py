"""Prices every legal plan and keeps the best; what does not fit or cannot keep a limit is counted by its reason."""

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost import time as pricing
from jaxmoe.cost.load import load_of
from jaxmoe.cost.memory import peak_bytes
from jaxmoe.cost.plans import Column, Plans
from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.pipeline.schedule_facts import supported
from jaxmoe.planner.question import Question
from jaxmoe.planner.rows import BATCH, REPEATED, SEQUENCES, Family, families, legal_rows, plans
from jaxmoe.planner.space import Space

# Arrays of a chunk stay in the processor's cache; a row of serving is one plan, a row of training many.
ROWS_AT_ONCE, PLANS_AT_ONCE = 2048, 1 << 14


type See = Callable[[Block, Any, Any], None]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Candidate:
  """One priced plan; smaller is better: by the objective, then by time, by memory, and by what it uses.

  Attributes:
    score: what the objective minimises.
    features: choices other than the first of their kind in the space, and axes of more than one device.
    choice: places along schedules, rematerialisations and levels of zero.
  """

  score: float
  step_s: float
  memory_bytes: float
  features: int
  devices: int = dataclasses.field(compare=False)
  family: Family = dataclasses.field(compare=False)
  sizes: dict[str, int] = dataclasses.field(compare=False)
  choice: tuple[int, int, int] = dataclasses.field(compare=False)

  @property
  def name(self) -> str:
    """`dp4_pp16_ep16_tp2`, axes of one device left out."""
    letters = {"dp": DATA, "pp": STAGE, "ep": EXPERT, "tp": TENSOR, "cp": CONTEXT}
    return "_".join(f"{short}{self.sizes[axis]}" for short, axis in letters.items() if self.sizes[axis] > 1) or "single"

  @property
  def device_s_per_sequence(self) -> float:
    return self.step_s * self.devices / self.sizes[BATCH]

  def deployment(self, question: Question) -> Deployment:
    """The plan as `place`, `estimate` and `verify` take it."""
    space, sizes = question.space, self.sizes
    schedule, chunks = space.schedules[self.choice[0]]
    folding = {field: getattr(self.family, field) for field in ("heads_over", "experts_over", "order")}
    strategy = Strategy(**{axis: sizes[axis] for axis in (*AXES, CONTEXT)}, **folding)
    if self.family.sequence_parallel and strategy.size(*strategy.sequence_axes) > 1:
      strategy = dataclasses.replace(strategy, sequence_parallel=True)
    job = dataclasses.replace(
      question.job,
      batch=sizes[BATCH],
      microbatches=sizes[BATCH] // strategy.batch_shards // sizes[SEQUENCES],
      schedule=schedule,
      chunks=chunks,
      remat=space.remats[self.choice[1]],
      zero=space.zeros[self.choice[2]],
      transport=self.family.transport,  # pyright: ignore[reportArgumentType]
    )
    return Deployment(
      name=self.name,
      title=f"{question.model.name} on {question.cluster.name}",
      model=question.model,
      cluster=question.cluster,
      strategy=strategy,
      job=job,
      assumptions=question.assumptions,
    )


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
  replicas = block.strategy.size(*block.strategy.batch_axes, *block.strategy.slice_axes) > 1
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


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
  """Where plans of a block come from, to name one of them."""

  question: Question
  devices: int
  family: Family
  columns: dict[str, Column]

  def candidate(self, place: int, used: Any, step_s: Any) -> Candidate:
    """The plan at a place of the flattened arrays."""
    row, schedule, remat, zero = (int(i) for i in np.unravel_index(place, used.shape))
    sizes = {name: int(column[row]) for name, column in self.columns.items()}
    seconds, choice = float(step_s.flat[place]), (schedule, remat, zero)
    return Candidate(
      score=score(self.question, self.devices, sizes[BATCH], seconds),
      step_s=seconds,
      memory_bytes=float(used.flat[place]),
      features=self._features(sizes, choice),
      devices=self.devices,
      family=self.family,
      sizes=sizes,
      choice=choice,
    )

  def least(self, number: Any, used: Any, step_s: Any) -> Candidate | None:
    """The plan in which this number is least, if any is finite."""
    place = int(number.argmin())
    return self.candidate(place, used, step_s) if np.isfinite(number.flat[place]) else None

  def _features(self, sizes: dict[str, int], choice: tuple[int, ...]) -> int:
    family, space = self.family, self.question.space
    firsts = (space.heads_over[0], space.experts_over[0], space.orders[0], space.transports[0])
    others = (family.heads_over, family.experts_over, family.order, family.transport)
    used = (*(sizes[axis] > 1 for axis in (*AXES, "context")), *(place > 0 for place in choice))
    return sum(used) + sum(one != other for one, other in zip(others, firsts, strict=True))


def score(question: Question, devices: int, batch: int, step_s: float) -> float:
  """What the objective minimises."""
  return devices if question.objective == "devices" else float(rank(question, devices, batch, step_s))


def rank(question: Question, devices: int, batch: Any, step_s: Any) -> Any:
  """What orders plans on as many devices: seconds of a step, or device-seconds a token to a thousandth.

  A larger batch shares the weights' traffic among more tokens, which soon gains next to nothing and makes every user
  wait longer; equal scores go to the shorter step.
  """
  if question.objective in ("latency", "devices"):
    return step_s
  device_s: Column = np.asarray(step_s) * devices / (batch * question.job.query_length)
  return np.exp(np.round(1000 * np.log(device_s)) / 1000)


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
