"""Programs for the tests of `jaxmoe.xla`, compiled for fake CPU devices, or for TPUs and GPUs that are not here."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxmoe.meshes.build import cuda_devices, topology_devices
from jaxmoe.xla import cuda
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.partitioned import compile_with_dumps
from jaxmoe.xla.traffic import Moved
from jaxmoe.xla.walk import walk

STAGES = ("partitioned", "optimised")
# conftest gives what bears one of these the marker `compilers`, by its reason.
WITH_TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed")
WITH_CUDA = pytest.mark.skipif(cuda.missing() is not None, reason="the extra cuda-compile is not installed")
SIZES = {"x": 2, "y": 4}  # axes of the eight
TARGETS = ("cpu", pytest.param("tpu", marks=WITH_TPU), pytest.param("cuda", marks=WITH_CUDA))


def modules(function, *arguments, **jit_options) -> dict[str, Module]:
  """The program as partitioned and as optimised, by name."""
  lowered = jax.jit(function, **jit_options).lower(*arguments)
  compiled, partitioned, _ = compile_with_dumps(lowered)
  return {"partitioned": partitioned, "optimised": Module.from_compiled(compiled)}


def modules_on(target: str, function, *arguments, **jit_options) -> dict[str, Module]:
  """The same for one device of a target; arguments that are shapes of shards lie where they say."""
  one = SingleDeviceSharding(devices(target)[0])
  return modules(function, *(jax.tree.map(lambda x: _placed(x, one), y) for y in arguments), **jit_options)


def _placed(x, one):
  if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None:
    return x
  return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x), sharding=one)


@functools.cache
def devices(target: str) -> list:
  """Eight: fake ones, or those of a TPU v5e slice or of a host of H200."""
  if target == "tpu":
    return topology_devices("v5e:2x4")
  return cuda_devices("h200", hosts=1, gpus=8) if target == "cuda" else jax.devices()


def mesh(target: str = "cpu", /, **sizes: int) -> jax.sharding.Mesh:
  """`mesh(x=2, y=4)`, with Auto axes."""
  if target == "cpu":
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
  grid = np.array(devices(target)).reshape(tuple(sizes.values()))
  return jax.sharding.Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def two_layers(target, width=512, hidden=2048, dtype=jnp.bfloat16, over="y") -> dict[str, Module]:
  """Gradients of two layers: weights split over `over`, tokens over both axes of `SIZES`."""
  grid = mesh(target, **SIZES)

  def shape(*sizes, spec):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(grid, PartitionSpec(*spec)))

  def loss(weights, x):
    up, down = weights
    return jnp.sum((jax.nn.relu(x @ up) @ down).astype(jnp.float32) ** 2)

  split = NamedSharding(grid, PartitionSpec(over))
  weights = (shape(width, hidden, spec=(over,)), shape(hidden, width, spec=(over,)))
  x = shape(1024, width, spec=(("x", "y"),))
  return modules_on(target, jax.grad(loss), weights, x, out_shardings=(split, split))


def largest_write(module: Module) -> float:
  """Bytes that one operation in a loop writes; of what it updates in place, the update."""
  moved = Moved(module)
  return max(moved.once(visit)[1] for visit in walk(module) if visit.count > 1)
