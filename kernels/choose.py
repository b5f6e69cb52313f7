"""Which implementation serves a call: the one that the caller names, or the one of the platform it is traced for."""

import importlib
from typing import Literal, cast

import jax

from jaxmoe.kernels.legs import Legs

Implementation = Literal["cpu_tiles", "tpu", "ragged", "hopper"]

OF_PLATFORM: dict[str, Implementation] = {"cpu": "cpu_tiles", "tpu": "tpu", "gpu": "hopper", "cuda": "hopper"}
MODULES: dict[Implementation, str] = {
  "cpu_tiles": "jaxmoe.kernels.cpu_tiles",
  "tpu": "jaxmoe.kernels.tpu",
  "ragged": "jaxmoe.kernels.ragged",
  "hopper": "jaxmoe.kernels.hopper.legs",
}


def implementation(name: Implementation | None) -> Implementation:
  """`name`, or that of the platform.

  Raises:
    ValueError: no implementation has that name.
    NotImplementedError: none is chosen for this platform.
  """
  if name is None:
    return of_platform(platform())
  if name not in MODULES:
    raise ValueError(f"implementation must be one of {', '.join(MODULES)}, or None for the platform's, got {name!r}")
  return name


def legs(name: Implementation) -> Legs:
  """The module that computes; it is imported only when chosen."""
  return cast(Legs, importlib.import_module(MODULES[name]))


def platform() -> str:
  """Platform of the mesh in use, which may be one to compile for; without a mesh, jax's default backend."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def of_platform(name: str) -> Implementation:
  if name not in OF_PLATFORM:
    raise NotImplementedError(
      f"no grouped matmul is chosen for platform {name!r}, only for {', '.join(OF_PLATFORM)};"
      " name one: implementation='ragged' runs everywhere, at the work of every expert on all rows"
    )
  return OF_PLATFORM[name]
