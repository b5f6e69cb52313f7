"""Compiles the feed-forward for a TPU without one, and prints its FLOPs for each one of the rows that there are.

python tests/tpu_legs_compiled.py DEVICE
"""

import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import tpu_devices

device = sys.argv[1]
tpu_devices.without_a_tpu(device)
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from jaxmoe.kernels.expert_ffn import expert_ffn  # noqa: E402

N, E, D, F = 4100, 16, 256, 512  # 4,100 rows are no whole number of tiles
ROWS, WEIGHTS, SCALES = (N, D), [(E, D, F), (E, D, F), (E, F, D)], [(E, F), (E, F), (E, D)]
mesh = tpu_devices.mesh_of_one(device)


def array(shape, dtype):
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)


def both_passes(x, weights, sizes):
  y, pull = jax.vjp(lambda x, weights: expert_ffn(x, *weights, sizes, activation="silu"), x, weights)
  return y, pull(y)


def scaled(x, weights, scales, sizes):
  return expert_ffn(x, *weights, sizes, activation="silu", scales=tuple(scales))


def flops(function, *arguments) -> float:
  with jax.set_mesh(mesh):
    return jax.jit(function).lower(*arguments, array((E,), jnp.int32)).compile().cost_analysis()["flops"]


forward = 3 * 2 * N * D * F
for dtype, precision in itertools.product(("bfloat16", "float32"), ("default", "high", "highest")):
  with jax.default_matmul_precision(precision):
    weights = [array(shape, dtype) for shape in WEIGHTS]
    print(f"{dtype}:{precision}", flops(both_passes, array(ROWS, dtype), weights) / (3 * forward))
weights = [array(shape, "float16") for shape in WEIGHTS]
print("float16", flops(both_passes, array(ROWS, "float16"), weights) / (3 * forward))
weights, scales = [array(shape, "float8_e4m3fn") for shape in WEIGHTS], [array(shape, "float32") for shape in SCALES]
print("float8", flops(scaled, array(ROWS, "bfloat16"), weights, scales) / forward)
