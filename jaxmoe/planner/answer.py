"""What a planner answers: the best plans with all their numbers, or what is short and which plan would fit."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.legal import multiples
from jaxmoe.cost.estimate import Estimate, estimate
from jaxmoe.planner.candidate import Candidate
from jaxmoe.planner.question import Objective, Question
from jaxmoe.planner.search import REPETITIONS, Found, See, search

TIME_TO_FIRST_TOKEN_LENGTHS = (128, 512, 1024, 2048, 4096, 10_240)
LONGER_LENGTHS = (32_768, 131_072)  # where the model was trained for them
BATCHES_TRIED, DEVICES_TRIED = 8, 8  # where no plan is legal, for the nearest that is
MORE_FOR_MEMORY, MORE_FOR_TIME = 10, 3  # doublings of devices that are tried; memory is shared out, time not for long
# What an objective comes to once the number of devices is settled.
_ON_AS_MANY: dict[Objective, Objective] = {"devices": "latency", "cost": "throughput"}


@dataclasses.dataclass(frozen=True, slots=True)
class Shortage:
  """Why no plan is left.

  Attributes:
    what: `memory`, `step` or `tokens`, of which the closest plan breaks the limit; without one a sentence.
    closest: the plan that comes nearest on the devices asked for, if any is legal.
    fitting: the nearest plan that keeps every limit, on more devices; where none is legal, with another batch or on
      fewer.
    most_devices: the most that such a plan was looked for on.
  """

  what: str
  closest: Estimate | None
  fitting: Estimate | None
  most_devices: int


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
  doublings = MORE_FOR_MEMORY if found.fastest is None else MORE_FOR_TIME
  most = question.devices << doublings
  if found.smallest is None:
    other = _with_another_batch(question) or _on_fewer_devices(question)
    return Shortage(_nothing_legal(question, found, other), None, other or _nearest(question, doublings), most)
  if found.fastest is None:
    return Shortage("memory", _estimate(question, found.smallest), _nearest(question, doublings), most)
  closest, longest_s = _estimate(question, found.busiest or found.fastest), question.constraints.max_step_s
  late = longest_s is not None and closest.time.total_s > longest_s
  return Shortage("step" if late else "tokens", closest, _nearest(question, doublings), most)


def _nothing_legal(question: Question, found: Found, other: Estimate | None) -> str:
  """What would make a plan legal; if nothing is known, the reason that stands in the way most often."""
  if other is not None and other.deployment.strategy.devices == question.devices:
    batch = other.deployment.job.batch
    return f"no plan is legal with a batch of {question.job.batch} sequences; the nearest that has one is {batch}"
  if other is not None:
    fewer = other.deployment.strategy.devices
    return f"no plan is legal on {question.devices} devices; the nearest number below that has one is {fewer}"
  reasons = [(reason, count) for reason, count in found.rejected.most_common() if reason not in REPETITIONS]
  reason, count = reasons[0] if reasons else ("nothing to choose from", 0)
  return f"no plan is legal; most often ({count:,} plans): {reason}"


def _with_another_batch(question: Question) -> Estimate | None:
  """The best plan of the nearest batch that has any: a multiple of what of the devices no power of two divides."""
  wish, odd = question.job.batch, question.devices // (question.devices & -question.devices)
  if question.batches:
    return None  # several have been tried
  near = itertools.islice(multiples(odd, wish), BATCHES_TRIED)
  return _first(dataclasses.replace(question, job=dataclasses.replace(question.job, batch=batch)) for batch in near)


def _on_fewer_devices(question: Question) -> Estimate | None:
  """The best plan on the nearest smaller number of devices that has any."""
  near = range(question.devices - 1, max(0, question.devices - DEVICES_TRIED), -1)
  return _first(dataclasses.replace(question, devices=devices) for devices in near)


def _first(questions: Iterable[Question]) -> Estimate | None:
  """The best plan of the first question that has one."""
  for question in questions:
    found = search(question, keep=1)
    if found.best:
      return _estimate(question, found.best[0])
  return None


def _nearest(question: Question, doublings: int) -> Estimate | None:
  """The best plan on the fewest more devices that keeps every limit; a larger cluster than there is, if need be."""
  return _first(_on(question, question.devices << n) for n in range(1, doublings + 1))


def _on(question: Question, devices: int) -> Question:
  cluster = question.cluster
  if devices > cluster.devices:
    last = dataclasses.replace(cluster.tiers[-1], devices=max(devices, cluster.tiers[-1].devices))
    cluster = dataclasses.replace(cluster, devices=devices, tiers=(*cluster.tiers[:-1], last))
  objective = _ON_AS_MANY.get(question.objective, question.objective)
  return dataclasses.replace(question, devices=devices, cluster=cluster, objective=objective)


def first_tokens(best: Estimate, question: Question) -> dict[int, Estimate]:
  """Prompt length -> a prefill of the same batch by this plan, up to what the model and the plan take.

  Longer prompts than the job's need more memory, and may not fit.
  """
  d = best.deployment
  limit = d.model.max_sequence_length or max(TIME_TO_FIRST_TOKEN_LENGTHS)
  lengths = sorted({*TIME_TO_FIRST_TOKEN_LENGTHS, *LONGER_LENGTHS, d.job.sequence_length})
  others = {length: _of_length(d, length) for length in lengths if length <= limit}
  return {length: estimate(other, question.assumptions) for length, other in others.items() if other is not None}


def _of_length(d: Deployment, length: int) -> Deployment | None:
  try:
    return dataclasses.replace(d, job=dataclasses.replace(d.job, sequence_length=length))
  except ValueError:
    return None
