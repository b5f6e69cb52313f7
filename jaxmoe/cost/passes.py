"""Time of one pass of one microbatch through the layers of a stage, by part. Sizes may be arrays, one entry a plan."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from jaxmoe.config.arrays import least, most
from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.job import Precision
from jaxmoe.config.shares import Shares
from jaxmoe.cost.collectives import Collective, LayerCollective, Sizes, attention, dense, experts, shared
from jaxmoe.cost.flops import busiest_rows, hidden_share
from jaxmoe.cost.layer import Operation, attention_operations, dense_operations, expert_operations
from jaxmoe.cost.load import load_of
from jaxmoe.cost.network import Group
from jaxmoe.cost.stage import StageLayers
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.errors import UsageError


class Device:
  """What one device of the cluster reaches in the job's dtypes.

  Raises:
    UsageError: the cluster states no peak for one.
  """

  def __init__(self, cluster: Cluster, precision: Precision):
    peak = peak_flops_per_s(cluster, precision.compute)
    weights_peak = peak if precision.matmuls is None else peak_flops_per_s(cluster, precision.matmuls)
    share = cluster.matmul_efficiency
    self.flops_per_s = peak * share
    shares = {
      "projections": share,
      "shared": share,
      "dense": share,
      "experts": cluster.expert_matmul_efficiency or share,
    }
    self.part_flops_per_s = {part: weights_peak * reached for part, reached in shares.items()}
    self.bytes_per_s = cluster.memory_bandwidth_bytes_per_s * cluster.memory_efficiency

  def operation_s(self, operation: Operation) -> Any:
    """Roofline: its matmuls or its traffic, whichever takes longer."""
    traffic_s = operation.bytes / self.bytes_per_s
    if operation.part == "elementwise":
      return traffic_s
    return most(operation.flops / self.part_flops_per_s.get(operation.part, self.flops_per_s), traffic_s)


def peak_flops_per_s(cluster: Cluster, dtype: str) -> float:
  """The cluster's matmul peak in this dtype.

  Raises:
    UsageError: the cluster states none.
  """
  if dtype not in cluster.peak_flops_per_s:
    raise UsageError(
      f"cluster {cluster.name} states no matmul peak for {dtype}; it has"
      f" {', '.join(cluster.peak_flops_per_s)}: add peak_flops_per_s.{dtype} to the cluster, or choose one of these"
    )
  return cluster.peak_flops_per_s[dtype]


class Network:
  """Groups of the mesh and the time of their collectives; groups over the same axes are worked out once."""

  def __init__(self, d: Shares):
    self.d = d
    self.groups: dict[tuple[str, ...], Group] = {}

  def group(self, axes: tuple[str, ...]) -> Group:
    if axes not in self.groups:
      self.groups[axes] = Group(self.d.strategy, axes, self.d.cluster)
    return self.groups[axes]

  def once_s(self, c: LayerCollective | Collective) -> Any:
    """Seconds of one execution; none for a group that no axis spans."""
    if not c.axes:
      return 0.0
    return self.group(c.axes).collective_s(Collective(c.part, c.kind, c.axes, c.payload_bytes, 1, c.outer_bytes))


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
  """Seconds of one microbatch in one stage, by part; `exchange` is what tokens take to their experts and back."""

  parts: dict[str, Any]
  network: Any
  exchange: Any

  @property
  def total(self) -> Any:
    return self.matmuls + self.network + self.exchange

  @property
  def matmuls(self) -> Any:
    return sum(self.parts.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Passes:
  """The passes of a microbatch: F forward, B input gradient, W weight gradient, and what backward computes again."""

  F: Pass
  B: Pass
  W: Pass
  again: Pass


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPasses:
  """Passes through one layer's attention, its experts, or the feed-forward of a dense layer; no stage changes them.

  Attributes:
    overlap: share of the exchange that is hidden, up to the stage's matmuls.
  """

  attention: Passes
  experts: Passes
  dense: Passes
  overlap: float

  def through(self, stage: StageLayers) -> Passes:
    """All passes through one stage."""
    counted = ((stage.all, self.attention), (stage.routed, self.experts), (stage.dense, self.dense))

    def one(of: Callable[[Passes], Pass]) -> Pass:
      return _sum([(layers, of(layer)) for layers, layer in counted], self.overlap)

    return Passes(one(lambda p: p.F), one(lambda p: p.B), one(lambda p: p.W), one(lambda p: p.again))


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
  """Of tokens with experts: over which axes, and what the busiest device receives over the mean."""

  axes: tuple[str, ...]
  load: Any


def layer_passes(d: Shares, device: Device, network: Network, assumed: Assumptions) -> LayerPasses:
  """All passes through one layer of each kind, nothing hidden yet."""
  z, load = Sizes(d), load_of(d, assumed)
  # With ragged rows the busiest device's share of them comes over its own links.
  exchange = Exchange(d.strategy.experts_over, load if d.job.transport == "ragged" else 1)

  def through(operations: Iterable[Operation], messages: Iterable[LayerCollective]) -> Passes:
    timed = [(op, device.operation_s(op)) for op in operations]
    sent = [(c, network.once_s(c)) for c in messages]

    def one(work: Callable[[Operation], Any], runs: Callable[[LayerCollective], Any]) -> Pass:
      return _pass([(op, work(op) * s) for op, s in timed], [(c, runs(c) * s) for c, s in sent], exchange)

    return Passes(
      F=one(lambda op: 1, lambda c: c.forward),
      B=one(lambda op: op.backward - op.weight_pass, lambda c: c.backward),
      W=one(lambda op: op.weight_pass, lambda c: 0),
      again=one(lambda op: _again(d, op), lambda c: d.recomputed * c.again),
    )

  return LayerPasses(
    attention=through(attention_operations(d), attention(z)),
    experts=through(expert_operations(d, busiest_rows(d, load)), (*experts(z), *shared(z))),
    dense=through(dense_operations(d), dense(z) if d.model.dense else ()),
    overlap=assumed.dispatch_overlap,
  )


def _again(d: Shares, operation: Operation) -> Any:
  """Share of a part's forward that backward runs once more."""
  hidden = d.hidden_recomputed * hidden_share(d) if operation.part == "experts" else 0
  return d.recomputed + hidden


def _pass(operations: list[tuple[Operation, Any]], messages: list[tuple[LayerCollective, Any]], exchange: Exchange):
  """One pass through one layer, of the seconds of its operations and messages."""
  parts: dict[str, Any] = {}
  network = exchanged = 0.0
  for op, s in operations:
    parts[op.part] = parts.get(op.part, 0.0) + s
  for c, s in messages:
    if c.part == "experts" and c.axes == exchange.axes:
      exchanged = exchanged + s * exchange.load
    else:
      network = network + s
  return Pass(parts, network, exchanged)


def _sum(counted: list[tuple[Any, Pass]], overlap: float) -> Pass:
  """One pass through so many layers of each kind, less what overlaps."""
  parts: dict[str, Any] = {}
  network = exchanged = 0.0
  for layers, layer in counted:
    for part, s in layer.parts.items():
      parts[part] = parts.get(part, 0.0) + layers * s
    network = network + layers * layer.network
    exchanged = exchanged + layers * layer.exchange
  hidden = least(overlap * exchanged, sum(parts.values())) if overlap else 0.0
  return Pass(parts, network, exchanged - hidden)
