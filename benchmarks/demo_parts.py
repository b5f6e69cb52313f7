"""Seconds of each part of `jaxmoe demo`, with the machine and versions: `make bench`.

Writes benchmarks/results/demo_parts.md and prints it. The demo must end within 120 s on 2 cores.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

RESULT = pathlib.Path(__file__).parent / "results" / "demo_parts.md"
PARTS = {"estimate": "plan and predict", "verify": "compile for 128 devices and compare", "train": "reduced copy"}


def main() -> None:
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, "-m", "jaxmoe", "demo", "--json"], stdout=subprocess.PIPE, text=True, check=True
  )
  total_s = time.perf_counter() - start
  demo = json.loads(done.stdout)
  versions = demo["verification"]["versions"]
  rows = [(name, demo["seconds"][part]) for part, name in PARTS.items()]
  rows += [(f"  of which {phase}", s) for phase, s in demo["verification"]["seconds"].items()]
  rows.append(("whole command, start-up included", total_s))
  text = "# Seconds of `jaxmoe demo`, measured\n\n"
  text += f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
  text += ", ".join(f"{name} {version}" for name, version in versions.items())
  text += f". Load average before: {os.getloadavg()[0]:.1f}. Made by `make bench`.\n\n| part | s |\n| --- | ---: |\n"
  text += "".join(f"| {name} | {seconds:.2f} |\n" for name, seconds in rows)
  RESULT.write_text(text)
  print(text)


if __name__ == "__main__":
  main()
