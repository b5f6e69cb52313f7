"""One rank's share of each document's plan on the accelerator that is here, beside the planner's time for it.

    python benchmarks/gpu/measure.py [--out FOLDER] [--cluster dgx_h200] [--steps 20] [--dry-run]

The share is a deployment of one device (jaxmoe.cost.one_rank.py): its layers, heads, expert rows and columns, without
collectives. The planner's time is that of the same deployment on `--cluster`. `--dry-run` measures reduced copies on
whatever is here; their times mean nothing.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jaxmoe.config.catalogue import deployment_names, load_cluster, load_deployment  # noqa: E402
from jaxmoe.config.deployment import Deployment  # noqa: E402
from jaxmoe.config.reduced import reduced, with_precision  # noqa: E402
from jaxmoe.cost.estimate import estimate  # noqa: E402
from jaxmoe.cost.one_rank import one_rank  # noqa: E402
from jaxmoe.xla.measured import Measured  # noqa: E402
from jaxmoe.xla.verify import measure  # noqa: E402

HEADERS = ("plan", "job", "predicted ms (formula)", "measured ms", "spread", "measured / predicted")


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
  parser.add_argument("--cluster", default="dgx_h200")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args(arguments)
  options.out.mkdir(parents=True, exist_ok=True)
  rows = []
  for name in deployment_names():
    d = _on(one_rank(_small(name) if options.dry_run else load_deployment(name)), options.cluster)
    measured = measure(d, "local", options.steps, lambda line, name=name: print(f"{name}: {line}", flush=True))
    rows.append({"deployment": d.name, "job": d.job.kind, "predicted_s": estimate(d).time.total_s, **_plain(measured)})
    _write(options, rows)  # after each, so that a run that is cut short keeps what it measured
  return 0


def _small(name: str) -> Deployment:
  return with_precision(reduced(load_deployment(name), 16), "bfloat16")


def _on(d: Deployment, cluster: str) -> Deployment:
  return dataclasses.replace(d, cluster=load_cluster(cluster))


def _plain(m: Measured) -> dict[str, object]:
  return {**dataclasses.asdict(m), "median_s": m.median_s, "spread": m.spread}


def _write(options: argparse.Namespace, rows: list[dict]) -> None:
  stem = "measure_dry_run" if options.dry_run else "measure"
  document = {"date": datetime.date.today().isoformat(), "cluster": options.cluster, "rows": rows}
  (options.out / f"{stem}.json").write_text(json.dumps(document, indent=2) + "\n")
  lines = [f"# One rank of each plan on {rows[0]['device']}, {document['date']}", ""]
  lines += [f"Command: `python benchmarks/gpu/measure.py --cluster {options.cluster}`; {rows[0]['versions']}", ""]
  lines += ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS), *map(_line, rows)]
  (options.out / f"{stem}.md").write_text("\n".join(lines) + "\n")


def _line(row: dict) -> str:
  predicted, measured = row["predicted_s"], row["median_s"]
  cells = (row["deployment"], row["job"], f"{1e3 * predicted:.4g}", f"{1e3 * measured:.4g}",
           f"{100 * row['spread']:.1f} %", f"{measured / predicted:.2f}")  # fmt: skip
  return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
  sys.exit(main())
