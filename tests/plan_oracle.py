"""The planner's space by plain loops: each plan is built as a `Deployment` by itself, and priced by itself."""

import dataclasses
import itertools
import math

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.load import load_of
from jaxmoe.cost.memory import memory
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.axes import AXES, TENSOR
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

DIVIDING = ("microbatches", "schedule", "chunks", "remat", "zero", "transport")


@dataclasses.dataclass(frozen=True)
class Priced:
  """A legal plan of the space."""

  deployment: Deployment
  memory_bytes: float
  step_s: float

  @property
  def devices(self):
    return self.deployment.strategy.devices

  @property
  def tokens(self):
    return self.deployment.job.batch * self.deployment.job.query_length

  def score(self, objective):
    """What is least in the best plan, a token's device-seconds to a thousandth; of equal ones the faster is better."""
    each = math.exp(round(1000 * math.log(self.step_s * self.devices / self.tokens)) / 1000)
    of_objective = {"latency": self.step_s, "throughput": each, "cost": each, "devices": self.devices}
    return of_objective[objective], self.step_s


def counts_of(devices, objective):
  """Numbers of devices that a plan may use: fewer only where fewer may be better."""
  if objective in ("latency", "throughput"):
    return [devices]
  primes = (2,) if objective == "cost" else (2, 3, 5)
  return [n for n in range(1, devices + 1) if devices % n == 0 or smooth(n, primes)]


def smooth(number, primes):
  for prime in primes:
    while number % prime == 0:
      number //= prime
  return number == 1


def factorisations(devices):
  """Sizes of the four axes."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  return [sizes for sizes in itertools.product(divisors, repeat=4) if math.prod(sizes) == devices]


def powers(most):
  return [2**n for n in range(most.bit_length())]


def strategies(devices, space):
  """Every legal strategy of so many devices."""
  foldings = itertools.product(
    factorisations(devices), space.heads_over, space.experts_over, space.orders, powers(space.largest_context),
    space.sequence_parallel,
  )  # fmt: skip
  for sizes, heads_over, experts_over, order, context, sequence_parallel in foldings:
    try:
      yield Strategy(
        **dict(zip(AXES, sizes, strict=True)),
        heads_over=heads_over,
        experts_over=experts_over,
        order=order,
        context=context,
        sequence_parallel=sequence_parallel,
      )
    except UsageError:
      continue


def jobs(question, strategy):
  """Every job that its sizes allow: the batch, whole microbatches, and the choices."""
  space = question.space
  choices = itertools.product(space.schedules, space.remats, space.zeros, space.transports)
  batches = question.batches or (question.job.batch,)
  for batch, choice in itertools.product(batches, choices):
    (schedule, chunks), remat, zero, transport = choice
    for sequences in range(1, batch + 1):
      if batch % (strategy.batch_shards * sequences) == 0:
        microbatches = batch // (strategy.batch_shards * sequences)
        changed = dict(zip(DIVIDING, (microbatches, schedule, chunks, remat, zero, transport), strict=True))
        yield dataclasses.replace(question.job, batch=batch, **changed)


def deployments(question, counts=None):
  """Every legal one, repetitions included."""
  for devices in counts or counts_of(question.devices, question.objective):
    for strategy in strategies(devices, question.space):
      if question.space.equal_stages and question.model.num_layers % strategy.stage:
        continue
      for job in jobs(question, strategy):
        try:
          yield Deployment(
            name="plan", title="", model=question.model, cluster=question.cluster, strategy=strategy, job=job
          )
        except UsageError:
          continue


def keeps_limits(question, plan):
  """Whether a priced plan fits and is as fast as asked."""
  limits, room = question.constraints, question.cluster.memory_bytes - question.constraints.reserve_bytes
  slow = limits.max_step_s is not None and plan.step_s > limits.max_step_s
  rate = plan.tokens / plan.step_s / plan.devices
  few = limits.min_tokens_per_s_per_device is not None and rate < limits.min_tokens_per_s_per_device
  return plan.memory_bytes <= room and not slow and not few


def key(d):
  """What a plan does: axes of one device leave no mark, nor does what only matters between devices."""
  s, job = d.strategy, d.job
  used = [axis for axis in s.order if s.size(axis) > 1]
  replicas = s.size(*s.batch_axes, *s.slice_axes)
  nothing_sent = s.size(*s.experts_over) == 1
  pipeline = (job.schedule, job.chunks)
  if s.stage == 1 and job.schedule != "gpipe":
    pipeline = ("any", 1)  # there is nobody to wait for
  return (
    *(s.size(axis) for axis in AXES),
    s.context,
    tuple(axis for axis in s.heads_over if axis in used),
    tuple(axis for axis in s.experts_over if axis in used),
    tuple(used),
    job.batch,
    job.microbatches,
    "ragged" if nothing_sent and job.transport == "gather" else job.transport,
    pipeline,
    job.remat,
    job.zero if replicas > 1 else 0,
    s.sequence_parallel and s.tensor > 1 and TENSOR in s.heads_over and TENSOR not in s.experts_over,
  )


def unordered(key):
  """The same without the order of axes, which costs the same where the network does not tell them apart."""
  return (*key[:7], *key[8:])


def all_plans(question):
  """Key -> a legal plan, priced; of plans that do the same the first, which splits nothing without replicas.

  Where the fewest devices are best, of numbers of devices up to the first that has a plan.
  """
  found = {}
  for devices in counts_of(question.devices, question.objective):
    for d in deployments(question, [devices]):
      if key(d) not in found:
        needs = memory(d, load_of(d, question.assumptions)).total
        found[key(d)] = Priced(d, float(needs), float(step_time(d, question.assumptions).total_s))
    if question.objective == "devices" and any(keeps_limits(question, plan) for plan in found.values()):
      break
  return found
