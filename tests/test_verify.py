"""The compiler agrees with the plan, at full size, for all five documents; and a wrong plan is caught."""

import dataclasses
import json
import os

import pytest
import tiny

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import deployment_names, load_deployment
from jaxmoe.cost import collectives as cost_collectives
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.child import ChildFailed, run_in_child
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step
from jaxmoe.xla.verify import verify

DEVICES = {
  "tp4_ep4_pp4": 16,
  "ep64_tp2": 128,
  "ep64_tp2_pp4": 128,
  "ep256_pp16": 256,
  "tp8_pp4_ep4_dp4": 512,
}


@pytest.mark.parametrize("name", deployment_names())
def test_every_document_verifies_at_full_size(name, capsys):
  """By the command line, as its JSON says it."""
  assert main(["verify", name, "--target", "cpu", "--json"]) == ExitCode.DONE
  document = json.loads(capsys.readouterr().out)
  assert document["schema_version"] == 1
  assert (document["target"], document["devices"], document["ok"]) == ("cpu", DEVICES[name], True)
  assert {"jax", "jaxlib", "jaxmoe"} <= document["versions"].keys()
  for check in document["checks"]:
    assert check.keys() >= {"name", "axis", "predicted", "compiled", "relative_error", "tolerance", "ok"}
    assert abs(check["relative_error"]) <= check["tolerance"]
    assert check["tolerance"] <= (0.01 if check["axis"] or "matmuls" in check["name"] else 0)
  rows = {(check["name"], check["axis"]): check for check in document["checks"]}
  assert rows["parameters", ""]["compiled"] > 0
  assert rows["all matmuls", ""]["compiled"] > 0
  assert all(rewrite["ok"] and rewrite["rewrites"] for rewrite in document["rewrites"])


@pytest.fixture(scope="module")
def compiled():
  d = tiny.deployment(Strategy(stage=2, expert=2, tensor=2), remat="full")
  return d, compile_step(d)


def test_a_tiny_step_agrees(compiled):
  assert compare(*_judged(compiled)).ok


CORRUPTIONS = {  # a wrong plan: change of the deployment -> the row that must fail
  "capacity factor": ({"capacity_factor": 1.0}, ("all-to-all", "expert")),
  "microbatches": ({"microbatches": 1}, ("collective-permute", "stage")),
  "recomputation forgotten": ({"remat": "none"}, ("experts matmuls", "")),
  "sequence length": ({"sequence_length": 8}, ("attention matmuls", "")),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_wrong_plan_is_caught(compiled, name):
  change, row = CORRUPTIONS[name]
  d, step = compiled
  wrong = compare(dataclasses.replace(d, job=dataclasses.replace(d.job, **change)), "cpu", step)
  assert not wrong.ok
  assert row in {(check.name, check.axis) for check in wrong.checks if not check.ok}


def test_a_forgotten_collective_is_caught(compiled, monkeypatch):
  whole = cost_collectives.collectives
  monkeypatch.setattr(cost_collectives, "collectives", lambda d: [c for c in whole(d) if c.part != "pipeline"])
  failed = [check for check in compare(*_judged(compiled)).checks if not check.ok]
  assert ("collective-permute", "stage") in {(check.name, check.axis) for check in failed}
  assert next(c for c in failed if c.name == "collective-permute").relative_error is None


def test_a_collective_that_nobody_planned_is_listed(compiled):
  d, step = compiled
  stray = dataclasses.replace(step.optimised[0], kind="all-gather", axes=("data", "expert"))
  found = compare(d, "cpu", dataclasses.replace(step, optimised=[*step.optimised, stray]))
  assert not found.ok
  assert [(r.kind, r.axes) for r in found.unplanned] == [("all-gather", ("data", "expert"))]


def test_a_disagreement_is_exit_code_4(compiled, monkeypatch, capsys):
  d, step = compiled
  wrong = compare(dataclasses.replace(d, job=dataclasses.replace(d.job, microbatches=1)), "cpu", step)
  monkeypatch.setattr("jaxmoe.xla.verify.verify", lambda *_: wrong)
  assert main(["verify", "ep64_tp2"]) == ExitCode.DISAGREES
  out = capsys.readouterr().out
  assert out.startswith("DISAGREES")
  assert "FAILS" in out


def test_more_devices_than_needed_may_be_compiled_for():
  assert verify(tiny.deployment(Strategy(expert=2), kind="prefill"), "cpu:4").ok


def test_a_target_too_small_is_refused():
  with pytest.raises(UsageError, match="use cpu:128"):
    verify(load_deployment("ep64_tp2"), "cpu:64")


def test_a_child_that_dies_is_reported_with_its_last_lines():
  with pytest.raises(ChildFailed, match="No module named 'nowhere'"):
    run_in_child("nowhere:nothing", devices=1, progress=lambda _: None)


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
  (tmp_path / "hanging.py").write_text("import time\ndef hang(progress):\n  progress('started')\n  time.sleep(600)\n")
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
  seen = []
  with pytest.raises(ChildFailed, match="ended with code -9"):
    run_in_child("hanging:hang", devices=1, progress=seen.append, timeout_s=3.0)
  assert seen == ["started"]


def _judged(compiled):
  d, step = compiled
  return d, "cpu", step
