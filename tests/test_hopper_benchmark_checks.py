"""What the GPU benchmark takes for right: legs and timed rows beside float64, and how goals are judged by them."""

import argparse
import functools
import importlib
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from jaxmoe.kernels import cpu_tiles
from jaxmoe.kernels.expert_ffn import expert_ffn

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu"


@pytest.fixture
def script(monkeypatch):
  """Imports a module of the benchmark."""
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module


@pytest.mark.parametrize(
  "leg", ["matmul", "gated_up clamped", "matmul_scaled", "matmuls_transposed", "weight_gradient", "layer"]
)
@pytest.mark.parametrize("dtype, factor", [
  ("bfloat16", 1.0), ("bfloat16", 1.05), ("float16", 1.0), ("float16", 1.003), ("float32", 1.0), ("float32", 1.0001),
])  # fmt: skip
def test_the_check_objects(leg, dtype, factor, script, monkeypatch):
  """A few roundings off is wrong; what another implementation computes is right."""
  correctness, problems = script("correctness"), script("problems")
  for name in ("matmul", "gated_up", "matmul_scaled", "matmuls_transposed", "weight_gradient"):
    served = lambda *a, device, name=name, **more: jax.tree.map(  # noqa: E731
      lambda array: factor * array, getattr(cpu_tiles, name)(*a, **more)
    )
    monkeypatch.setattr(correctness.legs, name, served)
  run_layer = functools.partial(expert_ffn, implementation=None)
  monkeypatch.setattr(correctness, "expert_ffn", lambda *a, implementation, **more: factor * run_layer(*a, **more))
  row = correctness.check(problems.Problem("tiny", 16, dtype=dtype), leg, None)
  assert row["correct"] == (factor == 1.0), row


@pytest.mark.parametrize("place", range(5))
def test_each_gradient_of_a_layer_is_compared(place, script):
  problems, operands, samples = script("problems"), script("operands"), script("samples")
  o = operands.operands(problems.Problem("tiny", 16, dtype="float32", seed=3))
  run = lambda *arrays: expert_ffn(*arrays, o.sizes_E, activation="silu", implementation=None)  # noqa: E731
  y, pull = jax.vjp(run, o.x_ND, o.gate_EDF, o.up_EDF, o.down_EFD)
  results = [y, *pull(o.x_ND)]
  assert samples.error("layer", o, results) < 1e-5
  joined = [*results[:2], jnp.concatenate(results[2:4], axis=2), results[4]]
  assert samples.error("layer", o, joined) < 1e-5
  results[place] = 1.01 * results[place]
  assert samples.error("layer", o, results) > 5e-3


def test_a_layer_by_token_is_compared(script):
  """As Liger's: rows gathered by token, and added up again with scores."""
  problems, operands, samples = script("problems"), script("operands"), script("samples")
  o = operands.operands(problems.Problem("tiny", 16, dtype="float32", seed=4))
  experts, scores = operands.routing(o)
  order = jnp.argsort(experts.ravel(), stable=True)

  def run(x_TD, *weights):
    rows = expert_ffn(x_TD[order // experts.shape[1]], *weights, o.sizes_E, activation="silu", implementation=None)
    return jnp.zeros_like(x_TD).at[order // experts.shape[1]].add(rows * jnp.ravel(scores)[order, None])

  x_TD = o.x_ND[: o.problem.tokens]
  y, pull = jax.vjp(run, x_TD, o.gate_EDF, o.up_EDF, o.down_EFD)
  results = [y, *pull(x_TD)]
  assert samples.error("layer", o, results, by_token=True) < 1e-5
  assert samples.error("layer", o, [results[0], 1.01 * results[1], *results[2:]], by_token=True) > 5e-3
  assert script("torch_peers").Liger.by_token and "gathering" in script("torch_peers").Liger.note


def timed_row(script, who, scale):
  """The row of a "down" whose result is that of ours, times `scale`."""
  timed, problems, operands = script("timed"), script("problems"), script("operands")
  o = operands.operands(problems.Problem("tiny", 16, seed=2))
  result = scale * cpu_tiles.matmul(o.y_NF, o.down_EFD, o.sizes_E)
  options = argparse.Namespace(dry_run=True, given={"flops_per_s": 1e12, "bytes_per_s": 1e12})
  case = {"who": who, "leg": "down"}
  return timed.time_one(types.SimpleNamespace(), lambda: lambda: result, lambda r: r, case, o, options)


def test_a_wrong_row_of_ours_is_not_timed(script):
  assert timed_row(script, "jaxmoe", 1.0)["difference"] < 1e-2
  row = timed_row(script, "jaxmoe", 0.0)
  assert "from float64" in row["wrong"] and "median_us" not in row


def test_a_wrong_row_of_a_peer_is_marked(script):
  assert "differs" not in timed_row(script, "tokamax triton", 1.0)
  assert timed_row(script, "tokamax triton", 0.0)["differs"]


def test_a_result_of_another_shape_is_none(script):
  """Its samples may all be right: what lacks is at other places."""
  problems, operands, samples = script("problems"), script("operands"), script("samples")
  o = operands.operands(problems.Problem("tiny", 16, seed=2))
  rows, weights = cpu_tiles.matmul(o.y_NF, o.down_EFD, o.sizes_E), cpu_tiles.weight_gradient(o.x_ND, o.y_NF, o.sizes_E)
  for leg, result in (("matmul", rows), ("weight_gradient", weights)):
    assert samples.error(leg, o, [result]) < 1e-2
    for other in (result[..., :64], jnp.concatenate([result, result]), result[:2], result[None]):
      with pytest.raises(AssertionError, match="should be"):
        samples.error(leg, o, [other])
  with pytest.raises(AssertionError, match="1 results"):
    samples.error("layer", o, [rows])


def test_a_problem_without_room_costs_its_own_rows(script, monkeypatch, capsys):
  timed, problem = script("timed"), script("problems").Problem("tiny", 16)

  def no_room(problem):
    raise RuntimeError("RESOURCE_EXHAUSTED")

  monkeypatch.setattr(timed, "operands", no_room)
  timed.measure(problem, [{"index": 4, "who": "jaxmoe"}, {"index": 5, "who": "Liger"}], {}, argparse.Namespace())
  said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["index"] for row in said if "RESOURCE_EXHAUSTED" in row.get("error", "")] == [4, 5]


def results_of(rows):
  return {"environment": {"device": "NVIDIA H200"}, "rows": rows}


def row(model, tokens, skew, leg, who, us, **more):
  rates = {"tflops": 500.0, "gb_per_s": 3500.0} | more
  return {"model": model, "tokens": tokens, "skew": skew, "leg": leg, "who": who, "median_us": us, **rates}


def failed(model, tokens, skew, leg, who, **why):
  return {"model": model, "tokens": tokens, "skew": skew, "leg": leg, "who": who, **why}


def lines_of(script, rows):
  """(case, measure) -> (value, verdict)."""
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in script("goals").goals(results_of(rows))]
  return {(case, measure): (value, verdict) for case, measure, _, value, verdict in cells}


def test_goals_are_judged(script):
  qwen, seed, skewed = ("qwen3-30b-a3b", 32768, "dirichlet"), ("seed", 32768, "dirichlet"), ("qwen3-30b-a3b", 16384)
  found = lines_of(script, [
    row(*qwen, "layer", "jaxmoe", 100.0), row(*qwen, "layer", "Liger", 130.0),
    row(*seed, "up", "jaxmoe", 100.0), row(*seed, "up", "dense matmul", 80.0),
    row(*seed, "up", "tokamax triton", 170.0), row(*seed, "up", "tokamax mosaic", 150.0),
    row(*seed, "up", "tokamax xla", 50.0, differs=True, difference=0.5),
    row("seed", 64, "dirichlet", "up", "jaxmoe", 100.0),
    row(*skewed, "balanced", "up", "jaxmoe", 100.0), row(*skewed, "quarter", "up", "jaxmoe", 120.0),
  ])  # fmt: skip
  assert found.pop(("qwen3-30b-a3b 32768 dirichlet layer", "of Liger's rate")) == ("1.30", "met")
  assert found.pop(("qwen3-30b-a3b 32768 dirichlet layer", "TFLOP/s")) == ("500.00", "missed")
  assert found.pop(("seed 32768 dirichlet up", "of a dense matmul's rate")) == ("0.80", "missed")
  assert found.pop(("seed 32768 dirichlet up", "of tokamax's best")) == ("1.50", "met")
  assert found.pop(("seed 64 dirichlet up", "GB/s")) == ("3500.00", "met")
  assert found.pop(("qwen3-30b-a3b 16384 quarter up", "of the balanced time")) == ("1.20", "missed")
  assert found and all(verdict.startswith("not measured: ") for _, verdict in found.values())


def test_a_goal_says_which_peers_its_best_is_without(script):
  qwen = ("qwen3-30b-a3b", 32768, "dirichlet", "up")
  found = lines_of(script, [
    row(*qwen, "jaxmoe", 100.0), row(*qwen, "tokamax xla", 900.0), row(*qwen, "dense matmul", 90.0),
    failed(*qwen, "tokamax mosaic", skipped="out of time"), failed(*qwen, "tokamax triton", error="no memory"),
  ])  # fmt: skip
  value, verdict = found["qwen3-30b-a3b 32768 dirichlet up", "of tokamax's best"]
  assert value == "9.00" and verdict == "met, without tokamax mosaic (skipped), tokamax triton (error)"
  assert found["qwen3-30b-a3b 32768 dirichlet up", "of a dense matmul's rate"] == ("0.90", "met")


def test_a_time_of_a_result_that_is_off_is_marked(script):
  qwen = ("qwen3-30b-a3b", 32768, "dirichlet", "up")
  rows = [row(*qwen, "jaxmoe", 100.0, floor_us=3.0), row(*qwen, "Liger", 50.0, differs=True, difference=0.5)]
  (line,) = script("report").table(rows, ["jaxmoe", "Liger"])
  assert line.endswith("| 100.0 | 50.0 (differs) |")


def test_every_goal_says_why_it_has_no_value(script):
  qwen, seed = ("qwen3-30b-a3b", 32768, "dirichlet"), ("seed", 32768, "dirichlet")
  found = lines_of(script, [
    row(*qwen, "layer", "jaxmoe", 100.0), failed(*qwen, "layer", "Liger", absent="not installed"),
    row(*qwen, "up", "jaxmoe", 100.0), failed(*qwen, "up", "dense matmul", error="no memory"),
    row(*qwen, "up", "tokamax mosaic", 50.0, differs=True, difference=0.5),
    failed(*qwen, "up", "tokamax triton", skipped="out of time"),
    failed(*seed, "up", "jaxmoe", wrong="1e0 from float64"),
  ])  # fmt: skip
  why = {key: verdict for key, (_, verdict) in found.items()}
  assert "Liger: absent: not installed" in why["qwen3-30b-a3b 32768 dirichlet layer", "of Liger's rate"]
  assert "error: no memory" in why["qwen3-30b-a3b 32768 dirichlet up", "of a dense matmul's rate"]
  best = why["qwen3-30b-a3b 32768 dirichlet up", "of tokamax's best"]
  assert "5.0e-01 from float64" in best and "out of time" in best
  assert "wrong: 1e0 from float64" in why["seed 32768 dirichlet up", "of tokamax's best"]
  assert "not in this run" in why["mixtral 8192 dirichlet down", "of tokamax's best"]
  assert len(lines_of(script, [])) == len(found)


def test_a_ragged_dot_that_is_not_dense_needs_no_room(script):
  peers, problem = script("peers"), script("problems").Problem("deepseek-v3", 16384)
  o = types.SimpleNamespace(problem=problem)
  peers.check_room("cuDNN", problem)
  for peer in (peers.RaggedDot("dense"), peers.RaggedDot("unknown, temp 3"), peers.Tokamax("xla", "dense")):
    with pytest.raises(peers.Absent, match="GB"):
      peer.build("up", o)


def test_memory_is_given_back_between_problems(script, monkeypatch):
  emptied = []
  cuda = types.SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: emptied.append(True))
  monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
  script("context").free_memory()
  assert emptied == [True]
