"""What a program is compiled for."""

import dataclasses
import re

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
  """`cpu` or `cpu:N`: N fake devices of this machine; N defaults to what the strategy needs."""

  platform: str
  devices: int | None = None

  @classmethod
  def parse(cls, text: str) -> "Target":
    """Raises UsageError for anything but `cpu` and `cpu:N`."""
    match = re.fullmatch(r"cpu(?::([1-9]\d*))?", text)
    if not match:
      raise UsageError(
        f"--target must be cpu or cpu:N (N fake devices), got {text!r}; the other compilers are not wired yet"
      )
    return cls("cpu", int(match.group(1)) if match.group(1) else None)

  def device_count(self, deployment: Deployment) -> int:
    """Devices to compile for.

    Raises:
      UsageError: fewer than the strategy needs.
    """
    needed = deployment.strategy.devices
    if self.devices is not None and self.devices < needed:
      raise UsageError(f"--target cpu:{self.devices} is too small for {deployment.strategy.product}; use cpu:{needed}")
    return self.devices or needed
