"""The planner's own best plans for a deployment's model, devices and job, beside the plan that its document gives."""

import dataclasses
import math
from typing import Literal, get_args

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.features import cannot_run, unusual, unusual_dtypes
from jaxmoe.config.job import Transport
from jaxmoe.cost.estimate import Estimate, estimate
from jaxmoe.planner.question import Question
from jaxmoe.planner.search import DOES_NOT_FIT, search
from jaxmoe.planner.space import Space, runnable_space, whole_space

# What is searched: all that can be priced, or only what this package runs and `verify` compiles.
Reach = Literal["priced", "runnable"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
RUNNABLE_TRANSPORTS: tuple[Transport, ...] = ("capacity", "gather", "dense")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnPlan:
  """The fastest plan of one search; devices, model, job, precision and capacity factor are the document's.

  Attributes:
    any_transport: whether tokens may reach their experts in another way than the document's.
    plan: None if nothing fits the devices' memory, or nothing of this model runs.
    gain: the document's step time over this plan's.
    legal: plans that were priced.
    lacking: why no plan of the model in these dtypes runs; empty if some may.
    unsearched: why the document's plan is not among those to choose from; empty if it is, and then the gain is at
      least 1.
  """

  reach: Reach
  any_transport: bool
  transports: tuple[Transport, ...]
  plan: Estimate | None
  gain: float | None
  legal: int
  lacking: str = ""
  unsearched: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnPlans:
  """`best` is like for like: the document's transport, and all that can be priced otherwise."""

  document: Estimate
  plans: tuple[OwnPlan, ...]

  @property
  def best(self) -> OwnPlan:
    return self.of("priced", any_transport=False)

  def of(self, reach: Reach, *, any_transport: bool) -> OwnPlan:
    return next(own for own in self.plans if own.reach == reach and own.any_transport == any_transport)


def own_plans(d: Deployment) -> OwnPlans:
  """The fastest plans with the document's transport and with any, of what runs here and of all that can be priced."""
  document = estimate(d)
  reaches: tuple[Reach, ...] = ("runnable", "priced")
  plans = tuple(_own_plan(document, reach, any_) for any_ in (False, True) for reach in reaches)
  return OwnPlans(document=document, plans=plans)


def space_of(d: Deployment, reach: Reach, *, any_transport: bool) -> Space:
  """What is searched: of all that can be priced also what a search usually leaves out, so that it holds what runs."""
  whole, runs = whole_space(d.job.kind), runnable_space(d.job.kind)
  if reach == "runnable":
    own = (d.job.transport,) if d.job.transport in RUNNABLE_TRANSPORTS and not any_transport else RUNNABLE_TRANSPORTS
    return dataclasses.replace(runs, transports=own)
  schedules = tuple(dict.fromkeys((*whole.schedules, *runs.schedules)))
  transports = TRANSPORTS if any_transport else (d.job.transport,)
  return dataclasses.replace(whole, transports=transports, schedules=schedules, sequence_parallel=(False, True))


def unsearched(d: Deployment, space: Space) -> str:
  """Why this space does not hold the deployment's plan; empty if it does."""
  job, strategy = d.job, d.strategy
  chosen = {
    "heads over": (strategy.heads_over, space.heads_over),
    "experts over": (strategy.experts_over, space.experts_over),
    "order of axes": (strategy.order, space.orders),
    "transport": (job.transport, space.transports),
    "schedule and chunks": ((job.schedule, job.chunks), space.schedules),
    "remat": (job.remat, space.remats),
    "zero": (job.zero, space.zeros),
    "sequence parallelism": (strategy.sequence_parallel, space.sequence_parallel),
  }
  for what, (choice, choices) in chosen.items():
    if choice not in choices:
      return f"{what} {choice} is not searched"
  if strategy.context > space.largest_context:
    return f"more than {space.largest_context} devices that share a sequence are not searched"
  if not math.log2(d.microbatch_sequences).is_integer() or not math.log2(strategy.context).is_integer():
    return "of sequences in a microbatch and devices that share one, only powers of two are searched"
  return ""


def _own_plan(document: Estimate, reach: Reach, any_transport: bool) -> OwnPlan:
  d = document.deployment
  space = space_of(d, reach, any_transport=any_transport)
  if reach == "runnable" and (lacking := _lacking(d)):
    return OwnPlan(
      reach=reach,
      any_transport=any_transport,
      transports=space.transports,
      plan=None,
      gain=None,
      legal=0,
      lacking=lacking,
      unsearched=lacking,
    )
  question = _question(d, space)
  found = search(question, keep=1)
  plan = estimate(found.best[0].deployment(question)) if found.best else None
  return OwnPlan(
    reach=reach,
    any_transport=any_transport,
    transports=space.transports,
    plan=plan,
    gain=document.time.total_s / plan.time.total_s if plan else None,
    legal=found.priced,
    unsearched=unsearched(d, space) if document.fits else DOES_NOT_FIT,
  )


def _lacking(d: Deployment) -> str:
  """What no plan of the deployment's model in its dtypes can be run for; empty if some may."""
  return cannot_run([*unusual(d.model), *unusual_dtypes(d.job.precision)])


def _question(d: Deployment, space: Space) -> Question:
  """For as many devices as the document's plan uses; kernels are the platform's choice, as not all serve all plans."""
  job = dataclasses.replace(d.job, expert_kernel="platform")
  devices = d.strategy.devices
  return Question(model=d.model, cluster=d.cluster, devices=devices, job=job, space=space, assumptions=d.assumptions)
