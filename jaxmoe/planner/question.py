"""What a planner is asked: a model, a cluster, a number of devices, a job, and what counts as best."""

import dataclasses
import math
from typing import Literal

from jaxmoe.config.assumptions import NOTHING_HIDDEN, Assumptions
from jaxmoe.config.job import WIDE_DTYPES, Job
from jaxmoe.config.legal import MOST_SIZE, divisors
from jaxmoe.config.model import ModelConfig
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.errors import UsageError
from jaxmoe.planner.space import Space

MOST_TOKENS = 1 << 36  # of a step: far below where whole numbers of 64 bits would overflow in a price
LARGEST_BATCH = 1 << 20  # that is tried where serving may choose

Objective = Literal["latency", "throughput", "devices", "cost"]
OBJECTIVES: dict[Objective, str] = {
  "latency": "least time of a step",
  "throughput": "most tokens a second and device",
  "devices": "fewest devices",
  "cost": "fewest device-seconds a token",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
  """Limits that a plan must keep, beside the device's memory.

  Attributes:
    max_step_s: of a step: a training step, a prompt's time to first token, a decoded token's time.
    min_tokens_per_s_per_device: of the step's tokens.
    reserve_bytes: of each device's memory, kept free for the runtime.
  """

  max_step_s: float | None = None
  min_tokens_per_s_per_device: float | None = None
  reserve_bytes: int = 0

  def __post_init__(self):
    for name in ("max_step_s", "min_tokens_per_s_per_device"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise UsageError(f"{name} must be above 0 and finite, got {value}")
    if self.reserve_bytes < 0:
      raise UsageError(f"reserve_bytes must be at least 0, got {self.reserve_bytes}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Question:
  """One search.

  Attributes:
    devices: used by a plan; with the objectives `devices` and `cost` at most.
    job: kind, batch, lengths and precision; the search sets the rest.
    batches: to choose from, rising; empty for the job's own.

  Raises:
    UsageError: more devices than the cluster has, or fewer than one; sizes that cannot be priced.
  """

  model: ModelConfig
  cluster: Cluster
  devices: int
  job: Job
  space: Space
  batches: tuple[int, ...] = ()
  objective: Objective = "latency"
  constraints: Constraints = Constraints()
  assumptions: Assumptions = NOTHING_HIDDEN

  def __post_init__(self):
    if not 1 <= self.devices <= self.cluster.devices:
      raise UsageError(
        f"devices must lie between 1 and the {self.cluster.devices} of cluster {self.cluster.name}, got {self.devices};"
        f" the nearest legal value is {min(max(self.devices, 1), self.cluster.devices)}"
      )
    if self.objective not in OBJECTIVES:
      raise UsageError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
    self._check_sizes()
    weights = self.job.precision.weights
    if self.job.kind == "train" and weights not in WIDE_DTYPES:
      raise UsageError(f"weights to train must be one of {', '.join(WIDE_DTYPES)}, got {weights}, which is only read")
    self.assumptions.check_experts(self.model.num_experts)

  def _check_sizes(self):
    length, batches = self.job.sequence_length, self.batches or (self.job.batch,)
    for name, size in (("sequence length", length), *(("batch", batch) for batch in batches)):
      if not 1 <= size <= MOST_SIZE:
        raise UsageError(
          f"{name} must lie between 1 and {MOST_SIZE}, got {size};"
          f" the nearest legal value is {min(max(size, 1), MOST_SIZE)}"
        )
    if max(batches) * length > MOST_TOKENS:
      raise UsageError(
        f"a batch of {max(batches)} x a sequence length of {length} must be at most {MOST_TOKENS} tokens;"
        f" the nearest legal batch is {MOST_TOKENS // length}"
      )

  @property
  def device_counts(self) -> tuple[int, ...]:
    """Numbers of devices to search, the fewest first.

    For the least cost divisors of the most, and powers of two; for the fewest also products of 2, 3 and 5, of which the
    first that has a plan ends the search.
    """
    if self.objective in ("latency", "throughput"):
      return (self.devices,)
    primes = (2,) if self.objective == "cost" else (2, 3, 5)
    return tuple(sorted({*divisors(self.devices), *_products(primes, self.devices)}))


def serving_batches(devices: int, sequence_length: int) -> tuple[int, ...]:
  """Batches to try where the number of sequences is free: powers of two times whatever else divides the devices.

  No more of them than can be priced of this length.
  """
  odd = devices >> ((devices & -devices).bit_length() - 1)
  most = min(LARGEST_BATCH, MOST_TOKENS // max(1, sequence_length))
  return tuple(
    sorted({part << n for part in divisors(odd) for n in range(LARGEST_BATCH.bit_length()) if part << n <= most})
  )


def _products(primes: tuple[int, ...], most: int) -> set[int]:
  """All numbers up to `most` without other prime factors."""
  found = {1}
  for prime in primes:
    found |= {n * prime**k for n in found for k in range(1, most.bit_length()) if n * prime**k <= most}
  return found
