"""Expert kernels on one NVIDIA H200, beside their peers: correctness first, then medians of one run.

    python benchmarks/gpu/kernels.py [--out FOLDER] [--minutes 9] [--dry-run]

Needs jax with CUDA. tokamax, torch and liger-kernel are measured if they are installed, else noted as absent. Results
are written after every problem as JSON and Markdown, so a run that is cut short keeps what it measured. `--dry-run`
goes through the same code on a CPU with one tiny problem; its times mean nothing.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import peers  # noqa: E402
import torch_peers  # noqa: E402
from correctness import check_all  # noqa: E402
from problems import Problem, plan, tiny_plan  # noqa: E402
from report import DENSE, OURS, markdown  # noqa: E402
from timing import median_us  # noqa: E402

from jaxmoe.kernels.hopper import compat  # noqa: E402
from jaxmoe.kernels.hopper.device import Device  # noqa: E402

PACKAGES = ("jax", "jaxlib", "tokamax", "jax-triton", "torch", "triton", "liger-kernel", "nvidia-cudnn-cu13", "numpy")
FLOPS_PER_S, BYTES_PER_S = 790e12, 4.3e12  # measured on an H200: what the floors are computed from


def everyone(device: Device | None) -> dict[str, tuple[Any, Any]]:
  """Name -> (peer, how to wait for it); ours and the bound first."""
  ready = jax.block_until_ready
  return {
    OURS: (peers.Ours(device), ready),
    DENSE: (peers.Dense(), ready),
    "tokamax mosaic": (peers.Tokamax("mosaic"), ready),
    "tokamax triton": (peers.Tokamax("triton"), ready),
    "torch grouped_mm": (torch_peers.TorchGroupedMm(), torch_peers.synchronize),
    "Liger": (torch_peers.Liger(), torch_peers.synchronize),
    "jax ragged_dot_mgpu": (peers.JaxMosaic(), ready),
    "jax.lax.ragged_dot": (peers.RaggedDot(), ready),
    "tokamax xla": (peers.Tokamax("xla"), ready),
  }


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  default = os.environ.get("OUT") or ROOT / "benchmarks" / "results"
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(default))
  parser.add_argument("--minutes", type=float, default=9.0, help="start nothing new after this long")
  parser.add_argument("--dry-run", action="store_true", help="one tiny problem, on a CPU")
  options = parser.parse_args(arguments)
  deadline = time.monotonic() + 60 * options.minutes
  options.out.mkdir(parents=True, exist_ok=True)
  if not options.dry_run:
    return run(options.out, deadline, None, plan())
  with compat.interpreted(detect_races=False):
    return run(options.out, deadline, Device("NVIDIA H200", 2), tiny_plan())


def run(out: pathlib.Path, deadline: float, device: Device | None, sections) -> int:
  """Measure and write. Returns 1 if a kernel of ours was wrong or failed."""
  results: dict[str, Any] = {"environment": environment(), "dry_run": device is not None, "correctness": [], "rows": []}
  print(json.dumps(results["environment"], indent=1), flush=True)
  small = [Problem("tiny", 16)] if device else [Problem("seed", 1000), Problem("qwen3-30b-a3b", 3000, "quarter", 1)]
  results["correctness"] = check_all(small, device)
  write(out, results)
  for name, problems, legs in sections:
    for problem in problems:
      measure(name, problem, legs, everyone(device), deadline, 0 if device else 7, results["rows"])
      write(out, results)
  wrong = [row for row in results["correctness"] if not row["correct"]]
  failed = [row for row in results["rows"] if row["who"] == OURS and "error" in row]
  print(f"{len(wrong)} wrong, {len(failed)} of our kernels failed; wrote {out}")
  return int(bool(wrong or failed))


def measure(
  section: str, problem: Problem, legs, who: dict[str, tuple[Any, Any]], deadline: float, repeats: int, rows: list[dict]
):
  """Append a row for each leg and peer: a median, or why there is none."""
  label = {"section": section, "model": problem.model, "tokens": problem.tokens, "skew": problem.skew}
  if time.monotonic() > deadline:
    rows += [{**label, "leg": leg, "who": OURS, "skipped": "out of time"} for leg in legs]
    return
  try:
    operands = peers.operands(problem)
  except Exception as error:
    rows.append({**label, "leg": legs[0], "who": OURS, "error": brief(error)})
    return
  for leg in legs:
    for name, (peer, wait) in who.items():
      row = {**label, "leg": leg, "who": name}
      if time.monotonic() > deadline:
        rows.append({**row, "skipped": "out of time"})
        continue
      try:
        us = median_us(peer.build(leg, operands), wait, repeats=repeats)
        rates = {"tflops": problem.flops(leg) / us / 1e6, "gb_per_s": problem.floor_bytes(leg) / us / 1e3}
        rows.append({**row, "median_us": us, **rates, "floor_us": floor_us(problem, leg)})
      except peers.Absent as reason:
        rows.append({**row, "absent": str(reason)})
      except Exception as error:
        rows.append({**row, "error": brief(error)})
      print(json.dumps(rows[-1]), flush=True)


def floor_us(problem: Problem, leg) -> float:
  return 1e6 * max(problem.flops(leg) / FLOPS_PER_S, problem.floor_bytes(leg) / BYTES_PER_S)


def brief(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def environment() -> dict[str, Any]:
  device = jax.devices()[0]
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "device": device.device_kind,
    "processors": getattr(device, "core_count", None),
    "driver": query("driver_version"),
    "clocks": query("clocks.max.sm,clocks.sm,power.limit"),
    "python": platform.python_version(),
    "versions": {name: version(name) for name in PACKAGES},
    "cudnn": cudnn(),
    "ragged_dot": how_ragged_dot_compiles(),
  }


def query(fields: str) -> str:
  command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
  try:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError) as error:
    return f"unknown: {brief(error)}"


def version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "absent"


def cudnn() -> str:
  try:
    return str(importlib.import_module("jax._src.lib").cuda_versions.cudnn_get_version())
  except Exception as error:
    return f"unknown: {brief(error)}"


def how_ragged_dot_compiles() -> str:
  """Dense if the compiled program holds more than twice the rows times width of its operand."""
  x, w, sizes = jnp.ones((512, 256), "bfloat16"), jnp.ones((8, 256, 256), "bfloat16"), jnp.full(8, 64, "int32")
  try:
    compiled = jax.jit(jax.lax.ragged_dot).lower(x, w, sizes).compile()
    memory: Any = compiled.memory_analysis()
    text, temporary = compiled.as_text() or "", memory.temp_size_in_bytes
  except Exception as error:
    return f"failed: {brief(error)}"
  if "cudnn" in text.lower():
    return "cuDNN"
  return "dense" if temporary > 4 * x.nbytes or "512,2048" in text or "8,512" in text else f"unknown, temp {temporary}"


def write(out: pathlib.Path, results: dict) -> None:
  date, device = results["environment"]["date"][:10], results["environment"]["device"].replace(" ", "_")
  name = "kernels_dry_run" if results["dry_run"] else f"kernels_{device}_{date}"
  (out / f"{name}.json").write_text(json.dumps(results, indent=1))
  (out / f"{name}.md").write_text(markdown(results))


if __name__ == "__main__":
  sys.exit(main())
