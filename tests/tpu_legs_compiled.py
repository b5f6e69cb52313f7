"""Compiles the feed-forward for a TPU without one, and prints its FLOPs for each one of the rows that there are.

python tests/tpu_legs_compiled.py DEVICE, with the folder `benchmarks` in PYTHONPATH
"""

import functools
import itertools
import sys

import tpu_devices

N, E, D, F = 4100, 16, 256, 512  # 4,100 rows are no whole number of tiles
ROWS, WEIGHTS, SCALES = (N, D), [(E, D, F), (E, D, F), (E, F, D)], [(E, F), (E, F), (E, D)]
FORWARD = 3 * 2 * N * D * F
PRECISIONS = ("default", "high", "highest")


def main(device: str):
  tpu_devices.without_a_tpu(device)
  import jax

  mesh = tpu_devices.mesh_of_one(device)
  array = functools.partial(
    jax.ShapeDtypeStruct, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )

  def flops(function, rows_dtype, weights_dtype, scales=()):
    operands = [array(shape, weights_dtype) for shape in WEIGHTS], [array(shape, "float32") for shape in scales]
    with jax.set_mesh(mesh):
      lowered = jax.jit(function).lower(array(ROWS, rows_dtype), *operands, array((E,), "int32"))
    return lowered.compile().cost_analysis()["flops"]

  for dtype, precision in itertools.product(("bfloat16", "float32"), PRECISIONS):
    with jax.default_matmul_precision(precision):
      print(f"{dtype}:{precision}", flops(both_passes, dtype, dtype) / (3 * FORWARD))
  print("float16", flops(both_passes, "float16", "float16") / (3 * FORWARD))
  print("float8", flops(scaled, "bfloat16", "float8_e4m3fn", SCALES) / FORWARD)


def both_passes(x, weights, _, sizes):
  import jax

  from jaxmoe.kernels.expert_ffn import expert_ffn

  y, pull = jax.vjp(lambda x, weights: expert_ffn(x, *weights, sizes, activation="silu"), x, weights)
  return y, pull(y)


def scaled(x, weights, scales, sizes):
  from jaxmoe.kernels.expert_ffn import expert_ffn

  return expert_ffn(x, *weights, sizes, activation="silu", scales=tuple(scales))


if __name__ == "__main__":
  main(sys.argv[1])
