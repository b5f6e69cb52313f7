"""A cluster: what one device can do and how devices are joined, from datasheets."""

import dataclasses
from collections.abc import Mapping

from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NetworkTier:
  """One level of the network; ranks closer than `devices` apart use it.

  Attributes:
    devices: size of the aligned block of ranks that this tier joins (8 for a node of 8; the whole cluster at the top).
    bandwidth_bytes_per_s: of one device, in one direction, over all its links.
    latency_s: of one message; in a torus, of one hop.
    efficiency: share of the bandwidth that large messages reach, in (0, 1].
    torus_axes: axes of the torus that joins the devices, each with two links of a device; None where a switch does.
  """

  name: str
  devices: int
  bandwidth_bytes_per_s: float
  latency_s: float
  efficiency: float = 1.0
  torus_axes: int | None = None

  @property
  def reached_bytes_per_s(self) -> float:
    return self.bandwidth_bytes_per_s * self.efficiency


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
  """Devices of one kind.

  Attributes:
    devices: how many there are.
    devices_per_host: devices in one host.
    peak_flops_per_s: matmul peak by dtype name (`bfloat16`, `float8_e4m3fn`, ...).
    matmul_efficiency: share of the peak that matmuls reach, in (0, 1].
    expert_matmul_efficiency: share that the matmuls of a device's experts reach together; None, as any matmul.
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
  expert_matmul_efficiency: float | None = None
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
    if any(tier.torus_axes for tier in self.tiers[1:]):
      raise UsageError(
        f"cluster {self.name}: only the innermost tier can be a torus; leave torus_axes out of the others"
      )
