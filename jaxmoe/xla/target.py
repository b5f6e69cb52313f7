"""What a program is compiled for."""

import dataclasses
import re

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.errors import UsageError

_TARGET = re.compile(r"(?P<cpu>cpu)(:(?P<devices>[1-9]\d*))?|tpu:(?P<topology>v\d\w*:\d+(x\d+)+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
  """`cpu` or `cpu:N`, N fake devices of this machine (default: as many as the strategy needs); or `tpu:SLICE`.

  Attributes:
    topology: of a TPU slice that need not be here, `v5p:4x4x8`; None for CPU.
  """

  devices: int | None = None
  topology: str | None = None

  @classmethod
  def parse(cls, text: str) -> "Target":
    """Raises UsageError for anything but `cpu`, `cpu:N` and `tpu:GENERATION:SHAPE`."""
    match = _TARGET.fullmatch(text)
    if not match:
      raise UsageError(
        f"--target must be cpu or cpu:N (N fake devices), or a TPU slice like tpu:v5p:4x4x8, got {text!r};"
        " the CUDA compiler is not wired yet"
      )
    return cls(devices=int(match["devices"]) if match["devices"] else None, topology=match["topology"])

  def fake_devices(self, deployment: Deployment) -> int:
    """CPU devices that the compiling process needs.

    Raises:
      UsageError: the target has fewer devices than the strategy needs, or is a slice of another size.
    """
    needed = deployment.strategy.devices
    if self.topology:
      chips = self._chips(self.topology)
      if chips != needed:
        raise UsageError(
          f"--target tpu:{self.topology} is a slice of {chips} chips, and the strategy is"
          f" {deployment.strategy.product}; name a slice of {needed} chips"
        )
      return 1
    if self.devices is not None and self.devices < needed:
      raise UsageError(f"--target cpu:{self.devices} is too small for {deployment.strategy.product}; use cpu:{needed}")
    return self.devices or needed

  def expert_kernel(self, deployment: Deployment) -> str:
    """What multiplies rows by experts there."""
    named = deployment.job.expert_kernel
    return named if named != "platform" else "tpu" if self.topology else "cpu_tiles"

  @staticmethod
  def _chips(topology: str) -> int:
    chips = 1
    for side in topology.partition(":")[2].split("x"):
      chips *= int(side)
    return chips
