"""A collective that nobody planned is named, with the line or the argument that it comes from."""

import dataclasses
import json

import jax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.axes import EXPERT, TENSOR
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report.html import page
from jaxmoe.report.triangulation import faults
from jaxmoe.report.verification import document, tables
from jaxmoe.xla import compiled
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step

DEPLOYMENT = tiny.deployment(Strategy(data=2, expert=2, tensor=2), kind="prefill")
OTHER = {EXPERT: TENSOR, TENSOR: EXPERT}
BUILD = compiled.build_program


def resharding(deployment, mesh):
  """The step, with the experts' weights turned to other shards before it: what shard_map takes, must be turned back."""
  program = BUILD(deployment, mesh)

  def turned(leaf):
    spec = leaf.sharding.spec
    both = EXPERT in spec and TENSOR in spec
    return NamedSharding(mesh, PartitionSpec(*(OTHER.get(axis, axis) if both else axis for axis in spec)))

  others = jax.tree.map(turned, program.arguments["parameters"])

  def step(weights, *rest):
    return program.step(jax.lax.with_sharding_constraint(weights, others), *rest)

  out = jax.tree.map(lambda x: x.sharding, program.trace().out_info)
  return dataclasses.replace(program, step=jax.jit(step, out_shardings=out))


def test_an_involuntary_resharding_names_its_line(monkeypatch):
  monkeypatch.setattr(compiled, "build_program", resharding)
  found = compare(DEPLOYMENT, "cpu", compile_step(DEPLOYMENT))
  assert not found.agrees
  (failed,) = [check for check in found.checks if not check.ok]
  assert (failed.name, failed.axis, failed.predicted) == ("collective-permute", f"{EXPERT}+{TENSOR}", 0)
  line = resharding.__code__.co_firstlineno + 12  # of the constraint
  (row,) = faults(found).rows
  assert f"tests/test_unplanned.py:{line}" in row[-1] and "weights['layers']['experts']" in row[-1]
  assert row[2] == failed.fault == "compiler"


@pytest.fixture(scope="module")
def unasked():
  """Compared with a partitioned program without the exchanges that the optimised module has."""
  step = compile_step(DEPLOYMENT)
  fewer = [one for one in step.partitioned if one.kind != "all-to-all"]
  return compare(DEPLOYMENT, "cpu", dataclasses.replace(step, partitioned=fewer))


def test_a_backend_that_adds_a_collective_is_told(unasked):
  """In the terminal, in JSON and on the page, with both lines of the dispatch."""
  (found,) = unasked.unplanned
  shown = page(unasked, estimate(DEPLOYMENT))
  assert "overlap (compiled)" in shown and "synchronous" in shown
  assert (found.kind, found.axes) == ("all-to-all", (EXPERT,)) and not unasked.agrees
  lines = found.actual.sources
  assert len(lines) == 2 and all(line.startswith("jaxmoe/model/dispatch.py:") for line in lines)
  (table,) = [table for table in tables(unasked) if table.title.startswith("What the backend made")]
  (row,) = [row for row in table.rows if row[0] == "all-to-all"]
  assert row[-1] == f"unplanned ({', '.join(lines)})"
  assert f"Unplanned collective: all-to-all over expert ({', '.join(lines)})" in shown
  listed = json.loads(json.dumps(document(unasked)))
  (row,) = [row for row in listed["rewrites"] if not row["ok"]]
  assert (row["kind"], row["lines"]) == ("all-to-all", list(lines))


def test_every_collective_is_in_the_document(unasked):
  """One entry each, whose bytes and executions add up to the rewrites' sums."""
  listed = json.loads(json.dumps(document(unasked)))
  assert len(listed["collectives"]) == len(unasked.compiled.optimised)
  for row in listed["rewrites"]:
    mine = [one for one in listed["collectives"] if (one["kind"], one["axis"]) == (row["kind"], row["axis"])]
    assert sum(one["count"] * one["payload_bytes"] for one in mine) == row["executed_bytes"]
    assert sum(one["count"] for one in mine) == row["operations"]["executed"]
    assert all(one["rewrites"] == row["rewrites"] and one["line"] for one in mine)
