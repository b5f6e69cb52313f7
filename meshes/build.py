# pyright: basic
"""jax meshes and shardings for a strategy; the only file here that imports jax."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Strategy


def build_mesh(strategy: Strategy, devices=None) -> Mesh:
  """A mesh over the first `strategy.devices` of `devices` (default: those of this process's backend), rank row-major.

  Axes are Auto: jax's default (Explicit) loses the stage sharding of stacked layers.

  Args:
    devices: jax devices, real, fake or of a compile-only topology.

  Raises:
    UsageError: there are fewer devices than the strategy needs.
  """
  devices = jax.devices() if devices is None else list(devices)
  if len(devices) < strategy.devices:
    raise UsageError(
      f"strategy needs {strategy.product}, but {len(devices)} {devices[0].platform} devices are present;"
      f" for fake CPU devices set XLA_FLAGS=--xla_force_host_platform_device_count={strategy.devices} before jax starts"
    )
  grid = np.array(devices[: strategy.devices]).reshape([strategy.size(axis) for axis in AXES])
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(rules: PartitionRules, role: str, letters: str) -> PartitionSpec:
  """`spec(rules, "expert", "LEDF") == PartitionSpec("stage", "expert", None, "tensor")`."""
  return PartitionSpec(*(_entry(axes) for axes in rules.partition(role, letters)))


def sharding(mesh: Mesh, rules: PartitionRules, role: str, letters: str) -> NamedSharding:
  return NamedSharding(mesh, spec(rules, role, letters))


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
  if len(axes) == 1:
    return axes[0]
  return axes or None
