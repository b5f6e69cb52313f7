"""The compiler agrees with the plan, at full size, for all five documents; and a wrong plan is caught."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import tiny
from plans import edited

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import document_names, load_deployment
from jaxmoe.cost import collectives as cost_collectives
from jaxmoe.cost.memory import memory
from jaxmoe.cost.traffic import least_bytes
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report.verification import tables, verdict
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


@pytest.mark.parametrize("name", document_names())
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
  _check_program(document)
  _check_informational(document)
  rows = {(check["name"], check["axis"]): check for check in document["checks"]}
  assert rows["parameters", ""]["compiled"] > 0
  assert rows["all matmuls", ""]["compiled"] > 0
  assert all(rewrite["ok"] and rewrite["rewrites"] for rewrite in document["rewrites"])
  held = document["memory_bytes"]["argument_bytes"] + document["memory_bytes"]["output_bytes"]
  needed = held - document["memory_bytes"]["alias_bytes"]
  assert document["fits"] and document["memory_bytes"]["needed_bytes"] == needed <= document["capacity_bytes"]
  assert document["sources"].items() >= {"predicted": "formula", "compiled": "compiled"}.items()
  temporaries = document["temporaries"]
  assert temporaries["buffers"] and temporaries["unattributed"] == 0
  assert sum(temporaries["compiled"].values()) == document["memory_bytes"]["temp_bytes"]


def _check_program(document):
  """What jax traced does the same work as the formulas say and the compiler counts."""
  for check in document["checks"]:
    assert (check["program"] is None) == check["at_least"] and check["lies_in"] is None
    if not check["at_least"]:
      assert abs(check["program"] - check["predicted"]) <= check["tolerance"] * check["predicted"], check["name"]


def _check_informational(document):
  rows = {row["name"]: row for row in document["informational"]}
  assert rows.keys() >= {"memory traffic", "weights read", "elementwise", "transcendentals"}
  assert all(row["reason"] and row["compiled"] > 0 and "ok" not in row for row in document["informational"])
  # CPU converts dtypes in passes of their own and writes scores, so it moves more than the formula, within reason.
  assert rows["memory traffic"]["predicted"] <= rows["memory traffic"]["compiled"]
  assert rows["memory traffic"]["compiled"] <= 20 * rows["memory traffic"]["predicted"]


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


def test_a_program_that_moves_less_than_its_weights_is_caught(compiled):
  d, step = compiled
  found = compare(d, "cpu", dataclasses.replace(step, traffic_bytes=least_bytes(d) - 1))
  (failed,) = [check for check in found.checks if not check.ok]
  assert failed.name == "memory traffic, at least" and -1 < (failed.relative_error or 0) < 0
  assert compare(d, "cpu", dataclasses.replace(step, traffic_bytes=least_bytes(d))).ok


@pytest.mark.parametrize("kind, moved", [("prefill", 1), ("decode", 1), ("train", 2)])
def test_least_traffic_by_hand(kind, moved):
  """Serving reads weights but the embedding's, and writes or reads the cache; training reads and writes its state."""
  d = tiny.deployment(Strategy(expert=2), kind=kind)
  held = memory(d)
  if kind == "train":
    assert least_bytes(d) == moved * (held.parameters + held.optimizer)
  else:
    assert least_bytes(d) == held.parameters - 256 * 32 * 4 + held.cache


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


FLOAT64 = {
  "everything": {"weights": "float64", "compute": "float64", "optimizer": "float64"},
  "weights": {"weights": "float64"},
  "compute": {"compute": "float64"},
  "optimizer": {"optimizer": "float64"},
}


@pytest.mark.parametrize("name", FLOAT64)
def test_64_bits_agree(name, tmp_path, capsys):
  """Arguments of 8 bytes an item, by hand: with x64 off, jax would make them 4."""
  precision = ", ".join(f"{field}: {dtype}" for field, dtype in FLOAT64[name].items())
  _plan(tmp_path, ("100e12}", "100e12, float64: 10e12}"), ("microbatches: 2}", f"precision: {{{precision}}}}}"))
  assert main(["verify", str(tmp_path / "plan.yaml"), "--json"]) == ExitCode.DONE
  found = {check["name"]: check["compiled"] for check in json.loads(capsys.readouterr().out)["checks"]}
  wide = {field: 8 if FLOAT64[name].get(field) == "float64" else 4 for field in ("weights", "optimizer")}
  moments = found["optimizer"] - 4
  assert moments * wide["weights"] == 2 * found["parameters"] * wide["optimizer"]


def test_a_device_too_small_is_exit_code_4(tmp_path, capsys):
  """Adam's moments are twice the weights, and the largest."""
  _plan(tmp_path, ("16_000_000_000", "100_000"))
  assert main(["verify", str(tmp_path / "plan.yaml"), "--json"]) == ExitCode.DISAGREES
  document = json.loads(capsys.readouterr().out)
  assert (document["ok"], document["agrees"], document["fits"]) == (False, True, False)
  assert (document["capacity_bytes"], document["largest_class"]) == (100_000, "optimizer")
  assert document["memory_bytes"]["needed_bytes"] > 100_000


def test_too_little_room_is_said_and_temporaries_count_where_they_are_exact(compiled):
  d, step = compiled
  held, total = step.memory.held_bytes, step.memory.total_bytes
  assert held < total

  def judged(room, platform):
    small = dataclasses.replace(d, cluster=dataclasses.replace(d.cluster, memory_bytes=room))
    return compare(small, "cpu", dataclasses.replace(step, platform=platform))

  assert judged(held, "cpu").ok and judged(total, "cpu").ok
  assert not judged(held - 1024, "cpu").ok
  assert judged(total, "tpu").fit.ok and not judged(total - 1, "tpu").fit.ok
  found = judged(held - 1024, "cpu")
  assert verdict(found).startswith("does not fit: ") and "1.00 KiB more than" in verdict(found)
  assert "largest: optimizer" in verdict(found)
  assert any("DOES NOT FIT" in row for table in tables(found) for row in table.rows)


@pytest.mark.parametrize(
  "target, device, gigabytes",
  [
    ("cuda:h100:1x8", "dgx_h100", 80), ("tpu:v5e:2x4", "tpu_v5e", 16), ("cuda:b200:1x8", "large", 150),
    ("cpu", "large", 150),
  ],
)  # fmt: skip
def test_room_is_that_of_the_smaller_of_plan_and_target(compiled, target, device, gigabytes):
  """An H100 has 80 GB whatever the plan's cluster has, and a B200's 186 GB are not the plan's 150."""
  d, step = compiled
  d = dataclasses.replace(d, cluster=dataclasses.replace(d.cluster, name="large", memory_bytes=150 * 10**9))
  rest = step.memory.total_bytes - step.memory.temp_bytes
  full = dataclasses.replace(step.memory, temp_bytes=gigabytes * 10**9 - rest)
  more = dataclasses.replace(full, temp_bytes=full.temp_bytes + 1)
  fits, lacks = (compare(d, target, dataclasses.replace(step, platform="tpu", memory=one)) for one in (full, more))
  assert (fits.fit.device, fits.fit.capacity_bytes) == (device, gigabytes * 10**9)
  assert fits.fit.ok and not lacks.fit.ok
  named = [row[0] for table in tables(lacks) for row in table.rows if row[0].startswith("capacity")]
  assert named == ["capacity" if device == "large" else f"capacity of {device}, less than of large"]


def test_a_plan_that_fits_only_without_its_temporaries_is_said(compiled):
  """Fake CPU devices do not show what temporaries take on the target; the formula does, and the verdict says it."""
  d, step = compiled
  needed = memory(d).total
  assert step.memory.held_bytes < needed

  def said(room):
    tight = dataclasses.replace(d, cluster=dataclasses.replace(d.cluster, memory_bytes=room))
    found = compare(tight, "cpu", step)
    row = {row[0]: row for table in tables(found) for row in table.rows}["predicted, with temporaries"]
    return verdict(found), row[2:]

  assert said(needed)[1] == ("formula", "fits") and "BUT" not in said(needed)[0]
  assert said(needed - 1)[1] == ("formula", "DOES NOT FIT")
  assert said(needed - 1)[0].startswith("agrees: ") and "; BUT by the formula a device must hold" in said(needed - 1)[0]


INHERITED = {
  "XLA_FLAGS": "--nonsense --xla_force_host_platform_device_count=3",
  "JAX_PLATFORMS": "tpu",
  "JAX_ENABLE_X64": "1",
  "JAX_NUM_CPU_DEVICES": "3",
}


def test_what_the_caller_tells_jax_does_not_reach_the_compiler(monkeypatch):
  for name, value in INHERITED.items():
    monkeypatch.setenv(name, value)
  assert verify(tiny.deployment(Strategy(expert=2), kind="decode"), "cpu").ok


def test_a_process_with_odd_variables_verifies(tmp_path):
  """Of its own, for these variables are read once: the parent must get by with them as well."""
  _plan(tmp_path, ("kind: train", "kind: decode"))
  command = [sys.executable, "-m", "jaxmoe", "verify", str(tmp_path / "plan.yaml")]
  environment = {**os.environ, **INHERITED, "JAX_ENABLE_X64": "perhaps", "PYTHONPATH": os.pathsep.join(sys.path)}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("agrees: ")


def _plan(folder, *edits):
  (folder / "plan.yaml").write_text(edited(*edits))


def test_more_devices_than_needed_may_be_compiled_for():
  assert verify(tiny.deployment(Strategy(expert=2), kind="prefill"), "cpu:4").ok


def test_a_target_too_small_is_refused():
  with pytest.raises(UsageError, match="use cpu:128"):
    verify(load_deployment("ep64_tp2"), "cpu:64")


def _judged(compiled):
  d, step = compiled
  return d, "cpu", step
