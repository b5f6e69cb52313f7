"""The GPU benchmark runs through on a CPU, says what it did not measure, and survives peers that fail."""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxmoe.kernels import cpu_tiles
from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.hopper.config import TileShape

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"


def run(script, *arguments):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_dry_run(tmp_path):
  done = run("kernels.py", "--dry-run", "--out", tmp_path)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads((tmp_path / "kernels_dry_run.json").read_text())
  assert results["correctness"] and all(row["correct"] for row in results["correctness"])
  ours = {row["leg"]: row for row in results["rows"] if row["who"] == "jaxmoe"}
  assert ours and all("median_us" in row for row in ours.values())
  peer = {row["leg"]: row for row in results["rows"] if row["who"] == "jax.lax.ragged_dot"}
  assert all(row["difference"] < 0.02 for leg, row in peer.items() if leg != "down_fp8")
  assert results["environment"]["ragged_dot"] == "dense"
  text = (tmp_path / "kernels_dry_run.md").read_text()
  assert "A dry run" in text and "tokamax" in text


def test_out_of_time_is_said(tmp_path):
  done = run("kernels.py", "--dry-run", "--out", tmp_path, "--minutes", 0)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads((tmp_path / "kernels_dry_run.json").read_text())
  assert {row.get("skipped") for row in results["rows"]} == {"out of time"}


def test_unknown_section_is_refused(tmp_path):
  done = run("kernels.py", "--sections", "qwen", "--out", tmp_path)
  assert done.returncode == 2 and "no section is named qwen" in done.stderr


HANGS = """
import argparse, json, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--cases", type=int, nargs="*")
for case in parser.parse_args().cases:
  print(json.dumps({"begins": case}), flush=True)
  if case == 1:
    time.sleep(60)
  if case == 3:
    os._exit(7)
  print("words that are no result")
  print(json.dumps({"index": case, "correct": True}), flush=True)
"""


def test_a_case_that_hangs_or_crashes_costs_only_itself(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  script = tmp_path / "script.py"
  script.write_text(HANGS)
  results = list(importlib.import_module("guarded").results(str(script), 5, 3.0, []))
  assert [row["index"] for row in results] == [0, 1, 2, 3, 4]
  assert [row["correct"] for row in results] == [True, False, True, False, True]
  assert "nothing came within 3 s" in results[1]["error"] and "ended with code 7" in results[3]["error"]


@pytest.mark.parametrize("leg", ["matmul", "gated_up clamped", "matmul_scaled", "matmuls_transposed", "layer"])
@pytest.mark.parametrize("dtype, factor", [
  ("bfloat16", 1.0), ("bfloat16", 1.05), ("float16", 1.0), ("float16", 1.003), ("float32", 1.0), ("float32", 1.0001),
])  # fmt: skip
def test_the_check_objects(leg, dtype, factor, monkeypatch):
  """A few roundings off is wrong; what another implementation computes is right."""
  monkeypatch.syspath_prepend(FOLDER)
  correctness, problems = importlib.import_module("correctness"), importlib.import_module("problems")
  for name in ("matmul", "gated_up", "matmul_scaled", "matmuls_transposed"):
    served = lambda *a, device, name=name, **more: jax.tree.map(  # noqa: E731
      lambda array: factor * array, getattr(cpu_tiles, name)(*a, **more)
    )
    monkeypatch.setattr(correctness.legs, name, served)
  run_layer = functools.partial(expert_ffn, implementation=None)
  monkeypatch.setattr(correctness, "expert_ffn", lambda *a, implementation, **more: factor * run_layer(*a, **more))
  row = correctness.check(problems.Problem("tiny", 16, dtype=dtype), leg, None)
  assert row["correct"] == (factor == 1.0), row


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
  values = [tuple(cell.strip() for cell in line.split("|")[-3:-1]) for line in report.goals(rows, decode_gb_per_s=3440)]
  assert values == [("1.30", "met"), ("500.00", "missed"), ("0.80", "missed"), ("1.50", "met"), ("3500.00", "met"),
                    ("1.20", "missed")]  # fmt: skip


@pytest.mark.slow
def test_tuning_fills_a_table_and_keeps_it(tmp_path):
  table = tmp_path / "tuned.json"
  for _ in range(2):
    done = run("tune.py", "--dry-run", "--table", table)
    assert done.returncode == 0, done.stderr[-2000:]
  entries = json.loads(table.read_text())["entries"]
  assert len({entry["leg"] for entry in entries}) == 5
  for entry in entries:
    assert TileShape(**entry["shape"]).serves(entry["leg"], entry["D"], entry["F"])
