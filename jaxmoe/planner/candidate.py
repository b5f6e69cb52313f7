"""A priced plan: its name, its rank among others, and the deployment that it stands for."""

import dataclasses
from typing import Any

import numpy as np

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.plans import Column
from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.planner.question import Question
from jaxmoe.planner.rows import BATCH, SEQUENCES, Family


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
