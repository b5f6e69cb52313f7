"""The GPU benchmark runs through on a CPU, and says what it did not measure or check."""

import argparse
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def script(monkeypatch):
  """Imports a module of the benchmark."""
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module


def run(script, *arguments):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_dry_run(tmp_path):
  done = run("kernels.py", "--dry-run", "--out", tmp_path, "--without", "tokamax mosaic", "--seed", 5)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads((tmp_path / "kernels_dry_run.json").read_text())
  assert results["correctness"] and all(row["correct"] for row in results["correctness"])
  ours = {row["leg"]: row for row in results["rows"] if row["who"] == "jaxmoe"}
  assert ours and all("median_us" in row for row in ours.values())
  peer = {row["leg"]: row for row in results["rows"] if row["who"] == "jax.lax.ragged_dot"}
  assert all(row["difference"] < 0.02 for leg, row in peer.items() if leg != "down_fp8")
  assert all(row["difference"] < 0.02 for row in ours.values())
  assert not any(row["who"] == "tokamax mosaic" for row in results["rows"]) and results["seed"] == 5
  assert results["environment"]["ragged_dot"] == "dense"
  text = (tmp_path / "kernels_dry_run.md").read_text()
  assert "A dry run" in text and "tokamax" in text and "--seed 5" in text
  assert "550 | - | not measured" in text and "550 | - | not measured" in done.stdout


def test_out_of_time_is_said(tmp_path):
  done = run("kernels.py", "--dry-run", "--out", tmp_path, "--minutes", 0)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads((tmp_path / "kernels_dry_run.json").read_text())
  assert {row.get("skipped") for row in results["rows"]} == {"out of time"}
  assert {row.get("skipped") for row in results["correctness"]} == {"out of time"}
  assert "not checked: out of time" in (tmp_path / "kernels_dry_run.md").read_text()


def test_unknown_section_is_refused(tmp_path):
  done = run("kernels.py", "--sections", "qwen", "--out", tmp_path)
  assert done.returncode == 2 and "no section is named qwen" in done.stderr


def test_unknown_peer_is_refused(script, capsys):
  with pytest.raises(SystemExit):
    script("kernels").parsed(["--without", "Tiger"])
  assert "no peer is named Tiger" in capsys.readouterr().err


def test_inputs_are_fresh_and_can_be_repeated(script):
  kernels, problems = script("kernels"), script("problems")
  assert kernels.parsed([]).seed != kernels.parsed([]).seed and kernels.parsed(["--seed", "7"]).seed == 7
  for plan in (problems.plan(7), problems.tiny_plan(7)):
    assert {problem.seed for section in plan for problem in section.problems} == {7}
  first, other = (problems.cases_to_check(dry_run=False, seed=seed) for seed in (7, 70))
  assert not {p.seed for p, _ in first} & {p.seed for p, _ in other}


def test_a_leg_that_was_not_checked_is_remarked(script, tmp_path, monkeypatch):
  kernels = script("kernels")
  options = argparse.Namespace(out=tmp_path, seed=0, dry_run=True, sections=None, without=["t", "j"])
  times = {"median_us": 1.0, "tflops": 1.0, "gb_per_s": 1.0}
  monkeypatch.setattr(kernels, "of_children", lambda cases, *_: ((case, times) for case in cases))
  results = dry_results()
  results["correctness"] = [
    checked_row("matmul", skipped="out of time"),
    checked_row("layer", correct=False, error="?"),
  ]
  kernels.rows(results, options)
  rows = {row["leg"]: row for row in results["rows"] if row["who"] == "jaxmoe"}
  assert rows["down"]["remark"] == "not checked before: out of time" and "remark" not in rows["up"]
  assert rows["layer"]["skipped"] == "wrong in the check"
  assert "not checked before: out of time (tiny/16/down)" in script("report").markdown(results)


def test_a_full_disk_does_not_end_a_run(script, tmp_path, monkeypatch, capsys):
  """What is measured is printed too, and the disk may have room again for the next row."""
  kernels = script("kernels")
  options = argparse.Namespace(out=tmp_path, seed=0, dry_run=True, sections=None, without=["t", "j"])
  times, full = {"median_us": 1.0, "tflops": 1.0, "gb_per_s": 1.0}, [True, True]
  monkeypatch.setattr(kernels, "of_children", lambda cases, *_: ((case, times) for case in cases))
  replace = os.replace

  def no_room(*names):
    if full and full.pop():
      raise OSError(28, "No space left on device")
    replace(*names)

  monkeypatch.setattr(kernels.os, "replace", no_room)
  results = {**dry_results(), "correctness": []}
  kernels.rows(results, options)
  said = capsys.readouterr().out
  assert said.count("not written: [Errno 28]") == 2
  assert json.loads((tmp_path / "kernels_dry_run.json").read_text())["rows"] == results["rows"] != []


def dry_results():
  device = {"date": "2026-01-01T00:00", "device": "cpu", "driver": "none", "versions": {}, "cudnn": "none"}
  ceilings = {"flops_per_s": 1e12, "bytes_per_s": 1e12}
  return {"environment": device | {"ragged_dot": "dense"}, "ceilings": ceilings, "seed": 0, "dry_run": True, "rows": []}


def checked_row(leg, **more):
  return {"model": "tiny", "tokens": 16, "dtype": "bfloat16", "leg": leg, **more}


def test_a_check_is_used_again_if_nothing_changed(script, tmp_path, monkeypatch):
  checked, problems = script("checked"), script("problems")
  problem = problems.Problem("seed", 64, seed=3)
  environment = {"device": "NVIDIA H200", "driver": "1", "versions": {"jax": "1"}}
  key = checked.key(problem, "matmul", environment)
  rows = [{"key": key, "correct": True}, {"key": "wrong", "correct": False}, {"key": "late", "skipped": "out of time"}]
  document = {"environment": {"date": "1"}, "correctness": rows}
  (tmp_path / "kernels_x.json").write_text(json.dumps(document))
  (tmp_path / "kernels_y.json").write_text("{ cut")
  assert set(checked.earlier([tmp_path, tmp_path / "missing"])) == {key}
  assert checked.key(problems.Problem("seed", 64, seed=4), "matmul", environment) == key
  entry = {"device": "NVIDIA H200", "groups": 64, "rows_per_group": 2}
  entry |= {"leg": "matmul", "D": 2048, "F": 1024, "shape": {}}
  assert checked.key(problem, "matmul", {**environment, "versions": {"jax": "1", "torch": "2"}}) == key
  others = [{**environment, **other} for other in ({"device": "?"}, {"driver": "?"}, {"versions": {"jax": "?"}})]
  keys = {checked.key(problem, "matmul", other) for other in others} | {checked.key(problem, "up", environment)}
  monkeypatch.setattr(checked.config, "TABLE", tmp_path / "tuned.json")
  (tmp_path / "tuned.json").write_text(json.dumps({"entries": [{**entry, "groups": 8}]}))
  assert checked.key(problem, "matmul", environment) == key
  (tmp_path / "tuned.json").write_text(json.dumps({"entries": [entry]}))
  keys.add(checked.key(problem, "matmul", environment))
  monkeypatch.setattr(checked, "sources", lambda: "other")
  keys.add(checked.key(problem, "matmul", environment))
  assert len(keys | {key}) == 7


def test_records_of_one_second_and_of_another_kind_do_no_harm(script, tmp_path):
  for name, row in (("x", {"key": "one", "correct": True}), ("y", {"key": "other", "correct": True})):
    document = {"environment": {"date": "1"}, "correctness": [row]}
    (tmp_path / f"kernels_{name}.json").write_text(json.dumps(document))
  (tmp_path / "kernels_z.json").write_text("[1]")
  assert set(script("checked").earlier([tmp_path])) == {"one", "other"}


def test_a_file_of_results_is_named_by_device_and_minute(script, tmp_path, monkeypatch):
  measure = script("measure")
  options = argparse.Namespace(out=tmp_path, cluster="dgx_h200", dry_run=False)
  for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"):
    monkeypatch.setattr(measure, "query", lambda field, name=name: name)
    record = measure.begun(options)
    measure._write(options, record)
    assert record["device"] == name and record["date"] and record["versions"]["jax"] != "absent"
  files = sorted(file.name for file in tmp_path.glob("*.json"))
  assert len(files) == 2 and re.fullmatch(r"measure_NVIDIA_H200_\d{4}-\d\d-\d\dT\d{4}.json", files[1])
  assert json.loads((tmp_path / files[1]).read_text())["device"] == "NVIDIA H200"


def test_a_plan_that_hangs_leaves_time_for_others(script, tmp_path, monkeypatch):
  """Each has a limit, which never reaches further than a minute past the end of the run."""
  measure, now, limits = script("measure"), [1000.0], []

  def hangs(d, target, steps, progress, *, timeout_s):
    limits.append(timeout_s)
    now[0] += timeout_s
    raise RuntimeError(f"ended after {timeout_s} s")

  monkeypatch.setattr(measure, "measure", hangs)
  monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(measure, "estimate", lambda d: argparse.Namespace(time=argparse.Namespace(total_s=1.0)))
  assert measure.main(["--dry-run", "--minutes", "4", "--out", str(tmp_path)]) == 1
  assert limits == [measure.LONGEST_PLAN_S, 300 - measure.LONGEST_PLAN_S] and now[0] == 1300.0
  rows = json.loads((tmp_path / "measure_dry_run.json").read_text())["rows"]
  assert ["ended after" in row["error"] for row in rows[:2]] == [True, True] and len(rows) > 2
  assert {row["error"] for row in rows[2:]} == {"out of time"}


def test_the_list_of_wheels_is_whole():
  """What tokamax, jax-triton and Liger import and a machine with jax, torch and triton may lack."""
  (line,) = re.findall(r"^pip download --no-deps .*", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
  needed = {"tokamax", "jax-triton", "liger-kernel", "einshape", "immutabledict", "jaxtyping", "wadler-lindig", "qwix",
            "tensorboardx", "typeguard", "tqdm", "absl-py", "packaging", "pydantic", "pydantic-core"}  # fmt: skip
  assert needed <= set(re.findall(r"([\w-]+)==", line))
