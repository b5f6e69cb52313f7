"""Which implementation serves a call: the one that the caller names, or the one of the platform it is traced for."""

import functools
import importlib
import types
from collections.abc import Callable, Iterable
from typing import Literal, cast

import jax
from jax.custom_batching import sequential_vmap
from jax.interpreters import batching, mlir

from jaxmoe.kernels.legs import LEGS, Legs

Implementation = Literal["cpu_tiles", "tpu", "ragged", "hopper"]

OF_PLATFORM: dict[str, Implementation] = {"cpu": "cpu_tiles", "tpu": "tpu", "gpu": "hopper", "cuda": "hopper"}
MODULES: dict[Implementation, str] = {
  "cpu_tiles": "jaxmoe.kernels.cpu_tiles",
  "tpu": "jaxmoe.kernels.tpu",
  "ragged": "jaxmoe.kernels.ragged",
  "hopper": "jaxmoe.kernels.hopper.legs",
}
# Kernels that only one platform has -> its name in jax, and what it is called.
SERVES = {"tpu": ("tpu", "a TPU"), "hopper": ("cuda", "a Hopper GPU (cuda)")}


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
  """The functions of the module that computes, which is imported only when chosen; `vmap` calls them one by one.

  Together, loops of several lengths would copy whole results each turn, the compilers' kernels know no such operands,
  and a kernel would declare the work of one of them.
  """
  module = importlib.import_module(MODULES[name])
  return cast(Legs, types.SimpleNamespace(**{leg: _one_by_one(getattr(module, leg)) for leg in LEGS}))


def _one_by_one(leg: Callable) -> Callable:
  """`leg` of arrays, and perhaps of an activation."""

  def run(*operands):
    arrays = [operand for operand in operands if not isinstance(operand, str)]
    return sequential_vmap(lambda *arrays: leg(*arrays, *operands[len(arrays) :]))(*arrays)

  return run


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
  """`sizes_E`, which every leg reads, in a program that may be lowered only where the implementation serves.

  Nothing says while tracing what a program will be lowered for, nor that the compiler will split it over devices.

  Raises:
    NotImplementedError: on lowering, which eager calls do at once.
  """
  return _only_where_served(name).bind(sizes_E) if name in SERVES and not _is_interpreted() else sizes_E


def _is_interpreted() -> bool:
  """Whether Pallas's interpreter is on, which serves the CPU too, for TPU and GPU alike; jax keeps that to itself."""
  from jax._src import config

  return bool(config.pallas_tpu_interpret_mode_context_manager.value)


@functools.cache
def _only_where_served(name: Implementation):
  """The identity, as a primitive that only the implementation's platform has, on one device's part of a program."""
  from jax.extend.core import Primitive  # loads parts of Pallas, which other implementations do without

  primitive = Primitive(f"{name}_only")
  lowered = jax.jit(primitive.bind)

  @primitive.def_impl
  def _(x):
    with jax.disable_jit(False):  # where it is disabled, `lowered` would call this again
      return lowered(x)

  primitive.def_abstract_eval(lambda x: x)
  batching.defvectorized(primitive)
  mlir.register_lowering(primitive, functools.partial(_refuse, name))
  mlir.register_lowering(primitive, _serve if name == "hopper" else _pass, platform=SERVES[name][0])
  return primitive


def _refuse(name: Implementation, context, _):
  platforms = context.platforms or context.module_context.platforms
  raise NotImplementedError(
    f"implementation={name!r} needs {SERVES[name][1]}, got a program for {' and '.join(platforms)}; leave the"
    " implementation to the platform, or name another"
  )


def _pass(_, x):
  return [x]


def _serve(context, x):
  """jax refuses what follows for its TPU kernels, but not for its GPU kernels."""
  if not _is_one_devices(context.module_context.axis_context):
    raise NotImplementedError(
      "implementation='hopper' needs one device's rows and weights, got a program that the compiler splits over several"
      " devices, each of which would do all the work; call it within jax.shard_map over all axes"
    )
  return [x]


def _is_one_devices(axes) -> bool:
  """Whether a program is lowered for one device, or for each of several by itself, `shard_map` over all their axes."""
  if manual := getattr(axes, "manual_axes", None):
    return manual | set(axes.mesh.manual_axes) == frozenset(axes.mesh.axis_names)
  return getattr(axes, "num_devices", 1) in (None, 1)
