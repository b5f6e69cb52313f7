"""What ptxas makes of every Hopper kernel and tile shape: registers, spills, warnings. Needs no GPU.

    python benchmarks/gpu/compile.py [--json]

Needs the extra `cuda-compile`, with both plugins at jaxlib's version. Prints a table and writes it to
benchmarks/results/hopper_compiled.md. Where nvdisasm and cuobjdump lack beside ptxas, instructions of tensor cores are
counted in PTX, and those on local memory, which spills would use, cannot be.
"""

import argparse
import contextlib
import dataclasses
import datetime
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from jaxmoe.xla.cuda import missing, toolkit

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "hopper_compiled.md"
N, D, F, E = 4096, 1024, 2304, 8  # 2304 = 9 * 256 = 12 * 192: every candidate divides it
# Leg -> what it sums over, and how wide its result is.
SIDES: dict[str, tuple[int, int]] = {
  "matmul": (D, F),
  "matmul_scaled": (D, F),
  "up": (D, F),
  "gated_up": (D, F),
  "matmul_transposed": (F, D),
  "matmuls_transposed": (F, D),
  "weight_gradient": (D, F),
}
# A leg that has the tiles of another one.
TILED_AS = {"up": "matmul", "matmuls_transposed": "matmul_transposed"}
ACTIVATIONS = {"gated_up": ("silu", "gelu", "clamped"), "up": ("silu", "gelu")}


def main() -> None:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.child:
    return compile_all()
  reports = measure()
  RESULT.write_text(document(reports))
  print(json.dumps(reports, indent=1) if options.json else table(reports))


def measure() -> list[dict]:
  """One report a kernel. They are compiled in a child process, because the compiler writes to the standard output."""
  if reason := missing():
    sys.exit(reason)
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={toolkit()} --xla_gpu_autotune_level=0",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "MOSAIC_GPU_DUMP_SASS" if has_machine_code() else "MOSAIC_GPU_DUMP_PTX": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
  }
  command = [sys.executable, __file__, "--child"]
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  if done.returncode:
    sys.exit(f"compiling failed:\n{done.stdout[-3000:]}")
  _, *parts = re.split(r"^@kernel (.*)$", done.stdout, flags=re.MULTILINE)
  machine_code = has_machine_code()
  return [
    report(json.loads(label), text, machine_code=machine_code)
    for label, text in zip(parts[::2], parts[1::2], strict=True)
  ]


def document(reports: list[dict]) -> str:
  names = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cuda-nvcc")
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
  head = f"{datetime.date.today()}, {versions}. Made by `python benchmarks/gpu/compile.py`, without a GPU."
  return f"# Hopper kernels as ptxas compiles them for sm_90a\n\n{head}\n\n{table(reports)}\n"


def has_machine_code() -> bool:
  return all((toolkit() / "bin" / tool).exists() for tool in ("nvdisasm", "cuobjdump"))


def report(label: dict, text: str, *, machine_code: bool) -> dict:
  """What a compiler's words say of one kernel."""

  def number(pattern: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None

  return {
    **label,
    "registers": number(r"Used (\d+) registers"),
    "spill_bytes": number(r"(\d+) bytes spill stores"),
    "serialized": len(re.findall("C7511", text)),
    "tensor_core_instructions": len(re.findall(r"\bHGMMA\.|wgmma\.mma_async\.sync", text)),
    "local_memory_instructions": len(re.findall(r"\b(?:STL|LDL)\b", text)) if machine_code else None,
  }


def table(reports: list[dict]) -> str:
  names = list(reports[0])
  lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
  return "\n".join([*lines, *("| " + " | ".join(str(each[name]) for name in names) + " |" for each in reports)])


def compile_all() -> None:
  """Compile each kernel, announcing it on a line of its own."""
  import jax

  from jaxmoe.kernels.hopper import config, legs
  from jaxmoe.kernels.hopper.device import Device
  from jaxmoe.meshes.build import cuda_devices

  with contextlib.redirect_stdout(io.StringIO()):
    (device,) = cuda_devices("h200", hosts=1, gpus=1)
  sharding = jax.sharding.SingleDeviceSharding(device)
  for leg, rows_dtype, weights_dtype in combinations():
    tiled: Any = TILED_AS.get(leg, leg)
    shapes = [shape for shape in config.candidates() if shape.serves(tiled, *SIDES[leg])]
    shapes += [shape for shape in config.lagging(shapes[0]) if shape.serves(tiled, *SIDES[leg])]
    if (rows_dtype, weights_dtype) not in (("bfloat16", "bfloat16"), ("bfloat16", "float8_e4m3fn")):
      # Only how numbers are converted and stored differs: one high and one low tile will do.
      shapes = [next(shape for shape in shapes if shape.split_columns == split) for split in (False, True)]
    arguments = jax.tree.map(
      lambda struct: jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding),
      operands(leg, rows_dtype, weights_dtype),
    )
    for shape, activation in itertools.product(shapes, ACTIVATIONS.get(leg, (None,))):
      more = (activation,) if activation else ()

      def run(*arrays, leg=leg, more=more, shape=shape):
        return getattr(legs, leg)(*arrays, *more, device=Device("NVIDIA H200", 132), shape=shape)

      label = {"leg": leg, "rows": rows_dtype, "weights": weights_dtype, "activation": activation}
      tile = {**dataclasses.asdict(shape), "shared_bytes": shape.shared_bytes(tiled)}
      print("@kernel", json.dumps({**label, **tile}), flush=True)
      jax.jit(run).lower(*arguments).compile()
      sys.stdout.flush()


def combinations() -> Iterator[tuple[str, str, str]]:
  """(leg, dtype of rows, dtype of weights)."""
  for rows, leg in itertools.product(("bfloat16", "float16", "float32"), SIDES):
    for weights in ("float8_e4m3fn", "float8_e5m2") if leg == "matmul_scaled" else (rows,):
      yield leg, rows, weights


def operands(leg: str, rows_dtype: str, weights_dtype: str) -> tuple:
  """Shapes and dtypes of what a leg takes."""
  import jax

  struct = jax.ShapeDtypeStruct
  x, y, sizes = struct((N, D), rows_dtype), struct((N, F), rows_dtype), struct((E,), "int32")
  w = struct((E, D, F), weights_dtype)
  return {
    "matmul": (x, w, sizes),
    "matmul_scaled": (x, w, struct((E, F), "float32"), sizes),
    "up": (x, w, sizes),
    "gated_up": (x, w, w, sizes),
    "matmul_transposed": (y, w, sizes),
    "matmuls_transposed": ((y, y), (w, w), sizes),
    "weight_gradient": (x, y, sizes),
  }[leg]


if __name__ == "__main__":
  main()
