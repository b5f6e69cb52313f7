"""One rank's share of each document's plan on the accelerator that is here, beside the planner's time for it.

    python benchmarks/gpu/measure.py [--out FOLDER] [--cluster dgx_h200] [--steps 20] [--minutes 8] [--dry-run]

The share is a deployment of one device (jaxmoe.cost.one_rank.py): its layers, heads, expert rows and columns, without
collectives. The planner's time is that of the same deployment on `--cluster`. The shortest come first; one that fails
costs its own row. Steps are fewer where `--steps` would take long. `--dry-run` measures reduced copies on whatever is
here; their times mean nothing.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from recorded import RESULTS, now, query, stem, versions

from jaxmoe.config.catalogue import document_names, load_cluster, load_deployment
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.reduced import reduced, with_precision
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.one_rank import one_rank
from jaxmoe.xla.verify import measure

FEWEST_STEPS, SECONDS_A_PLAN = 3, 20.0
LONGEST_PLAN_S, LATE_S = 180.0, 60.0  # of a plan's process; and how long after the run's end one may go on
HEADERS = ("plan", "job", "predicted ms (formula)", "measured ms", "spread", "measured / predicted")


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  parser.add_argument("--cluster", default="dgx_h200")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--minutes", type=float, default=8.0, help="start nothing new after this long")
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args(arguments)
  options.out.mkdir(parents=True, exist_ok=True)
  deadline = time.monotonic() + 60 * options.minutes
  plans = [_small(name) if options.dry_run else load_deployment(name) for name in document_names()]
  record = begun(options)
  rows = record["rows"]
  for d in sorted((_on(one_rank(plan), options.cluster) for plan in plans), key=_predicted_s):
    named = {"deployment": d.name, "job": d.job.kind, "predicted_s": _predicted_s(d)}
    left = deadline - time.monotonic()
    limit = min(LONGEST_PLAN_S, left + LATE_S)
    rows.append({**named, **({"error": "out of time"} if left < 0 else _measured(d, options.steps, limit))})
    print(_line(rows[-1]), flush=True)
    _write(options, record)  # after each, so that a run that is cut short keeps what it measured
  return int(all("error" in row for row in rows))


def _predicted_s(d: Deployment) -> float:
  return estimate(d).time.total_s


def _measured(d: Deployment, steps: int, timeout_s: float) -> dict[str, object]:
  """What the clock says, or why there is nothing."""
  affordable = max(FEWEST_STEPS, int(SECONDS_A_PLAN / _predicted_s(d)))
  steps = min(steps, affordable)
  try:
    measured = measure(d, "local", steps, lambda line: print(f"{d.name}: {line}", flush=True), timeout_s=timeout_s)
  except Exception as error:  # too large for the device, or refused by it: the others may still run
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
  return {**dataclasses.asdict(measured), "median_s": measured.median_s, "spread": measured.spread}


def _small(name: str) -> Deployment:
  return with_precision(reduced(load_deployment(name), 16), "bfloat16")


def _on(d: Deployment, cluster: str) -> Deployment:
  return dataclasses.replace(d, cluster=load_cluster(cluster))


def begun(options: argparse.Namespace) -> dict[str, Any]:
  """The record to be: when, on what, with which versions, and no row yet. This process leaves the device alone."""
  device = query("name")
  known = "nothing that nvidia-smi knows" if device.startswith("unknown") else device
  about = {"date": now(), "device": known, "driver": query("driver_version"), "versions": versions()}
  return {**about, "cluster": options.cluster, "dry_run": options.dry_run, "rows": []}


def _write(options: argparse.Namespace, record: dict[str, Any]) -> None:
  name = "measure_dry_run" if options.dry_run else stem("measure", record["device"], record["date"])
  (options.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
  (options.out / f"{name}.md").write_text(markdown(record))


def markdown(record: dict[str, Any]) -> str:
  device = next((row["device"] for row in record["rows"] if "device" in row), record["device"])
  lines = [f"# One rank of each plan on {device}, measured", "", f"{record['date']}, driver {record['driver']}.", ""]
  lines += [", ".join(f"{name} {number}" for name, number in record["versions"].items()) + ".", ""]
  lines += [f"Made by `python benchmarks/gpu/measure.py --cluster {record['cluster']}`.", ""]
  if record["dry_run"]:
    lines += ["**A dry run of reduced copies: times mean nothing.**", ""]
  lines += ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS), *map(_line, record["rows"])]
  return "\n".join(lines) + "\n"


def _line(row: dict) -> str:
  cells = [row["deployment"], row["job"], f"{1e3 * row['predicted_s']:.4g}"]
  if "error" in row:
    return "| " + " | ".join([*cells, row["error"].replace("|", "/"), "", ""]) + " |"
  measured = row["median_s"]
  cells += [f"{1e3 * measured:.4g}", f"{100 * row['spread']:.1f} %", f"{measured / row['predicted_s']:.2f}"]
  return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
  sys.exit(main())
