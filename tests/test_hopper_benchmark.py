"""The GPU benchmark runs through on a CPU, says what it did not measure, and survives peers that fail."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxmoe.kernels.hopper.config import TileShape

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"


def run(script, *arguments):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_dry_run(tmp_path):
  done = run("kernels.py", "--dry-run", "--out", tmp_path)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads((tmp_path / "kernels_dry_run.json").read_text())
  assert results["correctness"] and all(row["correct"] for row in results["correctness"])
  ours = {row["leg"]: row for row in results["rows"] if row["who"] == "jaxmoe"}
  assert all("median_us" in row for leg, row in ours.items() if leg != "layer")
  assert results["environment"]["ragged_dot"] == "dense"
  text = (tmp_path / "kernels_dry_run.md").read_text()
  assert "A dry run" in text and "torch cannot be imported" in text


def test_out_of_time_is_said(tmp_path):
  done = run("kernels.py", "--dry-run", "--out", tmp_path, "--minutes", 0)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads((tmp_path / "kernels_dry_run.json").read_text())
  assert {row.get("skipped") for row in results["rows"]} == {"out of time"}


def test_goals_are_judged(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  report = importlib.import_module("report")

  def row(model, tokens, skew, leg, who, us):
    rates = {"tflops": 500.0, "gb_per_s": 3500.0}
    return {"model": model, "tokens": tokens, "skew": skew, "leg": leg, "who": who, "median_us": us, **rates}

  rows = [
    row("qwen3-30b-a3b", 32768, "dirichlet", "layer", report.OURS, 100.0),
    row("qwen3-30b-a3b", 32768, "dirichlet", "layer", "Liger", 130.0),
    row("seed", 32768, "dirichlet", "up", report.OURS, 100.0),
    row("seed", 32768, "dirichlet", "up", report.DENSE, 80.0),
    row("seed", 32768, "dirichlet", "up", "tokamax triton", 170.0),
    row("seed", 32768, "dirichlet", "up", "tokamax mosaic", 150.0),
    row("seed", 64, "dirichlet", "up", report.OURS, 100.0),
    row("any", 16384, "balanced", "layer", report.OURS, 100.0),
    row("any", 16384, "quarter", "layer", report.OURS, 120.0),
    {"model": "seed", "tokens": 3, "skew": "dirichlet", "leg": "up", "who": report.OURS, "error": "it failed"},
  ]
  values = [tuple(cell.strip() for cell in line.split("|")[-3:-1]) for line in report.goals(rows)]
  assert values == [("1.30", "met"), ("500.00", "missed"), ("0.80", "missed"), ("1.50", "met"), ("3500.00", "met"),
                    ("1.20", "missed")]  # fmt: skip


@pytest.mark.slow
def test_tuning_fills_a_table_and_keeps_it(tmp_path):
  table = tmp_path / "tuned.json"
  for _ in range(2):
    done = run("tune.py", "--dry-run", "--table", table)
    assert done.returncode == 0, done.stderr[-2000:]
  entries = json.loads(table.read_text())["entries"]
  assert len({entry["leg"] for entry in entries}) == 4
  for entry in entries:
    assert TileShape(**entry["shape"]).serves(entry["leg"], entry["D"], entry["F"])
