"""Which implementation serves a call: the one that the caller names, or the one of the platform it is traced for."""

import functools
import importlib
from collections.abc import Iterable
from typing import Literal, cast

import jax
from jax.interpreters import batching, mlir

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
  check_name(name, MODULES)
  return name


def check_name(name: str | None, known: Iterable[str]):
  """Raises ValueError unless None or `known`."""
  if name not in (None, *known):
    raise ValueError(
      f"implementation must be one of {', '.join(known)}, or None for the platform's, got {name!r}; choose one of these"
    )


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


def where_served(name: Implementation, sizes_E):
  """`sizes_E`, which every leg reads, in a program that may be lowered only for what the implementation serves.

  Nothing says while tracing what a program will be lowered for, so TPU legs are refused no earlier; `hopper` takes the
  shapes of its tiles from the device, and so raises by itself.

  Raises:
    NotImplementedError: on lowering, which eager calls do at once, for another platform.
  """
  return _tpu_only().bind(sizes_E) if name == "tpu" and not _tpu_is_interpreted() else sizes_E


def _tpu_is_interpreted() -> bool:
  """Whether the TPU interpreter is on, which serves the CPU too; jax keeps that to itself."""
  from jax._src import config

  return bool(config.pallas_tpu_interpret_mode_context_manager.value)


@functools.cache
def _tpu_only():
  """The identity, as a primitive that only TPUs have."""
  from jax.extend.core import Primitive  # loads parts of Pallas, which other implementations do without

  primitive = Primitive("tpu_only")
  lowered = jax.jit(primitive.bind)

  @primitive.def_impl
  def _(x):
    with jax.disable_jit(False):  # where it is disabled, `lowered` would call this again
      return lowered(x)

  primitive.def_abstract_eval(lambda x: x)
  batching.defvectorized(primitive)
  mlir.register_lowering(primitive, _refuse)
  mlir.register_lowering(primitive, lambda _, x: [x], platform="tpu")
  return primitive


def _refuse(context, _):
  platforms = context.platforms or context.module_context.platforms
  raise NotImplementedError(
    f"implementation='tpu' needs a TPU, got a program for {' and '.join(platforms)}; leave the implementation to the"
    " platform, or name another"
  )
