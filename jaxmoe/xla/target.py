"""What a program is compiled for."""

import dataclasses
import importlib.util
import math
import re
from importlib import metadata
from typing import Literal

from jaxmoe import __version__
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import shown
from jaxmoe.meshes import slices
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.xla import cuda

# XLA takes a machine of more fake devices for a part of several, and then cannot compile for it.
MOST_FAKE_DEVICES = 2048

_TARGET = re.compile(
  r"(?P<local>local)|cpu(:(?P<devices>[1-9]\d{0,17}))?"
  r"|(?P<platform>tpu|cuda)(:(?P<generation>[a-z]\d\w{0,9})(:(?P<shape>\d{1,9}(x\d{1,9}){1,3})(:(?P<slices>[1-9]\d{0,3}))?)?)?"
)
_DEFAULT = {"tpu": "v5p", "cuda": "h200"}
# As jaxmoe/kernels chooses, which may use jax: for groups of any size, and where those of equal ones are an einsum.
_KERNELS = {"cpu": "cpu_tiles", "tpu": "tpu", "gpu": "hopper", "cuda": "hopper"}
_EINSUM = ("cpu", "tpu")
_PACKAGES = {
  "tpu": ("libtpu",),
  "cuda": ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
  """`cpu` or `cpu:N`, fake devices of this machine; TPU slices or NVIDIA hosts that need not be here; `local` ones.

  Attributes:
    devices: fake ones; None for as many as the strategy needs.
    generation: `v5p`, `h200`.
    shape: of a TPU slice, or hosts and the GPUs of each; empty until `on` chooses it for a deployment.
    slices: TPU slices of that shape.
  """

  platform: Literal["cpu", "tpu", "cuda", "local"] = "cpu"
  devices: int | None = None
  generation: str = ""
  shape: tuple[int, ...] = ()
  slices: int = 1

  @classmethod
  def parse(cls, text: str) -> "Target":
    """Raises UsageError for anything but `cpu[:N]`, `tpu[:GENERATION[:SHAPE[:SLICES]]]`, `cuda[...]` and `local`."""
    match = _TARGET.fullmatch(text)
    if not match or (match["platform"] == "cuda" and match["slices"]):
      raise UsageError(
        f"--target must be cpu or cpu:N (N fake devices, at most {MOST_FAKE_DEVICES}); tpu:{'|'.join(slices.SHAPES)},"
        " with a slice of your choice tpu:v5p:4x4x8, or several tpu:v5e:16x16:2;"
        f" cuda:{'|'.join(cuda.GENERATIONS)}, with hosts and the GPUs of each cuda:h200:16x8; or local (the devices"
        f" that are here), got '{shown(text)}'"
      )
    if match["platform"] is None:
      return cls(platform="local" if match["local"] else "cpu", devices=int(match["devices"] or 0) or None)
    return cls(
      platform="tpu" if match["platform"] == "tpu" else "cuda",
      generation=match["generation"] or _DEFAULT[match["platform"]],
      shape=tuple(map(int, (match["shape"] or "").split("x"))) if match["shape"] else (),
      slices=int(match["slices"] or 1),
    )

  def on(self, deployment: Deployment) -> "Target":
    """The same with its shape chosen for a deployment, or checked.

    Raises:
      UsageError: there is no such slice or GPU, or it has another number of devices than the strategy needs.
    """
    strategy = deployment.strategy
    if self.platform == "tpu":
      named = slices.given(self.generation, self.shape, self.slices) if self.shape else None
      picked = named or slices.chosen(self.generation, strategy.devices)
      found = dataclasses.replace(self, shape=picked.shape, slices=picked.count)
    elif self.platform == "cuda":
      cuda.check(self.generation)
      shape = self.shape or cuda.hosts(strategy.devices, deployment.cluster.devices_per_host)
      found = dataclasses.replace(self, shape=shape)
    else:
      return self
    self._check_size(found, deployment)
    return found

  @staticmethod
  def _check_size(found: "Target", deployment: Deployment) -> None:
    have, needed = found.slices * math.prod(found.shape), deployment.strategy.devices
    if have == needed:
      return
    fitting = dataclasses.replace(found, shape=(), slices=1)
    what = "a slice" if found.platform == "tpu" else "hosts"
    try:
      remedy = f"use --target {fitting.on(deployment)}"
    except UsageError as error:
      remedy = str(error)
    raise UsageError(
      f"--target {found} is {what} of {have} {'chips' if found.platform == 'tpu' else 'GPUs'}, and the strategy is"
      f" {deployment.strategy.product}; {remedy}"
    )

  def __str__(self) -> str:
    if self.platform == "cpu":
      return f"cpu:{self.devices}" if self.devices else "cpu"
    parts = [self.platform, self.generation, slices.spelled(self.shape), str(self.slices) if self.slices > 1 else ""]
    return ":".join(part for part in parts if part)

  @property
  def local(self) -> bool:
    return self.platform == "local"

  @property
  def installed(self) -> dict[str, str]:
    """Versions of the packages that this target's compiler is in; those that are not installed are left out."""
    found: dict[str, str] = {}
    for name in _PACKAGES.get(self.platform, ()):
      try:
        found[name] = metadata.version(name)
      except metadata.PackageNotFoundError:
        continue
    return found

  def require(self) -> None:
    """Raises MissingError if this target's compiler is not installed."""
    if self.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
      raise MissingError("compiling for TPU needs libtpu; install it with: pip install 'jaxmoe[tpu]'")
    if self.platform == "cuda":
      cuda.require()

  @property
  def environment(self) -> dict[str, str]:
    """What the process that compiles must find in its environment, beside the flags."""
    return {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"} if self.platform == "cuda" else {}

  @property
  def flags(self) -> str:
    """XLA's flags, beside those of every compile."""
    return cuda.flags() if self.platform == "cuda" else ""

  def fake_devices(self, deployment: Deployment) -> int | None:
    """CPU devices that the compiling process needs; None if it works with those that are here.

    Raises:
      UsageError: the target has fewer devices than the strategy needs, or more than XLA can fake.
    """
    if self.local:
      return None
    if self.platform != "cpu":
      return 1
    needed = deployment.strategy.devices
    if self.devices is not None and self.devices < needed:
      raise UsageError(f"--target cpu:{self.devices} is too small for {deployment.strategy.product}; use cpu:{needed}")
    fake = self.devices or needed
    if fake > MOST_FAKE_DEVICES:
      use = f"use --target cpu:{MOST_FAKE_DEVICES} or fewer" if needed <= MOST_FAKE_DEVICES else "name a TPU slice"
      raise UsageError(f"--target cpu fakes at most {MOST_FAKE_DEVICES} devices, got {fake}; {use}")
    return fake


CPU = Target()


def expert_kernel(deployment: Deployment, platform: str) -> str:
  """What multiplies rows by experts on a platform of jax."""
  named = deployment.job.expert_kernel
  if named != "platform":
    return named
  return "einsum" if platform in _EINSUM and deployment.job.transport != "gather" else _KERNELS[platform]


def versions(target: Target = CPU) -> dict[str, str]:
  """Versions that decide what is compiled."""
  return {
    "jaxmoe": __version__,
    **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    **target.installed,
  }
