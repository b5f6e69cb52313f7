"""How long `jaxmoe verify` takes for each document, cold and again, on two cores, and its compiler's memory.

python benchmarks/verify.py [--targets cpu tpu]

Each is a process of its own; the first finds an empty cache, the second what the first left there. Writes
benchmarks/results/verify.md and prints it.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

from jaxmoe.config.catalogue import document_names

RESULT = pathlib.Path(__file__).parent / "results" / "verify.md"
CORES, MOST_COLD_S, MOST_BYTES, LEAST_RATIO = 2, 60, 6e9, 5


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--targets", nargs="+", default=["cpu", "tpu"])
  targets = parser.parse_args().targets
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  load_before = os.getloadavg()[0]
  rows = [timed(name, target) for target in targets for name in document_names()]
  RESULT.write_text(report(rows, load_before))
  print(RESULT.read_text())


def timed(name: str, target: str) -> dict[str, Any]:
  """Seconds of both processes, and what the first one said."""
  with tempfile.TemporaryDirectory() as cache:
    cold_s, said = run(name, target, cache)
    again_s, _ = run(name, target, cache)
  print(f"{name} on {target}: {cold_s:.1f} s, {again_s:.1f} s", file=sys.stderr)
  return {"name": name, "target": said["target"], "cold_s": cold_s, "again_s": again_s, **said}


def run(name: str, target: str, cache: str) -> tuple[float, dict[str, Any]]:
  command = [sys.executable, "-m", "jaxmoe", "verify", name, "--target", target, "--json"]
  start = time.perf_counter()
  done = subprocess.run(command, env={**os.environ, "JAXMOE_CACHE_DIR": cache}, stdout=subprocess.PIPE, check=True)
  return time.perf_counter() - start, json.loads(done.stdout)


def report(rows: list[dict[str, Any]], load_before: float) -> str:
  kept = [r["cold_s"] <= MOST_COLD_S and r["compiler_peak_bytes"] <= MOST_BYTES for r in rows]
  faster = [r["cold_s"] >= LEAST_RATIO * r["again_s"] for r in rows]
  lines = [
    "# Seconds of `jaxmoe verify`, measured",
    "",
    f"{datetime.date.today()}, {platform.machine()}, tied to {CORES} cores, Python {platform.python_version()},"
    f" load average {load_before:.1f} before. Made by `python benchmarks/verify.py`.",
    "",
    "| deployment | target | cold s | again s | ratio | compiler's GB |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
  ]
  lines += [
    f"| {r['name']} | {r['target']} | {r['cold_s']:.1f} | {r['again_s']:.2f} | {r['cold_s'] / r['again_s']:.0f} |"
    f" {r['compiler_peak_bytes'] / 1e9:.2f} |"
    for r in rows
  ]
  goals = f"At most {MOST_COLD_S} s cold and {MOST_BYTES / 1e9:.0f} GB: {sum(kept)} of {len(rows)}."
  return "\n".join(
    [*lines, "", f"{goals} Again at least {LEAST_RATIO} times faster: {sum(faster)} of {len(rows)}.", ""]
  )


if __name__ == "__main__":
  main()
