"""Expert kernels on one NVIDIA Hopper GPU, beside their peers: correctness first, then medians of one run.

    python benchmarks/gpu/kernels.py [--out FOLDER] [--minutes 9] [--sections NAME ...] [--without PEER ...]
                                     [--check-only] [--check-anew] [--seed N] [--dry-run]

Needs jax with CUDA. tokamax, torch and liger-kernel are measured if they are installed, else noted as absent. Results
are written after every row as JSON and Markdown, so a run that is cut short keeps what it measured. Whatever touches
the GPU runs in a child process: first ours, then peers, so that what hangs or crashes costs its own rows. `--dry-run`
goes through the same code on a CPU with one tiny problem; its times mean nothing.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import checked
import guarded
import timed_cases
from goals import OURS, goals
from problems import TIMED_DTYPE, Section, cases_to_check, checked_as, plan, tiny_plan
from recorded import RESULTS, stem
from report import markdown
from timed_cases import Case

HERE = pathlib.Path(__file__).parent
CHECK_SILENCE_S = 120.0  # of a kernel that is compiled and run: longer means that it hangs


def main(arguments: list[str] | None = None) -> int:
  options = parsed(arguments)
  options.until = time.monotonic() + 60 * options.minutes
  options.out.mkdir(parents=True, exist_ok=True)
  options.child = ["--dry-run"] if options.dry_run else []
  results = begun(options)
  failed = correctness(results, options)
  if not options.check_only:
    failed |= rows(results, options)
    print("\n".join(["| case | measure | limit | value | |", *goals(results)]))
  print(f"wrote {write(options, results)}; seed {options.seed}")
  return int(failed)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  parser.add_argument("--minutes", type=float, default=9.0, help="of the whole run")
  parser.add_argument("--sections", nargs="*", help=f"of {', '.join(section.name for section in plan())}; default all")
  parser.add_argument("--without", nargs="*", default=[], metavar="PEER", help=f"of {', '.join(timed_cases.PEERS)}; "
                      "or how their names begin")  # fmt: skip
  parser.add_argument("--check-only", action="store_true", help="time nothing")
  parser.add_argument("--check-anew", action="store_true", help="also what an earlier run checked")
  parser.add_argument("--seed", type=int, default=None, help="of the inputs; default: drawn anew")
  parser.add_argument("--dry-run", action="store_true", help="one tiny problem, on a CPU")
  options = parser.parse_args(arguments)
  if unknown := set(options.sections or ()) - {section.name for section in plan()}:
    parser.error(f"--sections: no section is named {', '.join(sorted(unknown))}; --help lists them")
  if unknown := [name for name in options.without if not any(peer.startswith(name) for peer in timed_cases.PEERS)]:
    parser.error(f"--without: no peer is named {', '.join(unknown)}; --help lists them")
  if options.seed is None:
    options.seed = random.SystemRandom().randrange(2**31)
  return options


def begun(options: argparse.Namespace) -> dict[str, Any]:
  """The results to be: what this is run on, and nothing else yet."""
  print(f"seed {options.seed}", flush=True)
  (found,) = guarded.results(str(HERE / "environment.py"), [{}], 120.0, options.child)
  if "environment" not in found:
    sys.exit(f"the device does not answer: {found['error']}")
  results = {**found, "seed": options.seed, "dry_run": options.dry_run, "correctness": [], "rows": []}
  print(json.dumps({**results["environment"], **results["ceilings"]}, indent=1), flush=True)
  return results


def correctness(results: dict, options: argparse.Namespace) -> bool:
  """Check each leg, in the dtype that is timed, or with `--check-only` in all. Whether one is wrong."""
  cases = [case for case in cases_to_check(dry_run=options.dry_run, seed=options.seed)
           if options.check_only or case[0].dtype == TIMED_DTYPE]  # fmt: skip
  known = {} if options.check_anew else checked.earlier([options.out, RESULTS])
  keys = [checked.key(*case, results["environment"]) for case in cases]
  for key in keys:
    if key in known:
      results["correctness"].append({**known[key], "reused": True})
  reused = len(results["correctness"])
  print(f"{reused} of {len(cases)} checks hold from an earlier run", flush=True)
  left = [(key, *case) for key, case in zip(keys, cases, strict=True) if key not in known]
  for row in newly_checked(left, options):
    results["correctness"].append(row)
    print(json.dumps(row), flush=True)
    write_if_possible(options, results)
  wrong = wrong_legs(results)
  print(f"{len(wrong)} legs wrong{': ' if wrong else ''}{', '.join(sorted(wrong))}", flush=True)
  return bool(wrong)


def newly_checked(left: list[tuple], options: argparse.Namespace) -> Iterator[dict]:
  cases = [{"problem": dataclasses.asdict(problem), "leg": leg} for _, problem, leg in left]
  script = str(HERE / "correctness.py")
  for row in guarded.results(script, cases, CHECK_SILENCE_S, options.child, until=options.until):
    key, problem, leg = left[row.pop("index")]
    yield {"model": problem.model, "tokens": problem.tokens, "dtype": problem.dtype, "leg": leg, "key": key, **row}


def wrong_legs(results: dict) -> set[str]:
  return {row["leg"] for row in results["correctness"] if row.get("correct") is False}


def rows(results: dict, options: argparse.Namespace) -> bool:
  """Time ours, then peers. Whether one of ours failed or was wrong."""
  wrong, unchecked = wrong_legs(results), {row["leg"] for row in results["correctness"] if "skipped" in row}
  for cases in (timed_cases.of_ours(chosen(options)), timed_cases.of_peers(chosen(options), options.without)):
    sound = [case for case in cases if case.who != OURS or checked_as(case.leg) not in wrong]
    timed = [{**case.label, "skipped": "wrong in the check"} for case in cases if case not in sound]
    for case, row in of_children(sound, results, options):
      remark = {"remark": "not checked before: out of time"} if checked_as(case.leg) in unchecked else {}
      timed.append({**case.label, **row, **(remark if case.who == OURS else {})})
      if row != guarded.OUT_OF_TIME:
        print(json.dumps(timed[-1]), flush=True)
        write_if_possible(options, {**results, "rows": [*results["rows"], *timed]})
    results["rows"] += timed
  write_if_possible(options, results)
  return any(row["who"] == OURS and ("error" in row or "wrong" in row) for row in results["rows"])


def chosen(options: argparse.Namespace) -> list[Section]:
  sections = tiny_plan(options.seed) if options.dry_run else plan(options.seed)
  return [section for section in sections if not options.sections or section.name in options.sections]


def of_children(cases: list[Case], results: dict, options: argparse.Namespace) -> Iterator[tuple[Case, dict]]:
  """Each case and what a child said of it."""
  documents = [{"problem": dataclasses.asdict(case.problem), "leg": case.leg, "who": case.who} for case in cases]
  given = json.dumps({**results["ceilings"], "ragged_dot": results["environment"]["ragged_dot"]})
  arguments, ended = ["--given", given, *options.child], []

  def give_up(index: int) -> list[int]:
    """At once of peers; of ours, which matter more, the second time."""
    ended.append((cases[index].who, cases[index].leg))
    return timed_cases.alike(cases, index) if cases[index].who != OURS or ended.count(ended[-1]) > 1 else []

  script = str(HERE / "timed.py")
  said = guarded.results(script, documents, timed_cases.SILENCE_S, arguments, until=options.until, give_up=give_up)
  for row in said:
    row.pop("correct", None)
    yield cases[row.pop("index")], row


def write_if_possible(options: argparse.Namespace, results: dict) -> None:
  """On the way: a disk without room must not cost the rows to come, and these have been printed."""
  try:
    write(options, results)
  except OSError as error:
    print(f"not written: {error}", flush=True)


def write(options: argparse.Namespace, results: dict) -> pathlib.Path:
  env = results["environment"]
  name = "kernels_dry_run" if results["dry_run"] else stem("kernels", env["device"], env["date"])
  for ending, text in (("json", json.dumps(results, indent=1)), ("md", markdown(results))):
    part = options.out / f"{name}.{ending}.part"
    part.write_text(text)
    os.replace(part, options.out / f"{name}.{ending}")  # never half a file, whenever the run is cut short
  return options.out / f"{name}.json"


if __name__ == "__main__":
  sys.exit(main())
