"""Rows of the busiest device's experts over the mean of all devices, from how tokens choose."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmoe.config.arrays import least, table_of
from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import LOAD_DRAWS, MOST_POPULAR_SHARE
from jaxmoe.meshes.errors import UsageError


def load_of(d: Shares, assumed: Assumptions) -> Any:
  """The load of each plan's way to deal experts out; one device that has them all has the mean."""
  devices, experts = d.rules.shards("expert", "E"), d.model.num_experts
  match assumed.popularity:
    case None:
      return least(assumed.load, devices)
    case tuple():
      return table_of(functools.partial(busiest_over_mean, assumed.popularity), devices)
    case exponent:
      tokens = MOST_POPULAR_SHARE * d.job.query_length

      def load(on: int, batch: int) -> float:
        return power_law_load(experts, on, exponent, most_over_least=max(1, tokens * batch))

      return table_of(load, devices, d.batch)


def busiest_over_mean(rows_by_expert: Sequence[float] | NDArray[np.float64], devices: int) -> float:
  """Of a measured histogram: expert e lies on device e // (experts / devices); several histograms are averaged.

  Raises:
    UsageError: experts that cannot be dealt out evenly.
  """
  rows = np.asarray(rows_by_expert, float)
  if rows.shape[-1] % devices:
    raise UsageError(f"{rows.shape[-1]} experts do not lie evenly on {devices} devices; choose a divisor")
  by_device = rows.reshape(*rows.shape[:-1], devices, -1).sum(-1)
  return float(np.mean(by_device.max(-1) / by_device.mean(-1)))


@functools.cache
def power_law_load(num_experts: int, devices: int, exponent: float, *, most_over_least: float) -> float:
  """Of experts whose popularity x has the density x^-exponent between its least and its most, each drawn on its own.

  aiconfigurator draws so, with a most popular expert that 80 % of the tokens choose and a least popular that one does
  (docs/POWER_LAW_DISTRIBUTION.md). The mean of seeded draws.

  Args:
    exponent: above 1; the higher, the fewer experts are popular.
    most_over_least: how much more popular one expert can be than another.
  """
  if not exponent > 1:
    raise UsageError(f"a power law's exponent must be above 1, got {exponent}")
  power = 1 - exponent
  uniform = np.random.default_rng(0).random((LOAD_DRAWS, num_experts))
  popularity = (1 + uniform * (most_over_least**power - 1)) ** (1 / power)
  return busiest_over_mean(popularity, devices)
