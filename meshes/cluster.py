"""A cluster: what one device can do and how devices are joined, from datasheets."""

import dataclasses
from collections.abc import Mapping

from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NetworkTier:
  """One level of the network; ranks closer than `devices` apart use it.

  Attributes:
    devices: size of the aligned block of ranks that this tier joins (8 for a node of 8; the whole cluster at the top).
    bandwidth_bytes_per_s: of one device, in one direction.
    latency_s: of one message.
  """

  name: str
  devices: int
  bandwidth_bytes_per_s: float
  latency_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
  """Devices of one kind.

  Attributes:
    devices: how many there are.
    devices_per_host: devices in one host.
    peak_flops_per_s: matmul peak by dtype name (`bfloat16`, `float8_e4m3fn`, ...).
    matmul_efficiency: share of the peak that matmuls reach, in (0, 1].
    memory_bytes: of one device.
    memory_bandwidth_bytes_per_s: of one device's memory.
    memory_efficiency: share of the memory bandwidth that is reached, in (0, 1].
    tiers: innermost first; the last joins all devices.
    assumptions: field name -> why it was assumed, for what no source states.
  """

  name: str
  devices: int
  devices_per_host: int
  peak_flops_per_s: Mapping[str, float]
  matmul_efficiency: float
  memory_bytes: int
  memory_bandwidth_bytes_per_s: float
  memory_efficiency: float
  tiers: tuple[NetworkTier, ...]
  source: str = ""
  assumptions: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

  def __post_init__(self):
    if self.tiers[-1].devices < self.devices:
      raise UsageError(
        f"cluster {self.name}: the last tier joins {self.tiers[-1].devices} devices but there are {self.devices};"
        " give the last tier at least as many"
      )
    spans = [tier.devices for tier in self.tiers]
    if spans != sorted(set(spans)):
      raise UsageError(f"cluster {self.name}: tiers must grow from inner to outer, got spans {spans}")

  def tier_spanning(self, extent: int) -> NetworkTier:
    """The innermost tier that joins an aligned block of `extent` ranks."""
    return next(tier for tier in self.tiers if tier.devices >= extent)
