"""Time of one step, term by term; sizes may be arrays, one entry a plan.

Each part of a layer takes the longer of its matmuls and its traffic; collectives come on top, less what `Assumptions`
hide. The pipeline adds the idle time of its schedule's table.
"""

import dataclasses
import functools
from typing import Any

from jaxmoe.config.arrays import least, most, total
from jaxmoe.config.assumptions import NOTHING_HIDDEN, Assumptions
from jaxmoe.config.shares import Shares
from jaxmoe.cost.collectives import Sizes, pipeline, statistics, vocabulary
from jaxmoe.cost.constants import TRAIN_PASSES
from jaxmoe.cost.flops import head_forward
from jaxmoe.cost.holdings import Holding, Stacked, holdings, in_layers, stacked_holdings, stored_gradient_bytes
from jaxmoe.cost.passes import Device, LayerPasses, Network, Pass, Passes, layer_passes
from jaxmoe.cost.stage import StageLayers, stage_layers
from jaxmoe.cost.traffic import head_bytes, update_bytes
from jaxmoe.meshes.axes import STAGE
from jaxmoe.pipeline.schedule_facts import SPLIT, idle_s


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
  """Seconds of one step on the busiest device.

  Attributes:
    matmuls: forward and backward of every layer, by part: the longer of its matmuls and its memory traffic.
    recomputation: forward that backward runs again.
    exchange: tokens to their experts and back, less what is hidden.
    layer_network: the other collectives of layers.
    bubble: idle time of the schedule.
    head: the head's matmuls.
    step_network: messages between stages, embedding, loss and statistics.
    gradients: their sum over replicas, less what is hidden, and the gathering of split weights.
    optimizer: reading and writing its state and the weights.
  """

  matmuls: dict[str, Any]
  recomputation: Any
  exchange: Any
  layer_network: Any
  bubble: Any
  head: Any
  step_network: Any
  gradients: Any
  optimizer: Any

  def plain(self) -> "StepTime":
    """One plan's step in Python's own numbers."""
    rest = {f.name: float(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "matmuls"}
    return StepTime(matmuls={part: float(s) for part, s in self.matmuls.items()}, **rest)

  def terms(self) -> dict[str, Any]:
    """Every term by name; they add up to the step."""
    rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "matmuls"}
    return {**self.matmuls, **rest}

  @property
  def total_s(self) -> Any:
    return total(self.terms().values())

  @property
  def network_s(self) -> Any:
    return self.exchange + self.layer_network + self.step_network + self.gradients

  @property
  def local_s(self) -> Any:
    """Matmuls and memory traffic."""
    return self.total_s - self.network_s - self.bubble

  @property
  def bottleneck(self) -> str:
    """The largest term of one plan."""
    terms = self.terms()
    return max(terms, key=lambda name: terms[name])


def step_time(d: Shares, assumed: Assumptions = NOTHING_HIDDEN) -> StepTime:
  """The slowest stage's step, under the cluster's stated efficiencies.

  Raises:
    UsageError: the cluster states no peak for the job's compute dtype.
  """
  common = _common(d, assumed)
  steps = [_of_stage(d, stage, common, assumed) for stage in stage_layers(d)]
  if len(steps) == 1:
    return steps[0]
  few, many = steps
  return _slower(few, many)


def step_s(d: Shares, assumed: Assumptions = NOTHING_HIDDEN) -> Any:
  """The total of `step_time` alone."""
  common = _common(d, assumed)
  return functools.reduce(most, (_of_stage(d, stage, common, assumed).total_s for stage in stage_layers(d)))


def _slower(one: StepTime, other: StepTime) -> StepTime:
  """Element by element, the step that takes longer."""
  later = other.total_s > one.total_s

  def chosen(first: Any, second: Any) -> Any:
    return second * later + first * (later == 0)

  names = {**one.matmuls, **other.matmuls}
  rest = (f.name for f in dataclasses.fields(StepTime) if f.name != "matmuls")
  return StepTime(
    matmuls={name: chosen(one.matmuls.get(name, 0.0), other.matmuls.get(name, 0.0)) for name in names},
    **{name: chosen(getattr(one, name), getattr(other, name)) for name in rest},
  )


@dataclasses.dataclass(frozen=True, slots=True)
class _Common:
  """What the stages of a plan share, worked out once for all of them."""

  layers: LayerPasses
  stacked: Stacked
  network: Network
  device: Device
  head_s: Any


def _common(d: Shares, assumed: Assumptions) -> _Common:
  device, network = Device(d.cluster, d.job.precision), Network(d)
  return _Common(layer_passes(d, device, network, assumed), stacked_holdings(d), network, device, _head_s(d, device))


def _of_stage(d: Shares, stage: StageLayers, common: _Common, assumed: Assumptions) -> StepTime:
  p, M, held = common.layers.through(stage), d.microbatches, holdings(d, stage, common.stacked)
  each = (p.F, p.B, p.W, p.again) if d.train else (p.F,)
  sums = {part: M * sum(one.parts.get(part, 0.0) for one in each[:3]) for part in p.F.parts}
  return StepTime(
    matmuls=sums,
    recomputation=M * p.again.matmuls if d.train else 0.0,
    exchange=M * sum(one.exchange for one in each),
    layer_network=M * sum(one.network for one in each),
    bubble=_bubble_s(d, p),
    head=common.head_s,
    step_network=_step_network_s(d, stage, common.network),
    gradients=_gradients_s(d, stage, held, common, p.B, assumed) if d.train else 0.0,
    optimizer=update_bytes(d, held) / common.device.bytes_per_s if d.train else 0.0,
  )


def _bubble_s(d: Shares, p: Passes) -> Any:
  """Idle time by the schedule's table; in serving the pipeline fills once."""
  if not d.train:
    return (d.strategy.stage - 1) * p.F.total
  F, B, W = p.F.total, p.B.total + p.again.total, p.W.total

  def idle(schedule: str, chunks: int) -> Any:
    split = (B, W) if schedule in SPLIT else (B + W,)
    return idle_s(schedule, chunks, d.strategy.stage, d.microbatches, F, *split)

  return d.by_schedule(idle)


def _head_s(d: Shares, device: Device) -> Any:
  flops_s = head_forward(d) / device.flops_per_s
  traffic_s = head_bytes(d) / device.bytes_per_s
  return (TRAIN_PASSES if d.train else 1) * (flops_s + traffic_s + abs(flops_s - traffic_s)) / 2


def _step_network_s(d: Shares, stage: StageLayers, network: Network) -> Any:
  z = Sizes(d)
  once = (*pipeline(z), *vocabulary(z), *statistics(z, stage))
  return sum(c.count * network.once_s(c) for c in once)


def _gradients_s(
  d: Shares, stage: StageLayers, groups: list[Holding], common: _Common, backward: Pass, assumed: Assumptions
) -> Any:
  """Sums over replicas: at once, or scattered with the weights gathered after; every microbatch where parts are split.

  Zero 2 scatters each microbatch's gradients, because it keeps only its part; zero 3 also gathers weights for every
  forward and backward. Stages that two devices hold are then summed over these, their parts where they are split.
  """
  exposed, network = _both_holders_s(d, stage, common), common.network
  for held in groups:
    if not held.axes:
      continue
    group, summed, level = network.group(held.axes), stored_gradient_bytes(held, d.job.precision), d.zero
    whole, scatter, gather = group.all_reduce_s(summed), group.gather_s(summed), group.gather_s(held.weight_bytes)
    scatters = 1 + (level >= 2) * (d.microbatches - 1)
    gathers = 1 + (level >= 3) * (d.microbatches * (2 + d.recomputed) - 1)
    exposed = exposed + (level == 0) * whole + (level >= 1) * (scatters * scatter + gathers * gather)
  if not assumed.gradient_overlap:
    return exposed
  return exposed - least(assumed.gradient_overlap * exposed, backward.matmuls)


def _both_holders_s(d: Shares, stage: StageLayers, common: _Common) -> Any:
  """Gradients of stages that two devices hold, summed over the two: half scattered, half gathered, both ways."""
  if isinstance(d.copies, int) and d.copies == 1:
    return 0.0
  pairs, seconds = common.network.group((STAGE,)), 0.0
  for held in holdings(d, stage, in_layers(common.stacked)):
    parts = 1 + (d.zero >= 1) * (d.strategy.size(*held.axes) - 1)
    seconds = seconds + pairs.permute_s(stored_gradient_bytes(held, d.job.precision) / parts)
  return (d.copies - 1) * seconds
