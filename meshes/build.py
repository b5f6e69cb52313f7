# pyright: basic
"""jax meshes and shardings for a strategy; the only file here that imports jax."""

import importlib.util
import os
import pathlib

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Strategy

CUDA_TARGETS = pathlib.Path(__file__).with_name("cuda_targets")


def build_mesh(strategy: Strategy, devices=None) -> Mesh:
  """A mesh over the first `strategy.devices` of `devices` (default: those of this process's backend), in rank order.

  Axes are Auto: jax's default (Explicit) loses the stage sharding of stacked layers.

  Args:
    devices: jax devices, real, fake or of a compile-only topology.

  Raises:
    MissingError: there are fewer devices than the strategy needs.
  """
  devices = jax.devices() if devices is None else list(devices)
  if len(devices) < strategy.devices:
    raise MissingError(
      f"strategy needs {strategy.product}, but {len(devices)} {devices[0].platform} devices are present;"
      f" for fake CPU devices set XLA_FLAGS=--xla_force_host_platform_device_count={strategy.devices} before jax starts"
    )
  ranks = np.array(devices[: strategy.devices]).reshape([strategy.size(axis) for axis in strategy.order])
  grid = ranks.transpose([strategy.order.index(axis) for axis in AXES])
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def topology_devices(topology: str, slices: int = 1) -> list:
  """Devices of TPU slices that are not here, to compile for and not to run on: `topology_devices("v5p:4x4x8")`.

  Raises:
    MissingError: the extra `tpu` is not installed.
    UsageError: its compiler knows no such slice.
  """
  # libtpu asks a metadata server and its environment where it is; nowhere is the answer.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_WORKER_ID", "0")
  # libtpu lets one process hold the TPU; compiling holds none, so several may load it.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  if importlib.util.find_spec("libtpu") is None:
    raise MissingError("compiling for TPU needs libtpu; install it with: pip install 'jaxmoe[tpu]'")
  more = {"num_slices": slices} if slices > 1 else {}
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices)
  except jax.errors.JaxRuntimeError as error:
    raise UsageError(
      f"TPU slice {topology} is unknown to the TPU compiler: {error}; name one like v5e:2x4 or v5p:4x4x8"
    ) from error


def cuda_devices(generation: str, hosts: int, gpus: int) -> list:
  """NVIDIA GPUs that are not here, to compile for and not to run on: `cuda_devices("h200", hosts=16, gpus=8)`.

  The extra `cuda-compile` must be installed, and its plugin loaded with JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1.
  """
  described = (CUDA_TARGETS / f"{generation}.txtpb").read_text()
  topology = f"{hosts}x1x{gpus}"  # XLA's words: slices, which are what NVLink joins, hosts of each, GPUs of each
  return list(topologies.get_topology_desc(platform="cuda", target_config=described, topology=topology).devices)


def spec(rules: PartitionRules, role: str, letters: str) -> PartitionSpec:
  """`spec(rules, "expert", "LEDF") == PartitionSpec("stage", "expert", None, "tensor")`."""
  return PartitionSpec(*(_entry(axes) for axes in rules.partition(role, letters)))


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
  if len(axes) == 1:
    return axes[0]
  return axes or None
