"""Time of one collective by the alpha-beta model over the tiers of a network: messages x latency + bytes / bandwidth.

Equations 1 to 9 of docs/cost_model.md, for one plan or, element by element, for arrays of plans. V is the payload, n
the group's size; of tier i, n_i are the members in one of its blocks, W_i the bandwidth of a device in one direction,
a_i the latency of a message; n_-1 = 1, and the last tier joins all. Assumes blocks that hold whole parts of a group,
and members that send at once, each on links of its own.
"""

import functools
import itertools
import math
from typing import Any

import numpy as np

from jaxmoe.config.arrays import ceil, least, most
from jaxmoe.cost.collectives import Collective
from jaxmoe.cost.groups import members_within
from jaxmoe.meshes.cluster import Cluster, NetworkTier
from jaxmoe.meshes.strategy import Folding


def collective_s(collective: Collective, strategy: Folding, cluster: Cluster) -> Any:
  """Seconds of all executions in one step.

  Raises:
    ValueError: a kind without a formula.
  """
  return Group(strategy, collective.axes, cluster).collective_s(collective)


class Group:
  """The devices of a collective, tier by tier; one serves all collectives over the same axes.

  Attributes:
    n: devices together.
    levels: the group's part in each tier, innermost first.
  """

  def __init__(self, strategy: Folding, axes: tuple[str, ...], cluster: Cluster):
    self.n: Any = strategy.size(*axes)
    within = [members_within(strategy, axes, tier.devices) for tier in cluster.tiers[:-1]]
    bounds = itertools.pairwise([1, *within, self.n])
    self.levels = [
      Torus(tier, inner, members, strategy.devices) if tier.torus_axes else Switch(tier, inner, members)
      for tier, (inner, members) in zip(cluster.tiers, bounds, strict=True)
    ]

  def collective_s(self, collective: Collective) -> Any:
    """Seconds of all executions of a collective over this group."""
    match collective.kind:
      case "all-gather" | "reduce-scatter":
        once_s = self.gather_s(collective.payload_bytes)
      case "all-reduce":
        once_s = self.all_reduce_s(collective.payload_bytes)
      case "all-to-all":
        once_s = self.all_to_all_s(collective.payload_bytes, collective.outer_bytes)
      case "collective-permute":
        once_s = self.permute_s(collective.payload_bytes)
      case _:
        raise ValueError(f"no time formula for collective kind {collective.kind!r}; add one to cost/network.py")
    return collective.count * once_s

  def gather_s(self, payload_bytes: Any) -> Any:
    """Eq. 1, all-gather or its mirror image, reduce-scatter: tier after tier, or one ring through all of them."""
    latency_s, s_per_byte = self._gather
    return latency_s + payload_bytes * s_per_byte

  def all_reduce_s(self, payload_bytes: Any) -> Any:
    """Eq. 3: reduce-scatter and all-gather, or two trees of half the payload each, up and down."""
    latency_s, s_per_byte = self._tree
    return 2 * least(self.gather_s(payload_bytes), latency_s + payload_bytes * s_per_byte)

  def all_to_all_s(self, payload_bytes: Any, outer_bytes: Any = None) -> Any:
    """Eq. 4, each peer its own part; Eq. 5 where another block gets `outer_bytes` once and spreads them inside."""
    first_s, *others_s = [level.exchange_latency_s() for level in self.levels]
    away_s = functools.reduce(most, others_s, 0.0)
    if outer_bytes is not None:
      return first_s + away_s + self._exchange_s(payload_bytes, outer_bytes)
    within = self.levels[0].members / self.n
    return most(first_s, away_s) + self._exchange_s(payload_bytes * within, payload_bytes * (1 - within))

  def _exchange_s(self, inner_bytes: Any, outer_bytes: Any) -> Any:
    """All tiers at work at once, `inner_bytes` for the members of a block and `outer_bytes` for the others."""
    first, *outer = self.levels
    busy_s = inner_bytes * first.exchange_s_per_byte()
    others = most(self.n - first.members, 1)
    for level in outer:
      share = (level.members - level.inner) / others
      busy_s = most(busy_s, outer_bytes * share / level.bandwidth_bytes_per_s)
    return busy_s

  def permute_s(self, payload_bytes: Any) -> Any:
    """Eq. 6, each to its neighbour: the pair that is farthest apart governs."""
    latency_s = functools.reduce(most, (level.spanned * level.tier.latency_s for level in self.levels))
    s_per_byte = functools.reduce(most, (level.spanned / level.neighbour_bytes_per_s for level in self.levels))
    return latency_s + payload_bytes * s_per_byte

  @functools.cached_property
  def _gather(self) -> tuple[Any, Any]:
    tiers = sum(level.share / level.bandwidth_bytes_per_s for level in self.levels)
    ring = (1 - 1 / self.n) * self._slowest_stretch
    return sum(level.gather_latency_s(self.n) for level in self.levels), least(tiers, ring)

  @functools.cached_property
  def _tree(self) -> tuple[Any, Any]:
    return sum(level.tree_latency_s() for level in self.levels), self._slowest_stretch

  @functools.cached_property
  def _slowest_stretch(self) -> Any:
    """Seconds a byte of what passes through all members: the n_(i-1) in a block share the links out of it."""
    return functools.reduce(
      most, (level.spanned / (level.inner * level.bandwidth_bytes_per_s) for level in self.levels)
    )


class Switch:
  """A group's part in one tier, where any device reaches any other.

  Attributes:
    inner: members in one block of the next inner tier, n_(i-1).
    members: members in one block of this tier, n_i.
    spanned: whether the group crosses from one of those inner blocks to another.
    bandwidth_bytes_per_s: that a device reaches when it sends to many.
    neighbour_bytes_per_s: that it reaches when it sends to one.
  """

  def __init__(self, tier: NetworkTier, inner: Any, members: Any):
    self.tier, self.inner, self.members = tier, inner, members
    self.spanned: Any = members > inner
    self.bandwidth_bytes_per_s: Any = tier.reached_bytes_per_s
    self.neighbour_bytes_per_s: float = tier.reached_bytes_per_s

  @property
  def share(self) -> Any:
    """s_i, of the payload, and of its n pieces, that a gather or scatter moves in this tier."""
    return 1 / self.inner - 1 / self.members

  def gather_latency_s(self, n: Any) -> Any:
    return n * self.share * self.tier.latency_s

  def tree_latency_s(self) -> Any:
    return _log2(self.members / self.inner) * self.tier.latency_s

  def exchange_latency_s(self) -> Any:
    """One message's: those to all peers leave at once."""
    return self.spanned * self.tier.latency_s

  def exchange_s_per_byte(self) -> Any:
    """Of a payload for all members of the block; what a device keeps crosses nothing."""
    return (1 - 1 / self.members) / self.bandwidth_bytes_per_s


class Torus(Switch):
  """A group's part in the innermost tier, whose devices are joined to two neighbours along each of t axes: Eq. 7 to 9.

  The group is taken to fill k of the axes with rings of equal size, as if no other group used them.
  """

  def __init__(self, tier: NetworkTier, inner: Any, members: Any, devices: Any):
    super().__init__(tier, inner, members)
    t = tier.torus_axes or 1
    log2_side = most(_log2(least(devices, tier.devices)) / t, 1)  # of a ring of two at least
    log2_members = _log2(members)
    k = most(1, least(t, ceil(log2_members / log2_side - 1e-9)))  # 121 of 1331 would round above 2
    self.ring: Any = 2.0 ** (log2_members / k)
    self.hops: Any = self.spanned * k * self.ring / 2
    self.bandwidth_bytes_per_s: Any = tier.reached_bytes_per_s * k / t
    self.neighbour_bytes_per_s: float = tier.reached_bytes_per_s / (2 * t)

  def gather_latency_s(self, n: Any) -> Any:
    return self.hops * self.tier.latency_s

  def tree_latency_s(self) -> Any:
    return self.hops * self.tier.latency_s

  def exchange_latency_s(self) -> Any:
    return self.hops * self.tier.latency_s

  def exchange_s_per_byte(self) -> Any:
    return self.spanned * self.ring / 8 / self.neighbour_bytes_per_s


def _log2(number: Any) -> Any:
  return math.log2(number) if isinstance(number, int | float) else np.log2(number)
