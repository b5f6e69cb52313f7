"""Rows of `kernels.py`: each is checked on the very problem and tile, then timed; a child of it.

Reads cases and prints rows as `guarded.py` says. `--dry-run` takes them through the CPU interpreter.
"""

import argparse
import contextlib
import functools
import itertools
import json
from collections.abc import Callable

import jax
import samples
from compiling import built
from context import free_memory, leave_if_lost, share_memory
from correctness import tolerance
from environment import brief
from goals import OURS
from guarded import read_cases, say
from operands import Operands, dry_device, operands
from peers import Absent, Launch
from problems import Problem, checked_as
from timed_cases import SILENCE_S, TUNES_ITSELF_S, everyone
from timing import median_us

from jaxmoe.kernels.hopper import compat

MOST_DIFFERENCE = 3e-2  # of a peer's result from float64, relative to the largest entry, in bfloat16
THREADS = 8  # that compile ours


def main() -> None:
  share_memory()
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--given", type=json.loads, required=True, help="JSON: flops_per_s, bytes_per_s, ragged_dot")
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args()
  with compat.interpreted(detect_races=False) if options.dry_run else contextlib.nullcontext():
    peers = everyone(dry_device() if options.dry_run else None, options.given["ragged_dot"])
    for problem, cases in itertools.groupby(read_cases(), key=lambda case: case["problem"]):
      measure(Problem(**problem), list(cases), peers, options)
      free_memory()  # its operands, before the next one's are made


def measure(problem: Problem, cases: list[dict], peers: dict, options: argparse.Namespace) -> None:
  """Say a row for each case; those of ours are compiled together before the first of them is timed.

  Unless what ends the process is sought: then each by itself.
  """
  ours = [case["index"] for case in cases if case["who"] == OURS]
  say(begins=cases[0]["index"])
  try:
    o = operands(problem)
  except Exception as error:  # no room, say
    for case in cases:
      say(index=case["index"], error=brief(error))
    return leave_if_lost({"error": brief(error)})
  threads = 0 if options.dry_run or cases[0].get("alone") else THREADS
  if ours:
    say(begins=ours[0], together=threads > 0)
  build: dict[int, Callable] = {
    case["index"]: functools.partial(peers[case["who"]][0].build, case["leg"], o) for case in cases
  }
  build |= dict(zip(ours, built([build[index] for index in ours], threads), strict=True))
  for case in cases:
    say(begins=case["index"], seconds=TUNES_ITSELF_S.get(case["who"], SILENCE_S))
    peer, wait = peers[case["who"]]
    row = time_one(peer, build[case["index"]], wait, case, o, options)
    say(index=case["index"], **row)
    leave_if_lost(row)
    free_memory()


def time_one(peer, build: Callable, wait: Callable, case: dict, o: Operands, options: argparse.Namespace) -> dict:
  """What a row says: a median, or why there is none."""
  try:
    launch = build()
    found = check(peer, launch, wait, case, o)
    if "wrong" in found:
      return found
    us = median_us(launch, wait, repeats=0 if options.dry_run else 7)
  except Absent as reason:
    return {"absent": str(reason)}
  except Exception as error:
    return {"error": brief(error)}
  flops, bytes_ = o.problem.flops(case["leg"]), o.problem.floor_bytes(case["leg"])
  floor_us = 1e6 * max(flops / options.given["flops_per_s"], bytes_ / options.given["bytes_per_s"])
  rates = {"median_us": us, "tflops": flops / us / 1e6, "gb_per_s": bytes_ / us / 1e3, "floor_us": floor_us}
  return {**rates, **found, **({"note": peer.note} if hasattr(peer, "note") else {})}


def check(peer, launch: Launch, wait: Callable, case: dict, o: Operands) -> dict:
  """How far samples of the result are from float64; beyond their tolerances ours is wrong, and a peer is none."""
  result = launch()
  wait(result)
  if getattr(peer, "differs", False):
    return {}
  arrays = peer.arrays(result) if hasattr(peer, "arrays") else jax.tree.leaves(result)
  leg = checked_as(case["leg"])
  off = samples.error(leg, o, arrays, by_token=getattr(peer, "by_token", False))
  if case["who"] == OURS and not off <= tolerance(leg, o.problem.dtype):
    return {"wrong": f"{off:.1e} from float64"}
  return {"difference": off, **({} if off <= MOST_DIFFERENCE else {"differs": True})}


if __name__ == "__main__":
  main()
