"""A measured step: it runs, its numbers hang together, and the profile is read by the program's own names."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
from plans import edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import deployment_names, load_deployment
from jaxmoe.cost.flops import executed_flops
from jaxmoe.cost.one_rank import one_rank
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.measured import Measured
from jaxmoe.xla.profile import device_shares, opcodes_by_name

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["train", "prefill", "decode"])
def test_a_step_is_run_and_timed(kind, tmp_path, capsys):
  job = "job: {kind: train, batch: 16, sequence_length: 32, microbatches: 2}"
  strategy = "strategy: {data: 1, stage: 2, expert: 4, tensor: 2}"
  plan = edited((strategy, "strategy: {stage: 2, expert: 2, tensor: 2}"), (job, job.replace("train", kind)))
  (tmp_path / "p.yaml").write_text(plan)
  assert main(["measure", str(tmp_path / "p.yaml"), "--target", "cpu", "--steps", "4", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert len(found["seconds"]) == 4 and min(found["seconds"]) <= found["median_s"] <= max(found["seconds"])
  assert found["devices"] == 8 and found["predicted_s"] > 0 and found["sources"]["seconds"] == "measured"
  assert sum(found["shares"].values()) == pytest.approx(1) and found["shares"]["collective"] > 0


def test_a_reduced_copy_needs_no_peak(capsys):
  assert main(["measure", "ep64_tp2", "--reduced", "--devices", "4", "--target", "cpu", "--steps", "1"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("ep64_tp2 (reduced): ") and "fake devices" in out and "formula" not in out


def test_a_measured_step_has_a_page(tmp_path, capsys):
  """Also of a copy whose cluster states no peak for its dtype."""
  file = tmp_path / "page.html"
  reduced = ["ep64_tp2", "--reduced", "--devices", "4", "--target", "cpu", "--steps", "2"]
  assert main(["measure", *reduced, "--json", "--html", str(file)]) == 0
  found = json.loads(capsys.readouterr().out)
  text = file.read_text()
  assert found["predicted_s"] is None and "Predicted, compiled and measured" in text
  assert f'<data value="{found["median_s"]}">' in text


def test_a_page_that_cannot_be_written_is_refused_before_the_run(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("jaxmoe.xla.verify.measure", lambda *_: pytest.fail("it ran"))
  arguments = ["measure", "ep64_tp2", "--reduced", "--devices", "4", "--target", "cpu"]
  assert main([*arguments, "--html", str(tmp_path / "missing" / "page.html")]) == 2
  assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
  "arguments, code, words",
  [
    (["ep64_tp2"], 5, "devices are present"),
    (["ep256_pp16", "--target", "cpu"], 2, "at most 128 fake devices"),
    (["ep64_tp2", "--target", "tpu:v5p:4x4x8"], 2, "local or cpu"),
    (["ep64_tp2", "--steps", "0"], 2, "steps"),
  ],
)
def test_what_cannot_be_measured_says_why(arguments, code, words, capsys):
  assert main(["measure", *arguments]) == code
  out, err = capsys.readouterr()
  assert out == "" and words in err and "Traceback" not in err


def test_statistics_by_hand():
  def measured(*seconds):
    return Measured(
      device="x", platform="cpu", devices=1, seconds=seconds, warm_up=1, shares={}, versions={}
    )  # fmt: skip

  assert measured(3.0, 1.0, 2.0).median_s == 2 and measured(3.0, 1.0, 2.0).spread == 1
  assert measured(1.0, 2.0, 3.0, 4.0, 5.0).spread == pytest.approx((4.5 - 1.5) / 3)


def test_shares_are_of_the_programs_instructions(tmp_path):
  """A program that only multiplies has no collective; names that the program lacks count nothing."""
  x = jnp.ones((400, 400))
  compiled = jax.jit(lambda x: jnp.sin(x @ x) @ x).lower(x).compile()
  with jax.profiler.trace(str(tmp_path)):
    jax.block_until_ready(compiled(x))
  opcodes = opcodes_by_name(Module.from_compiled(compiled))
  shares = device_shares(tmp_path, opcodes, 10.0, 1)
  assert 0 < shares["compute"] < 1 and shares["collective"] == 0
  assert device_shares(tmp_path, {}, 10.0, 1) == {}
  swapped = device_shares(tmp_path, dict.fromkeys(opcodes, "all-reduce"), 10.0, 1)
  assert swapped["collective"] == pytest.approx(shares["compute"]) and swapped["compute"] == 0


@pytest.mark.parametrize("name", deployment_names())
def test_one_rank_does_its_share(name):
  """Matmuls of the rank are those of a device of the whole, but for idle ticks and rounding to whole experts."""
  d = load_deployment(name)
  rank, busy = one_rank(d), d.job.microbatches / d.ticks
  whole, alone = executed_flops(d), executed_flops(rank)
  assert rank.strategy.devices == 1
  assert alone.experts == pytest.approx(busy * whole.experts, rel=0.02)
  assert alone.attention == pytest.approx(busy * whole.attention) and alone.head == pytest.approx(whole.head)


def test_one_rank_of_a_single_device_is_the_whole():
  d = tiny.deployment(Strategy())
  rank = one_rank(d)
  assert rank.strategy == d.strategy and rank.model == dataclasses.replace(d.model, name="tiny-rank")
  assert executed_flops(rank) == executed_flops(d)


@pytest.mark.slow
def test_the_benchmark_runs_dry(tmp_path):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(ROOT / "benchmarks/gpu/measure.py"), "--dry-run", "--steps", "1", "--out", tmp_path]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  rows = json.loads((tmp_path / "measure_dry_run.json").read_text())["rows"]
  assert len(rows) == 5 and all(row["median_s"] > 0 and row["predicted_s"] > 0 for row in rows)
  assert (tmp_path / "measure_dry_run.md").read_text().count("\n|") == 7
