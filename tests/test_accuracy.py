"""The cost model against published figures: exact where it is accounting, and as near as docs/accuracy.md says."""

import dataclasses
import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import tiny

from jaxmoe.cost.activations import expert_tensors, total_bytes
from jaxmoe.cost.collectives import collectives
from jaxmoe.cost.constants import BANDWIDTH_ROWS, CONSTANTS
from jaxmoe.cost.layer import attention_operations
from jaxmoe.cost.load import busiest_over_mean, power_law_load
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

ACCURACY = pathlib.Path(__file__).parents[1] / "benchmarks" / "accuracy"


def module(name):
  """A script's module under a name of its own: benchmarks/gpu has a report too, and must go on finding it."""
  sys.path.insert(0, str(ACCURACY))
  try:
    spec = importlib.util.spec_from_file_location(name, ACCURACY / f"{name.removeprefix('accuracy_')}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
  finally:
    sys.path.remove(str(ACCURACY))


systems, checks, fits, report = map(module, ("systems", "checks", "fits", "accuracy_report"))


@pytest.mark.parametrize("row", checks.CHECK_ROWS, ids=lambda row: f"{row['kind']}-{row['name']}")
def test_exact_figures_are_reproduced(row):
  assert [check for check in checks.checks(row) if not check.passes] == []


def test_every_row_is_predicted():
  assert {row["use"] for row in checks.ROWS} == {"check", "fit"}
  assert all(row["source"] for row in checks.ROWS)
  assert all(checks.checks(row) for row in checks.CHECK_ROWS) and all(map(fits.values, fits.FIT_ROWS))


def test_mean_error_is_within_the_target():
  errors = {row["name"]: fits.row_error(fits.values(row)) for row in fits.FIT_ROWS}
  assert np.mean(list(errors.values())) <= 0.08
  runs = [errors[row["name"]] for row in fits.RUNS]
  assert np.mean(runs) <= 0.03 and max(runs) <= 0.08


@pytest.mark.slow
def test_runs_left_out_of_the_fit_are_predicted_too():
  errors = [fits.row_error(fits.left_out(row)) for row in fits.RUNS]
  assert np.mean(errors) <= 0.06


def test_constants_are_the_fit():
  fitted = fits.fit()
  found = {c.name: c for c in CONSTANTS if c.kind == "fitted"}
  shares = {
    "MATMUL_SHARE": fitted.matmul, "EXPERT_MATMUL_SHARE": fitted.expert_matmul, "MEMORY_SHARE": fitted.memory,
    "LINK_SHARE": fitted.link,
  }  # fmt: skip
  assert {name: c.value for name, c in found.items()} == pytest.approx(shares, abs=1e-3)


def test_constants_name_the_rows_that_they_were_fitted_on():
  runs = {row["name"] for row in fits.RUNS}
  named = {c.name: set(c.rows) for c in CONSTANTS if c.kind == "fitted"}
  assert named.pop("LINK_SHARE") == set(BANDWIDTH_ROWS) <= {row["name"] for row in fits.FIT_ROWS}
  assert named["MATMUL_SHARE"] == named["MEMORY_SHARE"] == runs > named["EXPERT_MATMUL_SHARE"]


def test_the_document_is_what_the_command_writes():
  assert report.DOCUMENT.read_text() == report.document(), "run `make accuracy`"


def test_scores_that_are_not_fused_by_hand():
  """Two matmuls write and read bfloat16 scores; softmax and dropout read and write them, with masks of a byte."""
  d = systems.megatron(fits.RUNS[-1], remat="none")
  T, S, H, K = 2048, 2048, 128 // 8, 20_480 // 128
  _, scores, elementwise, _ = attention_operations(d)
  assert scores.flops == 2 * 2 * T * S * H * K and scores.backward == 3
  assert scores.bytes == 2 * (T * H * K * 4 + 2 * T * S * H)
  assert (elementwise.flops, elementwise.bytes) == (0, 9 * T * S * H)
  assert elementwise.backward == pytest.approx(11 / 9 + 1)  # and once more, where the layer is not


def test_eight_bit_matmuls_are_faster_and_convert_their_operands():
  (row,) = (row for row in fits.RUNS if row["name"] == "DeepSeek-V3")
  eight = systems.deepseek_v3(row)
  sixteen = dataclasses.replace(eight, job=dataclasses.replace(eight.job, precision=systems.MIXED))
  fast, slow = (fits.predicted_time(d, fits.Shares()).matmuls for d in (eight, sixteen))
  assert fast["experts"] == pytest.approx(slow["experts"] / 2, rel=1e-3)
  assert fast["scores"] == slow["scores"] and fast["elementwise"] > slow["elementwise"]


def test_a_dispatch_between_nodes_goes_in_two_steps():
  """16 devices on two nodes, two of eight experts a token: 1.5 nodes visited, one of them its own with even odds."""
  d = tiny.deployment(
    Strategy(expert=16), sizes={"num_experts": 16}, transport="ragged", schedule="1f1b", microbatches=1
  )
  row_bytes = 16 * 32 * 4
  between, inside = (c for c in collectives(d) if c.kind == "all-to-all")
  assert (between.payload_bytes, between.outer_bytes) == (1.5 * row_bytes, 0.75 * row_bytes)
  assert (inside.payload_bytes, inside.outer_bytes) == (2 * row_bytes, 0)
  in_a_node = tiny.deployment(Strategy(expert=8), transport="ragged", schedule="1f1b", microbatches=1)
  assert len([c for c in collectives(in_a_node) if c.kind == "all-to-all"]) == 1


def test_backward_keeps_the_rows_that_experts_read():
  d = tiny.deployment(Strategy(expert=2), transport="ragged", schedule="1f1b", microbatches=1)
  (rows,) = (tensor for tensor in expert_tensors(d) if tensor.name == "dispatched rows")
  assert rows.bytes == 4 * (8 * 16 * 2) * 32
  assert total_bytes(expert_tensors(d, load=2)) - total_bytes(expert_tensors(d)) == rows.bytes * (1 + 3 * 64 / 32)


def test_load_of_a_histogram_by_hand():
  assert busiest_over_mean([1, 1, 1, 1], 2) == 1
  assert busiest_over_mean([3, 1, 0, 0], 2) == 2
  assert busiest_over_mean([[3, 1, 0, 0], [1, 1, 1, 1]], 2) == 1.5
  with pytest.raises(UsageError, match="do not lie evenly"):
    busiest_over_mean([1, 1, 1], 2)


def test_power_law_load_grows_with_devices_and_exponent():
  loads = [power_law_load(64, devices, 1.2, most_over_least=1000) for devices in (1, 4, 16, 64)]
  assert loads[0] == 1 and loads == sorted(loads) and loads[-1] < 64
  assert power_law_load(64, 8, 1.01, most_over_least=1000) < power_law_load(64, 8, 1.2, most_over_least=1000)
  assert power_law_load(64, 8, 1.2, most_over_least=1) == pytest.approx(1)
  with pytest.raises(UsageError, match="above 1"):
    power_law_load(64, 8, 1.0, most_over_least=1000)
