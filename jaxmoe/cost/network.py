"""Time of one collective by the alpha-beta model: messages x latency + bytes / bandwidth.

Assumptions: ring algorithms, and the slowest tier that a group spans carries all of it. V is the payload (full-side
buffer of one device), n the group size, W the bandwidth of one device in one direction, a the latency of one message.
"""

from jaxmoe.cost.collectives import Collective
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.cluster import Cluster, NetworkTier
from jaxmoe.meshes.strategy import Strategy


def collective_s(collective: Collective, strategy: Strategy, cluster: Cluster) -> float:
  """Seconds of all executions in one step.

  Raises:
    ValueError: a kind without a formula.
  """
  tier = cluster.tier_spanning(extent(strategy, collective.axes))
  n = strategy.size(*collective.axes)
  once = _once_s(collective.kind, n, collective.payload_bytes, tier)
  return collective.count * once


def extent(strategy: Strategy, axes: tuple[str, ...]) -> int:
  """Ranks from the first to the last of a group: the span of its outermost axis in row-major rank order."""
  outermost = next(i for i, axis in enumerate(AXES) if axis in axes and strategy.size(axis) > 1)
  return strategy.size(*AXES[outermost:])


def _once_s(kind: str, n: int, payload_bytes: float, tier: NetworkTier) -> float:
  wire_s = payload_bytes / tier.bandwidth_bytes_per_s
  match kind:
    case "all-reduce":  # reduce-scatter, then all-gather
      return 2 * ((n - 1) * tier.latency_s + (n - 1) / n * wire_s)
    case "all-gather" | "reduce-scatter" | "all-to-all":  # the 1/n that stays never crosses the link
      return (n - 1) * tier.latency_s + (n - 1) / n * wire_s
    case "collective-permute":
      return tier.latency_s + wire_s
    case _:
      raise ValueError(f"no time formula for collective kind {kind!r}; add one to cost/network.py")
