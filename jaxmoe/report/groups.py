"""Where a group of devices lies in the network, in words."""

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.groups import members_within


def tiers(d: Deployment, axes: tuple[str, ...]) -> list[tuple[str, int]]:
  """(tier, blocks of the tier below or devices that it joins) of every tier that the group crosses, innermost first."""
  found: list[tuple[str, int]] = []
  inner, size = 1, d.strategy.size(*axes)
  for tier in d.cluster.tiers:
    last = tier is d.cluster.tiers[-1]
    members = size if last else int(members_within(d.strategy, axes, tier.devices))
    if members > inner:
      found.append((tier.name, members // inner))
    inner = members
  return found


def span(d: Deployment, axes: tuple[str, ...]) -> str:
  """`8 within nvlink`, `8 within nvlink x 2 over infiniband`, `16 over infiniband`."""
  words = [
    f"{count} {'within' if name == d.cluster.tiers[0].name else 'over'} {name}" for name, count in tiers(d, axes)
  ]
  return " x ".join(words) or "1"
