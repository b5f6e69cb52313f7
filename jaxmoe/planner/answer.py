"""What a planner answers: the best plans with all their numbers, or what is short and which plan would fit."""

import dataclasses
from collections import Counter

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import Estimate, estimate
from jaxmoe.cost.time import step_s
from jaxmoe.planner.question import Objective, Question
from jaxmoe.planner.search import REPETITIONS, Candidate, Found, See, search

TIME_TO_FIRST_TOKEN_LENGTHS = (128, 512, 1024, 2048, 4096, 10_240)
MORE_DEVICES = 10  # doublings that are tried for the nearest plan that fits
# What an objective comes to once the number of devices is settled.
_ON_AS_MANY: dict[Objective, Objective] = {"devices": "latency", "cost": "throughput"}


@dataclasses.dataclass(frozen=True, slots=True)
class Shortage:
  """Why no plan is left.

  Attributes:
    what: in one sentence.
    closest: the plan that comes nearest on the devices asked for, if any is legal.
    fitting: the nearest plan that does fit, on more devices.
  """

  what: str
  closest: Estimate | None
  fitting: Estimate | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """The best plans, the best first; none, and then a shortage."""

  question: Question
  plans: tuple[Estimate, ...]
  priced: int
  considered: int
  fitting: int
  rejected: Counter[str]
  shortage: Shortage | None = None

  @property
  def best(self) -> Estimate:
    return self.plans[0]


def answer(question: Question, keep: int = 10, see: See | None = None) -> Answer:
  """Searches the space of the question; `see` is as in `search`."""
  found = search(question, keep, see)
  plans = tuple(_estimate(question, candidate) for candidate in found.best)
  shortage = None if plans else _shortage(question, found)
  return Answer(question, plans, found.priced, found.considered, found.fitting, found.rejected, shortage)


def _estimate(question: Question, candidate: Candidate) -> Estimate:
  return estimate(candidate.deployment(question), question.assumptions)


def _shortage(question: Question, found: Found) -> Shortage:
  """The limit that the nearest plan breaks."""
  if found.smallest is None:
    return Shortage(_nothing_legal(found), None, _nearest(question))
  if found.fastest is None:
    closest = _estimate(question, found.smallest)
    return Shortage(_too_large(question, closest), closest, _nearest(question))
  closest = _estimate(question, found.busiest or found.fastest)
  return Shortage(_too_slow(question, closest), closest, _nearest(question))


def _nothing_legal(found: Found) -> str:
  """The reason that stands in the way most often."""
  reasons = [(reason, count) for reason, count in found.rejected.most_common() if reason not in REPETITIONS]
  reason, count = reasons[0] if reasons else ("nothing to choose from", 0)
  return f"no plan is legal; most often ({count:,} plans): {reason}"


def _too_large(question: Question, closest: Estimate) -> str:
  room = max(0, question.cluster.memory_bytes - question.constraints.reserve_bytes)
  classes = dataclasses.asdict(closest.memory)
  largest = max(classes, key=lambda name: classes[name])
  over = closest.memory.total - room
  return (
    f"memory is short: the plan that needs least, {closest.deployment.name}, needs {closest.memory.total / 1e9:.4g} GB"
    f" of the {room / 1e9:.4g} GB that a device has for it, {over / 1e9:.4g} GB too many; most of it is {largest}"
    f" ({classes[largest] / 1e9:.4g} GB)"
  )


def _too_slow(question: Question, closest: Estimate) -> str:
  limits, d = question.constraints, closest.deployment
  if limits.max_step_s is not None and closest.time.total_s > limits.max_step_s:
    took = f"a step takes {closest.time.total_s:.4g} s, and {limits.max_step_s:.4g} s are allowed"
    return f"time is short: in the fastest plan that fits, {d.name}, {took}"
  rate = closest.tokens_per_s / d.strategy.devices
  made = f"a device makes {rate:.4g} tokens a second, and {limits.min_tokens_per_s_per_device:.4g} are asked for"
  return f"time is short: in the plan that makes most, {d.name}, {made}"


def _nearest(question: Question) -> Estimate | None:
  """The best plan on the fewest more devices that keeps every limit; a larger cluster than there is, if need be."""
  for doublings in range(1, MORE_DEVICES + 1):
    larger = _on(question, question.devices << doublings)
    found = search(larger, keep=1)
    if found.best:
      return _estimate(larger, found.best[0])
  return None


def _on(question: Question, devices: int) -> Question:
  cluster = question.cluster
  if devices > cluster.devices:
    last = dataclasses.replace(cluster.tiers[-1], devices=max(devices, cluster.tiers[-1].devices))
    cluster = dataclasses.replace(cluster, devices=devices, tiers=(*cluster.tiers[:-1], last))
  objective = _ON_AS_MANY.get(question.objective, question.objective)
  return dataclasses.replace(question, devices=devices, cluster=cluster, objective=objective)


def times_to_first_token(best: Estimate, question: Question) -> dict[int, float]:
  """Prompt length -> seconds of a prefill of the same batch by this plan, up to what the model and the plan take."""
  limit = best.deployment.model.max_sequence_length or max(TIME_TO_FIRST_TOKEN_LENGTHS)
  lengths = sorted({*TIME_TO_FIRST_TOKEN_LENGTHS, best.deployment.job.sequence_length})
  found: dict[int, float] = {}
  for length in lengths:
    other = _of_length(best.deployment, length)
    if length <= limit and other is not None:
      found[length] = float(step_s(other, question.assumptions))
  return found


def _of_length(d: Deployment, length: int) -> Deployment | None:
  try:
    return dataclasses.replace(d, job=dataclasses.replace(d.job, sequence_length=length))
  except ValueError:
    return None
