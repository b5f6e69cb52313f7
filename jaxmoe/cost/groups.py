"""How a group of devices lies in the network."""

import math
from typing import Any

from jaxmoe.config.arrays import least, most
from jaxmoe.meshes.strategy import Folding


def members_within(strategy: Folding, axes: tuple[str, ...], span: int) -> Any:
  """Members of a group over `axes` that lie in one aligned block of `span` ranks; takes arrays of strategies.

  Along one axis a block holds span / stride neighbours, at least one and at most all.
  """
  return math.prod(least(most(span // strategy.stride(axis), 1), strategy.size(axis)) for axis in axes)
