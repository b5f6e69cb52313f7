"""A planted fault - in a formula, in the program, in the compiler - is said to lie where it was planted."""

import dataclasses
import json

import jax.numpy as jnp
import pytest
import tiny
from jax import lax

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.cost import collectives as cost_collectives
from jaxmoe.cost import memory as cost_memory
from jaxmoe.meshes.axes import EXPERT, STAGE, TENSOR
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.model.attention import Attention
from jaxmoe.report import triangulation, verification
from jaxmoe.report.rules import FAULTS
from jaxmoe.xla import cache
from jaxmoe.xla import compare as comparing
from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.compare import Check, compare
from jaxmoe.xla.compiled import compile_step
from jaxmoe.xla.matmuls import Matmul
from jaxmoe.xla.triangulate import evidence

STRATEGY = Strategy(stage=2, expert=2, tensor=2)


@pytest.fixture(scope="module")
def step():
  d = tiny.deployment(STRATEGY, remat="full")
  return d, compile_step(d)


def failed(comparison):
  return {(check.name, check.axis): check for check in comparison.checks if not check.ok}


def test_the_program_says_what_formula_and_compiler_say(step):
  checks = compare(step[0], "cpu", step[1]).checks
  for check in checks:
    assert (check.program is None) == check.at_least  # bounds on what only a compiler decides
    assert check.ok and check.planned and check.translated and check.fault is None
    assert check.program is None or check.program == check.predicted


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_the_program_knows_what_serving_keeps(kind):
  d = tiny.deployment(Strategy(stage=2, expert=2), kind=kind)
  rows = {check.name: check for check in compare(d, "cpu", compile_step(d)).checks}
  cache = 2 * 4 * 16 * 16 * 4 * 8 * 4 / 4  # key and value, LBSGK floats, over stages and experts
  assert rows["cache"].program == rows["cache"].compiled == cache
  assert rows["updated in place"].program == (cache if kind == "decode" else 0)


def test_a_wrong_formula_is_no_fault_of_the_compiler(step, monkeypatch):
  whole = cost_collectives.collectives
  monkeypatch.setattr(cost_collectives, "collectives", lambda d: [c for c in whole(d) if c.part != "pipeline"])
  found = compare(step[0], "cpu", step[1])
  check = failed(found)["collective-permute", STAGE]
  assert {check.fault for check in failed(found).values()} == {"formula or program"}
  (item,) = evidence(found, check)
  assert (item.side, item.name, item.total) == ("program", "ppermute", check.compiled)


def test_a_wrong_formula_of_memory_is_none_either(step, monkeypatch):
  right = cost_memory.memory(step[0])
  wrong = dataclasses.replace(right, optimizer=right.optimizer + 4)
  for module in (comparing, cost_memory):
    monkeypatch.setattr(module, "memory", lambda d: wrong)
  found = failed(compare(step[0], "cpu", step[1]))
  assert found.keys() == {("optimizer", ""), ("arguments", ""), ("updated in place", "")}
  assert {check.fault for check in found.values()} == {"formula or program"}


def test_a_program_that_does_other_work_than_planned(monkeypatch):
  """A second product of the projected queries in every layer, and a sum that nobody planned."""
  project = Attention._project

  def wasteful(self, x_BSD, weight, norm, positions_BS):
    y_BSHK = project(self, x_BSD, weight, norm, positions_BS)
    more = jnp.einsum("bshk,bthk->bhst", y_BSHK, y_BSHK).sum() + lax.pmax(y_BSHK, TENSOR).max()
    return y_BSHK + 0 * more

  monkeypatch.setattr(Attention, "_project", wasteful)
  d = tiny.deployment(STRATEGY, kind="prefill")
  found = compare(d, "cpu", compile_step(d))
  checks = failed(found)
  assert {check.fault for check in checks.values()} == {"formula or program"}
  products = [item for item in evidence(found, checks["attention matmuls", ""]) if item.side == "program"]
  assert any(item.scope.startswith("attention") and item.name == "dot_general" for item in products)
  moved = [(item.side, item.name, item.scope) for item in evidence(found, checks["all-reduce", TENSOR])]
  assert ("program", "pmax", "attention") in moved and ("formula", "attention", "") in moved


STRAY = Collective(
  name="all-gather.77", kind="all-gather", axes=(EXPERT, TENSOR), group_size=4, payload_bytes=4096.0, elements=1024,
  dtype="f32", count=3.0, op_name="jit(train_step)/attention/stray", bound=False,
  source="model.py:7",
)  # fmt: skip
PRODUCT = Matmul(name="dot.77", op_name="jit(train_step)/experts/stray", flops=1e9, count=2.0)


def test_a_compiler_that_adds_a_collective(step):
  d, compiled = step
  worse = dataclasses.replace(compiled, partitioned=[*compiled.partitioned, STRAY])
  found = compare(d, "cpu", dataclasses.replace(worse, optimised=[*compiled.optimised, STRAY]))
  check = failed(found)["all-gather", f"{EXPERT}+{TENSOR}"]
  assert check.fault == "compiler" and len(failed(found)) == 1
  (item,) = evidence(found, check)
  assert (item.side, item.name, item.scope, item.total) == ("compiled", "all-gather.77", "attention", 3 * 4096)


def test_a_compiler_that_leaves_a_collective_out(step):
  d, compiled = step
  kept = [one for one in compiled.partitioned if one.kind != "all-to-all"]
  found = compare(d, "cpu", dataclasses.replace(compiled, partitioned=kept))
  check = failed(found)["all-to-all", EXPERT]
  items = evidence(found, check)
  assert check.fault == "compiler" and {item.side for item in items} == {"program"}
  assert {item.name for item in items} == {"all_to_all"} and {item.scope for item in items} == {"experts"}


def test_a_compiler_that_multiplies_more(step):
  d, compiled = step
  found = compare(
    d, "cpu", dataclasses.replace(compiled, matmuls=[*compiled.matmuls, PRODUCT], flops=compiled.flops + PRODUCT.total)
  )
  check = failed(found)["all matmuls", ""]
  assert check.fault == "compiler"
  (item, *_) = evidence(found, check)
  assert (item.side, item.name, item.scope, item.total) == ("compiled", "dot.77", "experts", 2e9)


def test_a_backend_that_adds_a_collective_is_named(step):
  d, compiled = step
  found = compare(d, "cpu", dataclasses.replace(compiled, optimised=[*compiled.optimised, STRAY]))
  assert found.unplanned and failed(found) == {}
  table = triangulation.faults(found)
  assert table is not None and [row[2] for row in table.rows] == ["compiler"] and "all-gather.77" in table.rows[0][3]


def test_more_bytes_than_the_programs_are_the_compilers(step):
  d, compiled = step
  less = dataclasses.replace(compiled.memory, alias_bytes=compiled.memory.alias_bytes - 512)
  found = failed(compare(d, "cpu", dataclasses.replace(compiled, memory=less)))
  assert {name: check.fault for (name, _), check in found.items()} == {"updated in place": "compiler"}


def test_the_programs_counts_are_kept_with_the_compiles(step, tmp_path, monkeypatch):
  """And an entry of a version that did not count them is none."""
  monkeypatch.setenv("JAXMOE_CACHE_DIR", str(tmp_path))
  cache.store("entry", step[1])
  assert cache.load("entry") == step[1]
  kept = json.loads((tmp_path / "entry.json").read_text())
  del kept["traced"]
  (tmp_path / "entry.json").write_text(json.dumps(kept))
  assert cache.load("entry") is None


def row(predicted, program, compiled, tolerance=0.01):
  return Check(
    name="x", axis="", unit="FLOPs", predicted=predicted, program=program, compiled=compiled, tolerance=tolerance
  )


@pytest.mark.parametrize(
  "check, fault",
  [
    (row(100, 100, 100), None),
    (row(100, 90, 100), None),
    (row(100, 100, 110), "compiler"),
    (row(110, 100, 100), "formula or program"),
    (row(110, 100, 90), "formula or program, and compiler"),
    (row(0, 0, 5), "compiler"),
    (row(0, 5, 5), "formula or program"),
    (row(100, 100.2, 101.1), "compiler"),  # each pair is close, the ends are not
    (row(100, 100.9, 101.1), "formula or program"),
    (row(100, None, 110), "unknown"),
  ],
)
def test_faults_by_hand(check, fault):
  assert check.fault == fault
  assert fault is None or FAULTS[fault]


def test_both_sides_wrong_show_both(step, monkeypatch):
  d, compiled = step
  whole = cost_collectives.collectives
  monkeypatch.setattr(cost_collectives, "collectives", lambda d: [c for c in whole(d) if c.kind != "all-to-all"])
  stray = dataclasses.replace(STRAY, kind="all-to-all", axes=(EXPERT,), payload_bytes=1e6)
  found = compare(d, "cpu", dataclasses.replace(compiled, partitioned=[*compiled.partitioned, stray]))
  check = failed(found)["all-to-all", EXPERT]
  assert check.fault == "formula or program, and compiler"
  assert [(item.side, item.name) for item in evidence(found, check)] == [
    ("program", "all_to_all"), ("compiled", "all-gather.77"),
  ]  # fmt: skip


def test_the_terminal_shows_the_program_only_where_it_says_something(step):
  d, compiled = step
  agreeing = verification.tables(compare(d, "cpu", compiled))
  assert "program" not in agreeing[0].headers and "counted on the traced program" in agreeing[0].title
  found = compare(d, "cpu", dataclasses.replace(compiled, partitioned=[*compiled.partitioned, STRAY]))
  assert "1 in compiler" in verification.verdict(found)
  first, where, *_ = verification.tables(found)
  assert first.headers[3] == "program" and all(len(row) == len(first.headers) for row in first.rows)
  assert where.rows[0][:3] == ("all-gather", f"{EXPERT}+{TENSOR}", "compiler")
  assert where.rows[0][3] == "the compiler has all-gather.77 in attention at model.py:7 (12.0 KiB)"


def test_json_always_has_the_program(step, monkeypatch, capsys):
  d, compiled = step
  found = compare(d, "cpu", dataclasses.replace(compiled, partitioned=[*compiled.partitioned, STRAY]))
  monkeypatch.setattr("jaxmoe.xla.verify.verify", lambda *_: found)
  assert main(["verify", "ep64_tp2", "--json"]) == ExitCode.DISAGREES
  document = json.loads(capsys.readouterr().out)
  rows = {(check["name"], check["axis"]): check for check in document["checks"]}
  assert document["sources"]["program"] == rows["all matmuls", ""]["program_source"] == "program"
  assert rows["all matmuls", ""]["program"] == rows["all matmuls", ""]["predicted"]
  assert rows["all matmuls", ""]["lies_in"] is None and rows["all matmuls", ""]["operations"] == []
  stray = rows["all-gather", f"{EXPERT}+{TENSOR}"]
  assert stray["lies_in"] == "compiler" and stray["lies_in_why"] == FAULTS["compiler"]
  (operation,) = stray["operations"]
  named = {"side": "compiled", "name": "all-gather.77", "scope": "attention", "amount": 12288, "line": "model.py:7"}
  assert operation == named
