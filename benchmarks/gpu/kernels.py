"""Expert kernels on one NVIDIA Hopper GPU, beside their peers: correctness first, then medians of one run.

    python benchmarks/gpu/kernels.py [--out FOLDER] [--minutes 9] [--sections NAME ...] [--check-only] [--dry-run]

Needs jax with CUDA. tokamax, torch and liger-kernel are measured if they are installed, else noted as absent. Results
are written after every leg as JSON and Markdown, so a run that is cut short keeps what it measured. A kernel of ours
that is wrong, hangs or crashes in the check, which runs in a process of its own, is not timed. `--dry-run` goes through
the same code on a CPU with one tiny problem; its times mean nothing.
"""

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import pathlib
import sys
import time
from typing import Any

import guarded
import jax
import jax.numpy as jnp
import peers
import torch_peers
from environment import brief, ceilings, environment
from problems import TIMED_DTYPE, Problem, Section, cases_to_check, plan, tiny_plan
from report import DENSE, OURS, markdown
from timing import median_us

from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.device import Device

ROOT = pathlib.Path(__file__).resolve().parents[2]
SILENCE_S = 120  # of a kernel that is compiled and run: longer means that it hangs
HANGS_AFTER_S = 240  # of a peer, which may tune itself first: the run ends, and keeps what it measured
CHECKED_AS = {
  "up": "gated_up silu", "down": "matmul", "down_fp8": "matmul_scaled", "input_gradient": "matmul_transposed",
}  # fmt: skip


def everyone(device: Device | None) -> dict[str, tuple[Any, Any]]:
  """Name -> (peer, how to wait for it); ours and the bound first."""
  ready, torch_device = jax.block_until_ready, "cpu" if device else "cuda"
  return {
    OURS: (peers.Ours(device), ready),
    DENSE: (peers.Dense(), ready),
    "tokamax mosaic": (peers.Tokamax("mosaic_gpu"), ready),
    "tokamax triton": (peers.Tokamax("triton"), ready),
    "torch grouped_mm": (torch_peers.TorchGroupedMm(torch_device), torch_peers.synchronize),
    "Liger": (torch_peers.Liger(torch_device), torch_peers.synchronize),
    "jax ragged_dot_mgpu": (peers.JaxMosaic(), ready),
    "jax.lax.ragged_dot": (peers.RaggedDot(), ready),
    "tokamax xla": (peers.Tokamax("xla"), ready),
  }


def main(arguments: list[str] | None = None) -> int:
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
  parser.add_argument("--minutes", type=float, default=9.0, help="start nothing new after this long")
  parser.add_argument("--sections", nargs="*", help=f"of {', '.join(section.name for section in plan())}; default all")
  parser.add_argument("--check-only", action="store_true", help="time nothing")
  parser.add_argument("--dry-run", action="store_true", help="one tiny problem, on a CPU")
  options = parser.parse_args(arguments)
  unknown = set(options.sections or ()) - {section.name for section in plan()}
  if unknown:
    parser.error(f"--sections: no section is named {', '.join(sorted(unknown))}; --help lists them")
  deadline = time.monotonic() + 60 * options.minutes
  options.out.mkdir(parents=True, exist_ok=True)
  sections = tiny_plan() if options.dry_run else plan()
  wanted = [s for s in sections if not options.check_only and (not options.sections or s.name in options.sections)]
  with compat.interpreted(detect_races=False) if options.dry_run else contextlib.nullcontext():
    return run(options.out, deadline, peers.dry_device() if options.dry_run else None, wanted)


def run(out: pathlib.Path, deadline: float, device: Device | None, sections: list[Section]) -> int:
  """Check, measure and write. Returns 1 if a kernel of ours was wrong or failed."""
  results: dict[str, Any] = {"environment": environment(), "dry_run": device is not None, "correctness": [], "rows": []}
  results["ceilings"] = ceilings(dry_run=device is not None)
  print(json.dumps({**results["environment"], **results["ceilings"]}, indent=1), flush=True)
  for row in checked(deadline, dry_run=device is not None, every_dtype=not sections):
    results["correctness"].append(row)
    print(json.dumps(row), flush=True)
    write(out, results)
  wrong = {row["leg"] for row in results["correctness"] if not row["correct"]}
  for section in sections:
    for problem in section.problems:
      for row in measure(section, problem, device, deadline, results["ceilings"], wrong):
        results["rows"].append(row)
        print(json.dumps(row), flush=True)
        write(out, results)
      gc.collect()  # arrays of this problem, before the next one's are made
  failed = [row for row in results["rows"] if row["who"] == OURS and "error" in row]
  print(f"{len(wrong)} legs wrong, {len(failed)} of our timings failed; wrote {write(out, results)}")
  return int(bool(wrong or failed))


def checked(deadline: float, *, dry_run: bool, every_dtype: bool):
  """A row for each case to check, until the deadline: in the dtype that is timed, which comes first, or in every."""
  if time.monotonic() > deadline:
    return
  cases = [case for case in cases_to_check(dry_run=dry_run) if every_dtype or case[0].dtype == TIMED_DTYPE]
  script = str(pathlib.Path(__file__).with_name("correctness.py"))
  for row in guarded.results(script, len(cases), SILENCE_S, ["--dry-run"] if dry_run else []):
    problem, leg = cases[row.pop("index")]
    yield {"model": problem.model, "tokens": problem.tokens, "dtype": problem.dtype, "leg": leg, **row}
    if time.monotonic() > deadline:
      return


def measure(section: Section, problem: Problem, device: Device | None, deadline: float, limits: dict, wrong: set[str]):
  """A row for each leg and peer: a median, or why there is none."""
  label = {"section": section.name, "model": problem.model, "tokens": problem.tokens, "skew": problem.skew}
  who = {name: peer for name, peer in everyone(device).items() if not section.alone or name == OURS}
  try:
    operands = None if time.monotonic() > deadline else peers.operands(problem)
  except Exception as error:
    yield {**label, "leg": section.legs[0], "who": OURS, "error": brief(error)}
    return
  for leg in section.legs:
    ours = None
    for name, (peer, wait) in who.items():
      row = {**label, "leg": leg, "who": name}
      if operands is None or time.monotonic() > deadline:
        yield {**row, "skipped": "out of time"}
      elif name == OURS and CHECKED_AS.get(leg, leg) in wrong:
        yield {**row, "skipped": "wrong in the check"}
      else:
        timed, result = time_one(peer, wait, leg, operands, limits, 0 if device else 7)
        ours = result if name == OURS else ours
        yield {**row, **timed, **difference(result, ours)}
        del result


def time_one(peer, wait, leg, operands: peers.Operands, limits: dict, repeats: int) -> tuple[dict, Any]:
  """What a row says of a peer's time, and what the peer computed."""
  problem = operands.problem
  faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
  try:
    launch = peer.build(leg, operands)
    result = launch()
    us = median_us(launch, wait, repeats=repeats)
  except peers.Absent as reason:
    return {"absent": str(reason)}, None
  except Exception as error:
    return {"error": brief(error)}, None
  finally:
    faulthandler.cancel_dump_traceback_later()
  flops, bytes_ = problem.flops(leg), problem.floor_bytes(leg)
  floor_us = 1e6 * max(flops / limits["flops_per_s"], bytes_ / limits["bytes_per_s"])
  comparable = None if getattr(peer, "differs", False) else peers.first_array(result)
  return {"median_us": us, "tflops": flops / us / 1e6, "gb_per_s": bytes_ / us / 1e3, "floor_us": floor_us}, comparable


def difference(result, ours) -> dict[str, float]:
  """Of a peer's result from ours, relative to the largest entry: both compute the same."""
  if result is None or ours is None or result.shape != ours.shape:
    return {}
  return {"difference": float(_difference(result, ours))}


@jax.jit
def _difference(result, ours):
  return jnp.max(jnp.abs(result.astype("float32") - ours.astype("float32"))) / jnp.max(jnp.abs(ours.astype("float32")))


def write(out: pathlib.Path, results: dict) -> pathlib.Path:
  env = results["environment"]
  name = f"kernels_{env['device'].replace(' ', '_')}_{env['date'][:16].replace(':', '')}"
  file = out / ("kernels_dry_run.json" if results["dry_run"] else f"{name}.json")
  file.write_text(json.dumps(results, indent=1))
  file.with_suffix(".md").write_text(markdown(results))
  return file


if __name__ == "__main__":
  sys.exit(main())
