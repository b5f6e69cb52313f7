"""Fill the table of tile shapes: time candidates of every leg on this GPU and keep the fastest that is right.

    python benchmarks/gpu/tune.py [--table FILE] [--minutes 9] [--seed N] [--dry-run]

Entries of other devices and shapes stay, and the table is written after each leg. What was timed before is not timed
again, so that several short runs complete a table. A new FILE starts with what the package's table holds. Children
touch the GPU: a candidate that hangs or crashes costs itself. `--dry-run` times one tiny problem in the interpreter.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterable, Iterator

import guarded
from operands import dry_device
from problems import Problem
from tune_cases import KEYS, Tunable, candidates, tunables, variants

from jaxmoe.kernels.hopper import config
from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.kernels.hopper.device import Device

SCRIPT = str(pathlib.Path(__file__).with_name("tune_timed.py"))
SILENCE_S = 100.0  # start of a process, compiling all of a problem's candidates, or checking and timing one
DRY_RUN = "a dry run"  # its entries' device: what the interpreter takes for fastest is for none
STAGE = 42  # legs whose candidates, and then their best ones' variants, are timed before the next ones'

Timed = dict[Tunable, list[tuple[float, TileShape]]]


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--table", type=pathlib.Path, default=config.TABLE)
  parser.add_argument("--minutes", type=float, default=9.0, help="of the whole run")
  parser.add_argument("--seed", type=int, default=None, help="of the inputs; default: drawn anew")
  parser.add_argument("--dry-run", action="store_true", help="one tiny problem, on a CPU")
  options = parser.parse_args(arguments)
  options.until = time.monotonic() + 60 * options.minutes
  options.seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
  print(f"seed {options.seed}", flush=True)
  if not options.table.exists():
    write(options.table, json.loads(config.TABLE.read_text())["entries"])
  target = dataclasses.replace(dry_device(), kind=DRY_RUN) if options.dry_run else present()
  problems = [Problem("tiny", 16, seed=options.seed)] if options.dry_run else None
  return tune(tunables(target, options.table, options.seed, problems), target, options)


def present() -> Device:
  """The device that is here, as a child sees it: this process leaves it alone."""
  (found,) = guarded.results(SCRIPT, [{}], SILENCE_S)
  if "kind" not in found:
    sys.exit(f"the device does not answer: {found['error']}")
  return Device(found["kind"], found["processors"])


def tune(legs: list[Tunable], target: Device, options: argparse.Namespace) -> int:
  """Returns 1 if a tile shape was wrong, or ended its process."""
  wrong = 0
  for stage in itertools.batched(legs, STAGE):
    timed: Timed = {each: [] for each in stage}
    asked = [(each, shape) for each in stage for shape in candidates(each, target)[: 2 if options.dry_run else None]]
    wrong += run(asked, timed, target, options)
    best = [(each, min(found, key=lambda one: one[0])[1]) for each, found in timed.items() if found]
    wrong += run([(each, other) for each, shape in best for other in variants(each, shape)], timed, target, options)
  late = time.monotonic() >= options.until - 1
  print(f"{'out of time' if late else 'done'}; {wrong} tile shapes wrong or lost; wrote {options.table}")
  return int(wrong > 0)


def run(asked: list[tuple[Tunable, TileShape]], timed: Timed, target: Device, options: argparse.Namespace) -> int:
  """Time these and write a leg's entry when its last one is through. How many were wrong or lost."""
  wrong, left = 0, [each for each, _ in asked]
  for (each, shape), row in of_children(asked, options):
    left.remove(each)
    if "skipped" in row:
      continue
    print(f"{each.problem.model}, {each.problem.tokens} tokens, {each.leg} {each.D} {each.F}: {short(shape)}: {row}")
    wrong += "wrong" in row or "error" in row
    if "median_us" in row:
      timed[each].append((row["median_us"], shape))
    if each not in left and timed[each]:
      found = entry(each.key(target), sorted(timed[each], key=lambda one: one[0]))
      try:
        keep(options.table, found)
      except OSError as error:  # a disk without room must not cost the legs to come
        print(f"not written: {error}: {json.dumps(found)}")
    sys.stdout.flush()
  return wrong


def of_children(asked: list[tuple[Tunable, TileShape]], options: argparse.Namespace) -> Iterator[tuple]:
  cases = [
    {"problem": dataclasses.asdict(each.problem), "leg": each.leg, "swapped": each.swapped}
    | {"shape": dataclasses.asdict(shape)}
    for each, shape in asked
  ]
  arguments = ["--dry-run"] if options.dry_run else []
  for row in guarded.results(SCRIPT, cases, SILENCE_S, arguments, until=options.until):
    yield asked[row.pop("index")], row


def short(shape: TileShape) -> str:
  lag = f", {shape.stages} stages of {shape.depth}, lag {shape.lag}" if shape.lag else ""
  return f"{shape.height} x {shape.width}{' split' * shape.split_columns}, band {shape.band}{lag}"


def entry(key: tuple, timed: list[tuple[float, TileShape]]) -> dict:
  (best_us, best), (last_us, _) = timed[0], timed[-1]
  note = {"median_us": round(best_us, 1), "slowest_us": round(last_us, 1), "jax": importlib.metadata.version("jax")}
  found = dict(zip(KEYS, key, strict=True))
  return {**found, "shape": dataclasses.asdict(best), **note, "date": str(datetime.date.today())}


def keep(table: pathlib.Path, new: dict) -> None:
  """The table with this entry, instead of one of the same key."""
  entries = json.loads(table.read_text())["entries"]
  write(table, [*(e for e in entries if any(e[key] != new[key] for key in KEYS)), new])


def write(table: pathlib.Path, entries: Iterable[dict]) -> None:
  lines = ",\n    ".join(json.dumps(each) for each in sorted(entries, key=lambda e: [str(e[key]) for key in KEYS]))
  part = table.with_name(f"{table.name}.part")
  part.write_text(f'{{\n  "entries": [\n    {lines}\n  ]\n}}\n' if lines else '{\n  "entries": []\n}\n')
  os.replace(part, table)  # never half a table, whenever the run is cut short


if __name__ == "__main__":
  sys.exit(main())
