"""Tile shapes, each checked and then timed: a child of `tune.py`.

Reads cases and prints results as `guarded.py` says; of a case without a problem, which device is here. A leg's first
result is compared with float64 at samples, and each later one, everywhere, with the first that was right. `--dry-run`
goes through the CPU interpreter.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import peers
import samples
from compiling import built
from context import free_memory, leave_if_lost, share_memory
from correctness import call_of, tolerance
from environment import brief
from guarded import read_cases, say
from operands import Operands, dry_device, operands
from problems import Problem
from timing import median_us

from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.kernels.hopper.device import Device, current

THREADS = 16  # that compile; tracing holds Python's lock, XLA and ptxas do not


def main() -> None:
  share_memory()
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args()
  cases = read_cases()
  if "problem" not in cases[0]:
    return say(index=cases[0]["index"], **dataclasses.asdict(current()))
  device, threads, repeats = (dry_device(), 0, 0) if options.dry_run else (None, THREADS, 3)
  with compat.interpreted(detect_races=False) if options.dry_run else contextlib.nullcontext():
    for problem, some in itertools.groupby(cases, key=lambda case: case["problem"]):
      time_problem(Problem(**problem), list(some), device, threads, repeats)
      free_memory()


def time_problem(problem: Problem, cases: list[dict], device: Device | None, threads: int, repeats: int) -> None:
  """Compile all, then time one after the other; or each by itself, if what ends the process is sought."""
  threads = 0 if cases[0].get("alone") else threads
  say(begins=cases[0]["index"])
  try:
    o = operands(problem)
  except Exception as error:  # no room, say: another process would have no more
    for case in cases:
      say(index=case["index"], error=brief(error))
    return leave_if_lost({"error": brief(error)})
  say(begins=cases[0]["index"], together=threads > 0)
  sides = {False: o, True: swapped(o)}
  builds = built([functools.partial(build, case, sides[case["swapped"]], device) for case in cases], threads)
  for _, some in itertools.groupby(zip(cases, builds, strict=True), key=lambda each: leg_of(each[0])):
    base: Sequence[jax.Array] | None = None
    for case, ready in some:
      say(begins=case["index"])
      row, base = time_one(case, ready, sides[case["swapped"]], base, repeats)
      say(index=case["index"], **row)
      leave_if_lost(row)


def leg_of(case: dict) -> tuple[str, bool]:
  return case["leg"], case["swapped"]


def build(case: dict, o: Operands, device: Device | None) -> peers.Launch:
  call = call_of(name_of(case), o, device)
  return peers.launch(functools.partial(call.function, shape=TileShape(**case["shape"])), *call.arguments)


def name_of(case: dict) -> str:
  return "gated_up silu" if case["leg"] == "gated_up" else case["leg"]


def swapped(o: Operands) -> Operands:
  """Rows and weights of the layer's other side, by the names of this one."""
  return dataclasses.replace(o, x_ND=o.y_NF, y_NF=o.x_ND, gate_EDF=o.down_EFD)


def time_one(case: dict, ready: Callable, o: Operands, base, repeats: int) -> tuple[dict, Any]:
  """What is said of a tile shape, and the results that later ones are compared with."""
  try:
    launch = ready()
    results = jax.tree.leaves(jax.block_until_ready(launch()))
    off = samples.error(name_of(case), o, results) if base is None else float(_difference(results, base))
    if not off <= tolerance(case["leg"], o.problem.dtype):
      return {"wrong": f"{off:.1e} from {'float64' if base is None else 'another tile shape'}"}, base
    base = results if base is None else base
    del results
    return {"median_us": median_us(launch, jax.block_until_ready, repeats=repeats)}, base
  except Exception as error:
    return {"error": brief(error)}, base


@jax.jit
def _difference(results, others):
  """The largest, relative to the largest entry, of any pair; infinite where one is no number, which XLA's maximum may
  pass over."""
  pairs = [(a.astype("float32"), b.astype("float32")) for a, b in zip(results, others, strict=True)]
  apart = [jnp.where(jnp.isnan(a - b), jnp.inf, jnp.abs(a - b)) for a, b in pairs]
  return jnp.max(jnp.stack([jnp.max(d) / jnp.max(jnp.abs(b)) for d, (_, b) in zip(apart, pairs, strict=True)]))


if __name__ == "__main__":
  main()
