"""What a program is compiled for."""

import dataclasses
import re

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import UsageError

# XLA takes a machine of more fake devices for a part of several, and then cannot compile for it.
MOST_FAKE_DEVICES = 2048

_TARGET = re.compile(
  r"(?P<local>local)|cpu(:(?P<devices>[1-9]\d{0,17}))?|tpu:(?P<topology>v\d\w{0,9}:\d{1,9}(x\d{1,9}){1,3})"
)
_KERNELS = {"cpu": "cpu_tiles", "tpu": "tpu", "gpu": "hopper", "cuda": "hopper"}


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
  """`cpu` or `cpu:N`, fake devices of this machine; `tpu:SLICE`; or `local`, the devices that are here.

  Attributes:
    devices: fake ones; None for as many as the strategy needs.
    topology: of a TPU slice that need not be here, `v5p:4x4x8`.
  """

  devices: int | None = None
  topology: str | None = None
  local: bool = False

  @classmethod
  def parse(cls, text: str) -> "Target":
    """Raises UsageError for anything but `cpu`, `cpu:N`, `tpu:GENERATION:SHAPE` and `local`."""
    match = _TARGET.fullmatch(text)
    if not match:
      raise UsageError(
        f"--target must be cpu or cpu:N (N fake devices, at most {MOST_FAKE_DEVICES}), a TPU slice like tpu:v5p:4x4x8,"
        f" or local (the devices that are here), got '{shown(text)}'; the CUDA compiler is not wired yet"
      )
    devices = int(match["devices"]) if match["devices"] else None
    return cls(devices=devices, topology=match["topology"], local=bool(match["local"]))

  def fake_devices(self, deployment: Deployment) -> int | None:
    """CPU devices that the compiling process needs; None if it works with those that are here.

    Raises:
      UsageError: the target has fewer devices than the strategy needs, or more than XLA can fake, or is a slice of
        another size.
    """
    if self.local:
      return None
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
    fake = self.devices or needed
    if fake > MOST_FAKE_DEVICES:
      use = f"use --target cpu:{MOST_FAKE_DEVICES} or fewer" if needed <= MOST_FAKE_DEVICES else "name a TPU slice"
      raise UsageError(f"--target cpu fakes at most {MOST_FAKE_DEVICES} devices, got {fake}; {use}")
    return fake

  @staticmethod
  def _chips(topology: str) -> int:
    chips = 1
    for side in topology.partition(":")[2].split("x"):
      chips *= int(side)
    return chips


CPU = Target()


def expert_kernel(deployment: Deployment, platform: str) -> str:
  """What multiplies rows by experts on a platform of jax."""
  named = deployment.job.expert_kernel
  return _KERNELS[platform] if named == "platform" else named
