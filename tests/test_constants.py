"""Every number of the cost model is declared: in constants.py, or in a cluster's file with its source."""

import ast
import pathlib

import pytest

from jaxmoe.config.catalogue import load_cluster
from jaxmoe.cost import constants
from jaxmoe.cost.constants import CONSTANTS

COST = pathlib.Path(constants.__file__).parent
STRUCTURE = {0, 1, 2}
# What a formula of docs/cost_model.md spells, where a name would say less.
EQUATIONS = {
  ("network.py", 8): "r / 8 of equation 9",
  ("network.py", 1e-9): "rounding of a logarithm",
  ("holdings.py", 3): "zero 3",
}
# Clusters of the devices that the published runs were made on.
FITTED_CLUSTERS = ("dgx_a100", "dgx_h100", "dgx_h200", "h800")


def undeclared(name, text):
  """Literals that stand for neither structure, nor a level or a place that is compared or indexed."""
  tree = ast.parse(text)
  places = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Subscript)]
  spared = {id(inner) for place in places for inner in _own_literals(place)}
  for node in ast.walk(tree):
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float) or id(node) in spared:
      continue
    if node.value not in STRUCTURE and (name, node.value) not in EQUATIONS:
      yield f"{name}:{node.lineno}: {node.value}"


def _own_literals(node):
  """A comparison's whole numbers, and those between brackets."""
  parts = node.comparators if isinstance(node, ast.Compare) else [node.slice]
  bounds = [bound for part in parts for bound in ([part.lower, part.upper] if isinstance(part, ast.Slice) else [part])]
  return [bound for bound in bounds if isinstance(bound, ast.Constant) and type(bound.value) is int]


def test_no_number_is_undeclared():
  files = [file for file in COST.glob("*.py") if file.name != "constants.py"]
  assert [found for file in files for found in undeclared(file.name, file.read_text())] == []


@pytest.mark.parametrize("line", ["x = 0.85 * y", "x = 3 * y", "def f(z=1.15): return z", "x = y if z < 0.3 else y"])
def test_an_undeclared_number_is_found(line):
  assert list(undeclared("planted.py", line))


@pytest.mark.parametrize("line", ["x = d.zero >= 3", "x = y[:3]", "x = 2 * y - 1"])
def test_structure_is_not_a_constant(line):
  assert not list(undeclared("planted.py", line))


def test_constants_are_declared_once_with_kind_and_reason():
  names = [c.name for c in CONSTANTS]
  assert len(names) == len(set(names))
  for c in CONSTANTS:
    assert getattr(constants, c.name) == c.value, c.name
    assert c.kind in ("physics", "datasheet", "fitted") and c.unit and c.reason


def test_few_are_fitted_and_each_names_its_rows():
  fitted = [c for c in CONSTANTS if c.kind == "fitted"]
  assert len(fitted) <= 6
  assert all(c.rows for c in fitted) and not any(c.rows for c in CONSTANTS if c.kind != "fitted")
  assert all(0 < c.value <= 1 for c in fitted)


@pytest.mark.parametrize("name", FITTED_CLUSTERS)
def test_clusters_of_published_runs_have_the_fitted_values(name):
  cluster = load_cluster(name)
  assert cluster.matmul_efficiency == constants.MATMUL_SHARE
  assert cluster.expert_matmul_efficiency == constants.EXPERT_MATMUL_SHARE
  assert cluster.memory_efficiency == constants.MEMORY_SHARE
  assert {tier.efficiency for tier in cluster.tiers} == {constants.LINK_SHARE}
  for field in ("matmul_efficiency", "expert_matmul_efficiency", "memory_efficiency"):
    assert "docs/accuracy.md" in cluster.assumptions[field], field
