"""What the compiler reports of the TPU kernels and of `jax.lax.ragged_dot` in their place; needs libtpu, no TPU.

python benchmarks/kernels_tpu.py [--devices v5e ...] [--shapes mixtral ...] [--rows N ...] [--legs ...] [--write]

Prints one line of JSON for each device, shape, number of rows and leg; --write puts a table of all of them into
benchmarks/results/kernels_tpu.md.
"""

import argparse
import concurrent.futures
import functools
import importlib
import json
import pathlib
import re
import subprocess
import sys

import tpu_devices
import yaml

DEVICES = ("v5e", "v5p", "v6e")
# Shape -> D, F, E.
SHAPES = {
  "seeds": (1024, 2048, 64),
  "mixtral": (4096, 14336, 8),
  "qwen3": (2048, 768, 128),
  "deepseek": (7168, 2048, 256),
}
ROWS = (512, 4096, 16_384, 131_072)
# Leg -> arrays of rows, weights beside each other, results.
LEGS = {"gated_up": (1, 2, 3), "matmul_transposed": (1, 1, 1), "matmuls_transposed": (2, 1, 1)}
ROOT = pathlib.Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kernels_tpu.md"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--devices", nargs="+", choices=DEVICES, default=DEVICES)
  parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
  parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
  parser.add_argument("--legs", nargs="+", choices=LEGS, default=list(LEGS))
  parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
  args = parser.parse_args()
  if len(args.devices) == 1 and not args.write:
    compile_all(args.devices[0], args)
    return
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = [row for rows in pool.map(functools.partial(in_its_own_process, args), args.devices) for row in rows]
  print(*map(json.dumps, found), sep="\n")
  if args.write:
    RESULT.write_text(report(found))


def in_its_own_process(args, device: str) -> list[dict]:
  """libtpu serves one topology a process."""
  chosen = ["--shapes", *args.shapes, "--rows", *map(str, args.rows), "--legs", *args.legs]
  command = [sys.executable, __file__, "--devices", device, *chosen]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def compile_all(device: str, args):
  tpu_devices.without_a_tpu(device)
  for shape in args.shapes:
    for N in args.rows:
      for leg in args.legs:
        what = {"device": device, "shape": shape, "rows": N, "leg": leg}
        print(json.dumps(what | figures(device, shape, N, leg)), flush=True)


def figures(device: str, shape: str, N: int, leg: str) -> dict:
  """Of one leg: the own kernel's blocks, and by own kernel and compiler's what each needs."""
  from jaxmoe.kernels import tpu_blocks, tpu_chip

  job, chip = job_of(shape, N, leg), chip_of(device)
  choice = tpu_blocks.choose(job, chip)
  if choice is None:
    return {"blocks": None}
  one = job._replace(terms=1) if choice.apart else job
  own, ragged = (compiled(device, shape, N, leg, name) for name in ("tpu", "tpu_ragged"))
  sizes, tile = uniform_sizes(N, job.E), tpu_chip.compiler_tile(chip, tpu_chip.tile_rows(chip, N), job.K, job.F)
  own |= {
    "tile": [choice.blocks.height, choice.blocks.depth, choice.blocks.width],
    "moved": choice.bytes,
    "vmem_expected": tpu_blocks.used_bytes(one, choice.blocks, chip),
    "multiplied": own_multiplied(sizes, choice.blocks.height, chip.rows) / N,
  }
  ragged |= {
    "tile_expected": [*tile],
    "moved": tpu_blocks.compiler_bytes(job, chip),
    "multiplied": compiler_multiplied(sizes, tile.rows) / N,
  }
  flops = own["multiplied"] * 2 * N * job.K * job.F * job.weights
  peak, bandwidth = rates(device)
  busy = flops / peak / (choice.bytes / bandwidth)
  return {"blocks": [*choice.blocks], "apart": choice.apart, "own": own, "compiler": ragged, "busy": busy}


def chip_of(device: str):
  from jaxmoe.kernels import tpu_chip

  return tpu_chip.chip_of(tpu_devices.DEVICES[device][2])


def job_of(shape: str, N: int, leg: str):
  from jaxmoe.kernels.tpu_blocks import Job

  (D, F, E), (terms, beside, outputs) = SHAPES[shape], LEGS[leg]
  # Gradients of rows: of hidden rows through down, E x F x D, and of x through gate and up, E x D x F.
  K, columns = (F, D) if leg == "matmuls_transposed" else (D, F)
  return Job(N, E, K, columns, terms, beside, outputs, transposed=leg != "gated_up", itemsize=2)


def compiled(device: str, shape: str, N: int, leg: str, implementation: str) -> dict:
  """FLOPs, bytes, temporary memory and VMEM; or why it does not compile, as where memory is too small."""
  import jax
  import jax.numpy as jnp

  job, mesh = job_of(shape, N, leg), tpu_devices.mesh_of_one(device)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  legs = importlib.import_module(f"jaxmoe.kernels.{implementation}")
  array = functools.partial(jax.ShapeDtypeStruct, sharding=whole)
  rows, sizes = array((N, job.K), jnp.bfloat16), array((job.E,), jnp.int32)
  w = array((job.E, job.F, job.K) if job.transposed else (job.E, job.K, job.F), jnp.bfloat16)
  run, arguments = {
    "gated_up": (lambda x, gate, up, sizes: legs.gated_up(x, gate, up, sizes, "silu"), (rows, w, w, sizes)),
    "matmul_transposed": (lambda x, w, sizes: legs.matmuls_transposed([x], [w], sizes), (rows, w, sizes)),
    "matmuls_transposed": (legs.matmuls_transposed, ([rows, rows], [w, w], sizes)),
  }[leg]
  try:
    with jax.set_mesh(mesh):
      done = jax.jit(run).lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if "CompileTimeHbmOom" not in str(error):
      raise
    return {"too_large": True}
  cost, memory = done.cost_analysis(), done.memory_analysis()
  text = done.as_text()
  assert cost is not None and memory is not None and text is not None
  tile = re.search(r'ragged_dot_tiling="([\d,]+)"', text)
  named = {"tile": [int(length) for length in tile[1].split(",")]} if tile else {}
  kernels = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
  return named | {
    "flops": cost["flops"],
    "bytes": cost["bytes accessed"],
    "temporary": memory.temp_size_in_bytes,
    "vmem": max(scoped_bytes("used_scoped_memory_configs", kernel) for kernel in kernels),
    "vmem_asked": max(scoped_bytes("scoped_memory_configs", kernel) for kernel in kernels),
  }


def scoped_bytes(key: str, kernel: str) -> int:
  """Of VMEM, by the compiler's note on a kernel; 0 where it notes none."""
  found = re.search(rf'"{key}":\[{{"memory_space":"1","offset":"0","size":"(\d+)"', kernel)
  return int(found[1]) if found else 0


def uniform_sizes(N: int, E: int):
  """Rows of each expert, fallen uniformly at random."""
  import numpy as np

  return np.random.default_rng(0).multinomial(N, np.full(E, 1 / E))


def own_multiplied(sizes, height: int, chunk: int) -> int:
  """Rows that the own kernel multiplies, by the table that it goes by."""
  import jax.numpy as jnp

  from jaxmoe.kernels import tpu_rows

  visits = tpu_rows.visits_of(jnp.array(sizes, jnp.int32), int(sizes.sum()), height, chunk)
  return int(visits.rows[: int(visits.count[0])].sum())


def compiler_multiplied(sizes, height: int) -> int:
  """The same of `ragged_dot`, whose tiles lie at multiples of their height, each whole for each expert in it."""
  ends = sizes.cumsum()
  pairs = zip(ends - sizes, ends, strict=True)
  return height * sum((end - 1) // height - first // height + 1 for first, end in pairs if end > first)


@functools.cache
def rates(device: str) -> tuple[float, float]:
  cluster = yaml.safe_load((ROOT / "meshes" / "clusters" / f"tpu_{device}.yaml").read_text())
  return float(cluster["peak_flops_per_s"]["bfloat16"]), float(cluster["memory_bandwidth_bytes_per_s"])


def report(found: list[dict]) -> str:
  import jax

  aside = ", ".join(f"{device} {chip_of(device).fast_bytes / 2**20:.0f} MiB" for device in DEVICES)
  head = ["device", "shape", "rows", "leg", "own tile", "compiler's", *PAIRS, "arithmetic"]
  lines = [
    "# The TPU kernel beside `ragged_dot`, as compiled",
    "",
    "`python benchmarks/kernels_tpu.py --write`; no TPU was used, so nothing here is a time.",
    f"jax {jax.__version__}. Own and compiler's in each pair; rows fall on experts uniformly at random.",
    "Tile: rows x depth x columns. Moved: what the tiles read and write. Counted: by the compiler, each operand once.",
    "Multiplied: rows, padding included, for each row that there is. VMEM: what the kernel uses of that which the",
    f"compiler sets aside for any operation ({aside}); neither kernel asks for more.",
    "Arithmetic: the own kernel's time at the device's peak, padding included, for each second of moving its bytes.",
    "",
    "| " + " | ".join(head) + " |",
    "| --- | --- | ---: | --- |" + " ---: |" * (len(head) - 4),
  ]
  return "\n".join([*lines, *map(line, found)]) + "\n"


# Heading -> figure, unit, digits.
PAIRS = {
  "moved, GB": ("moved", 1e9, 2),
  "counted, GB": ("bytes", 1e9, 2),
  "temporary, MB": ("temporary", 1e6, 1),
  "multiplied": ("multiplied", 1, 2),
  "VMEM, MB": ("vmem", 1e6, 1),
}


def line(row: dict) -> str:
  head = f"| {row['device']} | {row['shape']} | {row['rows']} | `{row['leg']}` |"
  if row["blocks"] is None:
    return f"{head} the compiler's |" + " |" * (len(PAIRS) + 2)
  own, other = row["own"], row["compiler"]

  def pair(name, unit, digits):
    return " / ".join(f"{kernel[name] / unit:.{digits}f}" if name in kernel else "too large" for kernel in (own, other))

  tiles = [" x ".join(map(str, kernel["tile"])) if "tile" in kernel else "" for kernel in (own, other)]
  figures = " | ".join(pair(*figure) for figure in PAIRS.values())
  return f"{head} {tiles[0]}{', apart' if row['apart'] else ''} | {tiles[1]} | {figures} | {row['busy']:.2f} |"


if __name__ == "__main__":
  main()
