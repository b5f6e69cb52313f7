"""Fill the table of tile shapes: time every candidate of every leg on this GPU and keep the fastest.

    python benchmarks/gpu/tune.py [--table FILE] [--minutes 9] [--dry-run]

Entries of other devices and shapes stay, and the table is written after each leg. What was timed before is not timed
again, so that several short runs complete a table. A new FILE starts with what the package's table holds. `--dry-run`
times two candidates of one tiny problem in the interpreter.
"""

import argparse
import dataclasses
import datetime
import faulthandler
import functools
import json
import os
import pathlib
import sys
import time

import jax
import peers
from problems import Problem, plan
from timing import median_us

from jaxmoe.kernels.hopper import compat, config, device, legs
from jaxmoe.kernels.hopper.config import TileShape

HANGS_AFTER_S = 120  # a candidate that is compiled and timed for longer ends the run; the table keeps the others
BANDS = (8, 4, 16)
KEYS = ("device", "leg", "groups", "D", "F", "rows_per_group")


def main(arguments: list[str] | None = None) -> int:
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--table", type=pathlib.Path, default=config.TABLE)
  parser.add_argument("--minutes", type=float, default=9.0, help="start nothing new after this long")
  parser.add_argument("--dry-run", action="store_true", help="one tiny problem, on a CPU")
  options = parser.parse_args(arguments)
  deadline = time.monotonic() + 60 * options.minutes
  if not options.dry_run:
    return tune(options.table, problems_to_tune(), device.current(), config.candidates(), BANDS, deadline, 3)
  with compat.interpreted(detect_races=False):
    small = device.Device("dry run", 2)
    return tune(options.table, [Problem("tiny", 16)], small, config.candidates()[2:4], (8,), deadline, 0)


def problems_to_tune() -> list[Problem]:
  """Those of the benchmark, in its order, each shape and number of tokens once."""
  return [Problem(model, n) for model, n in dict.fromkeys((p.model, p.tokens) for s in plan() for p in s.problems)]


def tune(table: pathlib.Path, problems, target: device.Device, shapes, bands, deadline: float, repeats: int) -> int:
  entries = json.loads((table if table.exists() else config.TABLE).read_text())["entries"]
  known = {tuple(entry[key] for key in KEYS) for entry in entries}
  for problem in problems:
    cases = [case for case in cases_of(problem) if key_of(target, problem, *case[:3]) not in known]
    if not cases:
      continue
    operands = peers.operands(problem)
    for leg, D, F, names in cases:
      if time.monotonic() > deadline:
        print("out of time")
        return 0
      print(f"{problem.model}, {problem.tokens} tokens: {leg}", flush=True)
      timed = times(leg, D, F, functools.partial(launch, leg, names, operands, target), shapes, bands, repeats)
      if timed:
        entries.append(entry(key_of(target, problem, leg, D, F), timed))
        write(table, entries)
  return 0


def cases_of(problem: Problem):
  """(leg, the sum's width or the gradient's height, columns, names of the operands)."""
  _, D, F, _ = problem.dims
  return [
    ("gated_up", D, F, ("x_ND", "gate_EDF", "up_EDF")),
    ("matmul", F, D, ("y_NF", "down_EFD")),
    ("matmul_scaled", F, D, ("y_NF", "down_fp8_EFD", "scale_ED")),
    ("matmul_transposed", F, D, ("y_NF", "gate_EDF")),
    ("matmul_transposed", D, F, ("x_ND", "down_EFD")),
    ("weight_gradient", D, F, ("x_ND", "y_NF")),
    ("weight_gradient", F, D, ("y_NF", "x_ND")),
  ]


def launch(leg, names, operands: peers.Operands, target: device.Device, shape: TileShape) -> peers.Launch:
  more = {"activation": "silu"} if leg == "gated_up" else {}
  call = functools.partial(getattr(legs, leg), device=target, shape=shape, **more)
  return peers.launch(call, *(getattr(operands, name) for name in names), operands.sizes_E)


def key_of(target: device.Device, problem: Problem, leg, D: int, F: int) -> tuple:
  N, _, _, E = problem.dims
  return target.kind, leg, E, D, F, config.bucket(N, E)


def times(leg, D: int, F: int, build, shapes, bands, repeats: int) -> list[tuple[float, TileShape]]:
  """Microseconds of every tile shape that serves, the fastest first; bands are tried on the fastest only."""
  timed = [(measure(build, shape, repeats), shape) for shape in shapes if shape.serves(leg, D, F)]
  if timed:
    _, best = min(timed, key=lambda each: each[0])
    others = (dataclasses.replace(best, band=band) for band in bands if band != best.band)
    timed += [(measure(build, shape, repeats), shape) for shape in others]
  return sorted((each for each in timed if each[0] < float("inf")), key=lambda each: each[0])


def measure(build, shape: TileShape, repeats: int) -> float:
  faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
  try:
    return median_us(build(shape), jax.block_until_ready, repeats=repeats)
  except Exception as error:
    print(f"{shape}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return float("inf")
  finally:
    faulthandler.cancel_dump_traceback_later()


def entry(key: tuple, timed: list[tuple[float, TileShape]]) -> dict:
  (best_us, best), (last_us, _) = timed[0], timed[-1]
  found = dict(zip(KEYS, key, strict=True))
  note = {"median_us": round(best_us, 1), "slowest_us": round(last_us, 1), "jax": jax.__version__}
  print(found, best, note, flush=True)
  return {**found, "shape": dataclasses.asdict(best), **note, "date": str(datetime.date.today())}


def write(table: pathlib.Path, entries: list[dict]) -> None:
  lines = ",\n    ".join(json.dumps(each) for each in sorted(entries, key=lambda e: [str(e[key]) for key in KEYS]))
  table.write_text(f'{{\n  "entries": [\n    {lines}\n  ]\n}}\n')


if __name__ == "__main__":
  sys.exit(main())
