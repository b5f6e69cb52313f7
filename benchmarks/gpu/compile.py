"""What ptxas makes of every Hopper kernel and tile shape: registers, spills, warnings. Needs no GPU.

    python benchmarks/gpu/compile.py [--json]

Needs the extra `cuda-compile`, with both plugins at jaxlib's version. With nvdisasm and cuobjdump beside its ptxas,
tensor core instructions are counted in machine code, else in PTX.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

from jaxmoe.xla.cuda import missing, toolkit

ROOT = pathlib.Path(__file__).resolve().parents[2]
N, D, F, E = 4096, 1024, 2304, 8  # 2304 = 9 * 256 = 12 * 192: every candidate divides it
SIDES: dict[str, tuple[int, int]] = {
  "matmul": (D, F),
  "matmul_scaled": (D, F),
  "up": (D, F),
  "gated_up": (D, F),
  "matmul_transposed": (F, D),
  "weight_gradient": (D, F),
}
ACTIVATIONS = {"gated_up": ("silu", "gelu", "clamped"), "up": ("silu", "gelu")}


def main() -> None:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.child:
    return compile_all()
  reports = measure()
  print(json.dumps(reports, indent=1) if options.json else table(reports))


def measure() -> list[dict]:
  """One report a kernel. They are compiled in a child process, because the compiler writes to the standard output."""
  if reason := missing():
    sys.exit(reason)
  machine_code = all((toolkit() / "bin" / tool).exists() for tool in ("nvdisasm", "cuobjdump"))
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={toolkit()} --xla_gpu_autotune_level=0",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "MOSAIC_GPU_DUMP_SASS" if machine_code else "MOSAIC_GPU_DUMP_PTX": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
  }
  command = [sys.executable, __file__, "--child"]
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  if done.returncode:
    sys.exit(f"compiling failed:\n{done.stdout[-3000:]}")
  _, *parts = re.split(r"^@kernel (.*)$", done.stdout, flags=re.MULTILINE)
  return [report(json.loads(label), text) for label, text in zip(parts[::2], parts[1::2], strict=True)]


def report(label: dict, text: str) -> dict:
  def number(pattern: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None

  return {
    **label,
    "registers": number(r"Used (\d+) registers"),
    "spill_bytes": number(r"(\d+) bytes spill stores"),
    "serialized": len(re.findall("C7511", text)),
    "tensor_core_instructions": len(re.findall(r"\bHGMMA\.|wgmma\.mma_async\.sync", text)),
    "local_memory_instructions": len(re.findall(r"\b(?:STL|LDL)\b", text)),
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
  for dtype, leg in itertools.product(("bfloat16", "float32"), SIDES):
    tiled: Any = "matmul" if leg == "up" else leg
    shapes = [shape for shape in config.candidates() if shape.serves(tiled, *SIDES[leg])]
    if dtype == "float32":  # its parts are bfloat16: only how results are stored differs, so two shapes will do
      shapes = [next(shape for shape in shapes if shape.split_columns == split) for split in (False, True)]
    arguments = [jax.ShapeDtypeStruct(*each, sharding=sharding) for each in operands(leg, dtype)]
    for shape, activation in itertools.product(shapes, ACTIVATIONS.get(leg, (None,))):
      more = (activation,) if activation else ()

      def run(*arrays, leg=leg, more=more, shape=shape):
        return getattr(legs, leg)(*arrays, *more, device=Device("NVIDIA H200", 132), shape=shape)

      label = {"leg": leg, "dtype": dtype, "activation": activation, **dataclasses.asdict(shape)}
      print("@kernel", json.dumps({**label, "shared_bytes": shape.shared_bytes(tiled)}), flush=True)
      jax.jit(run).lower(*arguments).compile()
      sys.stdout.flush()


def operands(leg: str, dtype: str) -> tuple[tuple[tuple[int, ...], str], ...]:
  """Shape and dtype of what a leg takes."""
  x, y, w, sizes = ((N, D), dtype), ((N, F), dtype), ((E, D, F), dtype), ((E,), "int32")
  return {
    "matmul": (x, w, sizes),
    "matmul_scaled": (x, ((E, D, F), "float8_e4m3fn"), ((E, F), "float32"), sizes),
    "up": (x, w, sizes),
    "gated_up": (x, w, w, sizes),
    "matmul_transposed": (y, w, sizes),
    "weight_gradient": (x, y, sizes),
  }[leg]


if __name__ == "__main__":
  main()
