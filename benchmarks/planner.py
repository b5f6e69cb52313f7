"""Speed of `jaxmoe plan` on one core: estimates a second against one plan at a time, a cold start, and growth.

python benchmarks/planner.py [--rounds N]

A complete estimate is a legal plan whose memory and time are both priced. Both ways of pricing take turns, so that
whatever else the machine does meets them alike; medians count. Writes benchmarks/results/planner.md and prints it.
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import get_args

import numpy as np
import yaml

from jaxmoe import __version__
from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job, Kind
from jaxmoe.cost.memory import memory
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.planner.question import Question
from jaxmoe.planner.search import Found, search
from jaxmoe.planner.space import whole_space

RESULT = pathlib.Path(__file__).parent / "results" / "planner.md"
MODEL, CLUSTER, DEVICES = "deepseek-v3", "dgx_h100", 1024
GROWTH = (64, 256, 1024, 4096, 16_384, 65_536, 100_000)
ALONE = 200  # plans of the loop over single deployments
LEAST_PER_S, MOST_COLD_S, MOST_BYTES = 1_000_000, 1.5, 500_000_000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5, help="turns of each candidate (default 5)")
  rounds = parser.parse_args().rounds
  os.environ.update(ONE_THREAD)  # of the children; the search itself calls nothing that has threads
  core = one_core()
  load_before = os.getloadavg()[0]
  sections = [*speed(rounds), *cold(rounds), *growth(rounds)]
  RESULT.write_text(report(sections, rounds, core, load_before))
  print(RESULT.read_text())


def one_core() -> str:
  """Ties this process and its children to one core, where the system can."""
  if not hasattr(os, "sched_setaffinity"):
    return "not tied to a core"
  core = max(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {core})
  return "tied to one core"


def question(devices: int) -> Question:
  """Training with at least a sequence a device."""
  job = Job(kind="train", batch=max(DEVICES, devices), sequence_length=4096)
  return Question(
    model=load_model(MODEL), cluster=cluster_of(devices), devices=devices, job=job, space=whole_space("train")
  )


def cluster_of(devices: int) -> Cluster:
  """The catalogue's, its outermost network made large enough."""
  cluster = load_cluster(CLUSTER)
  if devices <= cluster.devices:
    return cluster
  last = dataclasses.replace(cluster.tiers[-1], devices=devices)
  return dataclasses.replace(cluster, devices=devices, tiers=(*cluster.tiers[:-1], last))


def speed(rounds: int) -> list[str]:
  """The search against a loop over some of its plans."""
  asked = question(DEVICES)
  found, plans = search(asked), [c.deployment(asked) for c in search(asked, ALONE).best]
  seconds: dict[str, list[float]] = {"search": [], "loop": []}
  for _ in range(rounds):
    seconds["search"].append(seconds_of(lambda: search(asked)))
    seconds["loop"].append(seconds_of(lambda: one_at_a_time(plans)))
  search_s, loop_s = (statistics.median(times) for times in seconds.values())
  complete, alone = found.timed / search_s, len(plans) / loop_s
  rows = [
    ("all considered, legal or not", found.considered),
    ("legal: memory priced", found.priced),
    ("complete: memory and time priced", found.timed),
    ("fit the devices' memory", found.fitting),
  ]
  return [
    f"## Estimates a second: {MODEL}, training on {DEVICES:,} devices of {CLUSTER}",
    "",
    "| plans | number | a second |",
    "| --- | ---: | ---: |",
    *(f"| {what} | {number:,} | {number / search_s:,.0f} |" for what, number in rows),
    "",
    f"The whole search takes {search_s:.3f} s (fastest {min(seconds['search']):.3f} s): {complete:,.0f} complete"
    f" estimates a second (at least {LEAST_PER_S:,}: {met(complete >= LEAST_PER_S)}). `memory` and `step_time` of one"
    f" deployment after another, {len(plans)} of them: {alone:,.0f} a second. Ratio: {complete / alone:,.0f}.",
    "",
  ]


def one_at_a_time(plans: list[Deployment]) -> None:
  for plan in plans:
    memory(plan)
    step_time(plan)


def _search_s(asked: Question, kept: list[Found]) -> float:
  """Seconds of one search, whose finding is kept."""
  return seconds_of(lambda: kept.append(search(asked)))


def seconds_of(work) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def cold(rounds: int) -> list[str]:
  """The command in processes of their own: start-up, search, and the answer's tables."""
  words = ["plan", "--model", MODEL, "--cluster", CLUSTER, "--devices", f"{DEVICES}"]
  lines = [
    f"## A cold `jaxmoe {' '.join(words)}`",
    "",
    f"Of {rounds} processes for each job, start-up included; at most {MOST_COLD_S} s and {MOST_BYTES / 1e6:.0f} MB.",
    "",
    "| job | median s | least | most | most MB | |",
    "| --- | ---: | ---: | ---: | ---: | --- |",
  ]
  for job in get_args(Kind):
    runs = [_cold_run([*words, "--job", job]) for _ in range(rounds)]
    seconds, most_bytes = [s for s, _ in runs], max(used for _, used in runs)
    median_s = statistics.median(seconds)
    kept = met(median_s <= MOST_COLD_S and most_bytes <= MOST_BYTES)
    cells = [job, *(f"{s:.2f}" for s in (median_s, min(seconds), max(seconds))), f"{most_bytes / 1e6:.0f}", kept]
    lines.append(f"| {' | '.join(cells)} |")
  return [*lines, ""]


def _cold_run(words: list[str]) -> tuple[float, int]:
  """Seconds and bytes of one process."""
  start = time.perf_counter()
  child = subprocess.Popen([sys.executable, "-m", "jaxmoe", *words], stdout=subprocess.DEVNULL)
  _, status, usage = os.wait4(child.pid, 0)
  took_s = time.perf_counter() - start
  child.returncode = os.waitstatus_to_exitcode(status)
  if child.returncode:
    raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
  return took_s, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(rounds: int) -> list[str]:
  """The same search on more and more devices, in batches of a sequence a device, or 1024."""
  lines = [
    "## Growth with the number of devices",
    "",
    "| devices | considered | legal | complete | s | µs a plan considered | µs a legal plan |",
    "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
  ]
  for devices in GROWTH:
    asked, kept = question(devices), list[Found]()
    took_s = statistics.median(_search_s(asked, kept) for _ in range(rounds))
    found = kept[-1]
    counts = f"{found.considered:,} | {found.priced:,} | {found.timed:,}"
    each = f"{took_s / found.considered * 1e6:.2f} | {took_s / found.priced * 1e6:.2f}"
    lines.append(f"| {devices:,} | {counts} | {took_s:.2f} | {each} |")
  return lines


def met(target: bool) -> str:
  return "met" if target else "missed"


def report(sections: list[str], rounds: int, core: str, load_before: float) -> str:
  versions = f"Python {platform.python_version()}, numpy {np.__version__}, PyYAML {yaml.__version__}"
  machine = f"{datetime.date.today()}, {processor()}, {os.cpu_count()} CPUs, {core}"
  return "\n".join([
    "# Speed of `jaxmoe plan`, measured",
    "",
    f"{machine}; jaxmoe {__version__}, {versions}. Load average"
    f" {load_before:.1f} before, {os.getloadavg()[0]:.1f} after: others may have shared the core. Medians of {rounds}"
    " turns. Made by `python benchmarks/planner.py`.",
    "",
    *sections,
    "",
  ])  # fmt: skip


def processor() -> str:
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
  main()
