"""What the TPU compiler does that `jaxmoe/kernels/tpu_chip.py` repeats; needs libtpu, no TPU.

python benchmarks/tpu_compiler.py DEVICE [--shapes N,K,F ...]

Prints JSON: VMEM that is set aside for a kernel that asks for none, the largest array that stays in VMEM beside a
kernel that uses little of that and beside one that uses all, and tiles of `ragged_dot`; with what `tpu_chip` says.
"""

import argparse
import bisect
import functools
import json
import re

import tpu_devices

# Rows that no tile divides, few rows, odd multiples of 128, sums too deep for one tile, and common shapes.
SHAPES = (
  (4096, 1024, 2048), (4100, 1024, 2048), (1000, 2048, 768), (16, 1408, 14_336), (100, 7168, 2048), (4104, 768, 3072),
  (16_384, 4096, 14_336), (5000, 3968, 512), (4096, 14_336, 4096), (112, 1920, 2176), (256, 128, 128), (9, 512, 8192),
)  # fmt: skip
EXPERTS = 8
MIB = 2**20


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("device", choices=tpu_devices.DEVICES)
  parser.add_argument("--shapes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), default=SHAPES)
  args = parser.parse_args()
  tpu_devices.without_a_tpu(args.device)
  print(json.dumps(found(args.device, args.shapes)))


def found(device: str, shapes) -> dict:
  import jax

  from jaxmoe.kernels.tpu_chip import chip_of

  mesh = tpu_devices.mesh_of_one(device)
  chip = chip_of(tpu_devices.DEVICES[device][2])
  with jax.set_mesh(mesh):
    reserved = largest(functools.partial(compiles, mesh))
    assert reserved, device
    return {
      "device": device,
      "set_aside_mib": reserved,
      "expected_mib": chip.fast_bytes // MIB,
      "array_mib_beside": {used: largest(functools.partial(stays, mesh, used)) for used in (1, reserved)},
      "tiles": [tile_of(mesh, chip, *shape) for shape in shapes],
    }


def largest(holds) -> int:
  """The most MiB for which `holds`."""
  return bisect.bisect_left(range(1, 257), True, key=lambda mib: not holds(mib))


def compiles(mesh, mib: int) -> bool:
  """Whether a kernel compiles that holds so much and asks for none."""
  import jax

  try:
    jax.jit(functools.partial(copied, mib=mib)).lower(array(mesh, 4 * blocks_rows(mib))).compile()
  except jax.errors.JaxRuntimeError as error:
    if "vmem" not in str(error).lower():
      raise
    return False
  return True


def stays(mesh, used: int, mib: int) -> bool:
  """Whether an array of so much is kept in VMEM while a kernel runs that uses `used` MiB."""
  import jax

  def program(kept, x):
    kept, x = jax.lax.optimization_barrier((jax.numpy.tanh(kept), copied(x, mib=used)))
    return jax.numpy.sin(kept), x

  rows = mib * MIB // 4 // 1024
  text = jax.jit(program).lower(array(mesh, rows), array(mesh, 4 * blocks_rows(used))).compile().as_text()
  return bool(re.search(rf"f32\[{rows},1024\]{{[^}}]*S\(1\)", text or ""))


def copied(x, *, mib: int):
  """A copy of `x` in blocks by a kernel that holds two of each side's, `mib` in all."""
  import jax
  from jax.experimental import pallas as pl

  def kernel(block, copy):
    copy[...] = block[...]

  block = pl.BlockSpec((blocks_rows(mib), 1024), lambda i: (i, 0))
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return pl.pallas_call(kernel, out_shape=shape, grid=(4,), in_specs=[block], out_specs=block)(x)


def blocks_rows(mib: int) -> int:
  return mib * MIB // 4 // 4 // 1024


def array(mesh, *dims: int, dtype="float32"):
  import jax

  dims = dims if len(dims) > 1 or dtype == "int32" else (*dims, 1024)
  return jax.ShapeDtypeStruct(dims, dtype, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def tile_of(mesh, chip, N: int, K: int, F: int) -> dict:
  """Tiles of a `ragged_dot` of N rows as they come and in whole tiles; None where it is no kernel."""
  from jaxmoe.kernels import tpu_chip

  rows = tpu_chip.tile_rows(chip, N)
  return {
    "shape": [N, K, F],
    "tile": ragged_tile(mesh, N, K, F),
    "padded": ragged_tile(mesh, N + -N % rows, K, F),
    "expected": [*tpu_chip.compiler_tile(chip, rows, K, F)],
  }


def ragged_tile(mesh, N: int, K: int, F: int) -> list[int] | None:
  import jax

  rows, weights = array(mesh, N, K, dtype="bfloat16"), array(mesh, EXPERTS, K, F, dtype="bfloat16")
  sizes = array(mesh, EXPERTS, dtype="int32")
  text = jax.jit(jax.lax.ragged_dot).lower(rows, weights, sizes).compile().as_text()
  tile = re.search(r'ragged_dot_tiling="([\d,]+)"', text or "")
  return [int(length) for length in tile[1].split(",")] if tile else None


if __name__ == "__main__":
  main()
