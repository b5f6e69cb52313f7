"""Tuning: what is tried first, that nothing wrong is kept, and that a table keeps what it held."""

import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import types

import jax.numpy as jnp
import pytest

from jaxmoe.kernels import cpu_tiles
from jaxmoe.kernels.hopper import config
from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.kernels.hopper.device import Device

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
H200 = Device("NVIDIA H200", 132)


@pytest.fixture
def script(monkeypatch):
  """Imports a module of the benchmark."""
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module


@pytest.fixture
def table(tmp_path):
  file = tmp_path / "tuned.json"
  file.write_text('{"entries": []}')
  return file


@pytest.mark.slow
def test_tuning_fills_a_table_and_keeps_it(tmp_path):
  table = tmp_path / "tuned.json"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(FOLDER / "tune.py"), "--dry-run", "--table", str(table)]
  for _ in range(2):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
  assert "128 x" not in done.stdout  # nothing was timed again
  entries = json.loads(table.read_text())["entries"]
  assert len({entry["leg"] for entry in entries}) == 5
  assert {entry["device"] for entry in entries} == {"a dry run"}  # no device is called so: none takes these tiles
  for entry in entries:
    assert TileShape(**entry["shape"]).serves(entry["leg"], entry["D"], entry["F"])


def test_what_goals_are_judged_by_is_tuned_first(script, table):
  legs = script("tune_cases").tunables(H200, table, 0)
  order = [key for key, _ in itertools.groupby(legs, key=lambda each: (each.problem.model, each.problem.tokens))]
  few = [(model, 64) for model in ("seed", "qwen3-30b-a3b", "mixtral", "deepseek-v3")]
  assert order[:9] == [("qwen3-30b-a3b", 32768), ("seed", 32768), ("mixtral", 8192), ("deepseek-v3", 16384), *few,
                       ("qwen3-30b-a3b", 16384)]  # fmt: skip
  assert len({each.key(H200) for each in legs}) == len(legs)
  goals = legs[: script("tune").STAGE]
  assert {each.problem.model for each in goals if each.leg == "weight_gradient"} == {
    "qwen3-30b-a3b", "seed", "mixtral", "deepseek-v3"}  # fmt: skip


def test_candidates_are_few_but_enough(script, table):
  cases = script("tune_cases")
  legs = cases.tunables(H200, table, 0)
  for each in legs:
    found = cases.candidates(each, H200)
    serving = [shape for shape in config.candidates() if shape.serves(each.leg, each.D, each.F)]
    assert found[0] == each.rule(H200) and len(set(found)) == len(found) >= min(3, len(serving))
    assert min(serving, key=lambda shape: cases.least_cycles(each, shape, 132)) in found
  goals = legs[: script("tune").STAGE]
  assert sum(len(cases.candidates(each, H200)) + len(cases.variants(each, each.rule(H200))) for each in goals) < 300


def test_variants_of_a_tile_serve_its_leg(script, table):
  """Two other orders; and two that lag where rows are many, unless consumers meet within a tile."""
  cases = script("tune_cases")
  for each in cases.tunables(H200, table, 0):
    rule = each.rule(H200)
    found = cases.variants(each, rule)
    lags = rule.height > 64 and each.leg not in ("matmul_scaled", "weight_gradient")
    assert [shape.lag for shape in found] == [0, 0, *[1, 3] * lags] and rule not in found
    assert all(shape.serves(each.leg, each.D, each.F) for shape in found)


def test_idle_processors_and_small_tiles_cost(script):
  cases, problems = script("tune_cases"), script("problems")
  many = cases.Tunable(problems.Problem("seed", 32768), "matmul", 2048, 1024, False)
  wide, narrow = TileShape(height=128, width=256), TileShape(height=128, width=64)
  assert cases.least_cycles(many, narrow, 132) > 1.3 * cases.least_cycles(many, wide, 132)
  assert cases.least_cycles(many, wide, 10**6) == cases.least_cycles(many, wide, 10**5)  # one turn is the least


def test_all_are_compiled_in_threads_before_one_is_timed(script):
  done, together = [], threading.Barrier(3, timeout=20)
  builds = [lambda: done.append("first") or "first"]
  builds += [lambda place=place: (together.wait(), place, list(done))[1:] for place in range(3)] + [lambda: 1 / 0]
  ready = script("compiling").built(builds, 4)
  assert [each() for each in ready[:4]] == ["first", *((place, ["first"]) for place in range(3))]
  with pytest.raises(ZeroDivisionError):
    ready[4]()
  assert script("compiling").built(builds, 0) == builds and script("compiling").built([], 4) == []


def test_a_tile_shape_that_is_wrong_is_not_timed(script):
  tune, operands, problems = script("tune_timed"), script("operands"), script("problems")
  o = operands.operands(problems.Problem("tiny", 16, seed=1))
  right, case = cpu_tiles.matmul(o.y_NF, o.down_EFD, o.sizes_E), {"leg": "matmul", "swapped": False}
  time_one = lambda result, base: tune.time_one(case, lambda: lambda: result, o, base, 0)  # noqa: E731
  row, base = time_one(jnp.zeros_like(right), None)
  assert "from float64" in row["wrong"] and base is None
  row, base = time_one(right, None)
  assert row["median_us"] > 0 and base is not None
  for wrong in (jnp.zeros_like(right), right.at[3, 5].set(jnp.nan), right.at[0, 0].add(1.0)):
    row, kept = time_one(wrong, base)
    assert "from another tile shape" in row["wrong"] and "median_us" not in row and kept is base
  assert "median_us" in time_one(right, base)[0]


def test_the_fastest_that_is_right_is_kept(script, table, monkeypatch):
  """Also where its process ended on the way, and variants of the fastest only."""
  tune, cases, problems = script("tune"), script("tune_cases"), script("problems")
  legs = cases.legs_of(problems.Problem("seed", 32768))[:2]
  asked_before = []

  def of_children(asked, options):
    asked_before.append(asked)
    for each, shape in asked:
      us = 1.0 * shape.height + shape.width + shape.band + shape.lag
      row = {"wrong": "1e0"} if shape.height == 64 else {"error": "hung"} if shape.width == 128 else {"median_us": us}
      yield (each, shape), row

  monkeypatch.setattr(tune, "of_children", of_children)
  assert tune.tune(legs, H200, types.SimpleNamespace(table=table, dry_run=False, until=float("inf"))) == 1
  entries = json.loads(table.read_text())["entries"]
  assert [entry["leg"] for entry in entries] == ["gated_up", "matmul"]
  assert all((e["shape"]["height"], e["shape"]["width"], e["shape"]["band"]) == (128, 256, 4) for e in entries)
  assert len(asked_before) == 2 and {(shape.band, shape.lag) for _, shape in asked_before[1]} == {
    (4, 0),
    (16, 0),
    (8, 1),
    (8, 3),
  }
  tune.keep(table, {**entries[0], "device": "another"})
  tune.keep(table, {**entries[0], "median_us": 0.5})
  assert sorted(e["median_us"] for e in json.loads(table.read_text())["entries"])[0] == 0.5
  assert len(json.loads(table.read_text())["entries"]) == 3


def test_a_full_disk_does_not_end_tuning(script, table, monkeypatch, capsys):
  tune, cases, problems = script("tune"), script("tune_cases"), script("problems")
  full, keep = [True], tune.keep

  def no_room(*arguments):
    if full and full.pop():
      raise OSError(28, "No space left on device")
    keep(*arguments)

  monkeypatch.setattr(tune, "keep", no_room)
  monkeypatch.setattr(tune, "of_children", lambda asked, _: ((each, {"median_us": 1.0}) for each in asked))
  legs = cases.legs_of(problems.Problem("seed", 32768))[:2]
  assert tune.tune(legs, H200, types.SimpleNamespace(table=table, dry_run=False, until=float("inf"))) == 0
  assert capsys.readouterr().out.count("not written: [Errno 28]") == 1
  assert [entry["leg"] for entry in json.loads(table.read_text())["entries"]] == ["gated_up", "matmul"]


def test_a_problem_without_room_costs_its_own_candidates(script, monkeypatch, capsys):
  """In one process: another one would find no more room."""
  tune, problem = script("tune_timed"), script("problems").Problem("tiny", 16)

  def no_room(problem):
    raise RuntimeError("RESOURCE_EXHAUSTED")

  monkeypatch.setattr(tune, "operands", no_room)
  tune.time_problem(problem, [{"index": 4}, {"index": 5}], None, 0, 0)
  said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["index"] for row in said if "RESOURCE_EXHAUSTED" in row.get("error", "")] == [4, 5]
