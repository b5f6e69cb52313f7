"""Who may import whom, and who may name a mesh axis: the tables below are the architecture."""

import ast
import re
import sys
import tomllib

import pytest
from imports import (
  JAX_FAMILY,
  MESHES_WITH_JAX,
  ROOT,
  imports,
  layer_of,
  package_modules,
  pure_modules,
  reached,
  scripts,
)

from jaxmoe.meshes.axes import AXES, EXPERT

PLANNING = {"config", "meshes", "cost", "planner"}
RUNNING = {"kernels", "model", "pipeline", "train", "serve", "xla"}
# Pipeline schedules are plain data that planning reads: the modules named alone.
SCHEDULES = {"pipeline.schedules", "pipeline.schedule_makers", "pipeline.schedule_timing", "pipeline.schedule_facts"}
# Layer -> the layers that it may import, beside itself.
LAYERS = {
  "kernels": set(),
  "meshes": set(),
  "config": {"meshes"},
  "cost": {"config", "meshes", "kernels.work"} | SCHEDULES,
  "planner": {"config", "meshes", "cost"} | SCHEDULES,
  "model": {"config", "meshes", "kernels", "pipeline"},
  "pipeline": {"meshes"},
  "train": {"config", "meshes", "model", "pipeline"},
  "serve": {"config", "meshes", "model", "pipeline"},
  "xla": {"config", "meshes", "model", "train", "serve", "cost"},
  "report": PLANNING | RUNNING,
  "cli": PLANNING | RUNNING | {"report"},
}
# Layer -> the only packages of others that it may import; a layer not listed may import what is declared.
THIRD_PARTY = {"kernels": {"jax"}, "meshes": {"jax", "numpy"}, "cost": {"numpy"}}
CHEX_LAYERS = {"model"}

DISTRIBUTIONS = {"yaml": "PyYAML", "orbax": "orbax-checkpoint", "jaxlib": "jax", "jinja2": "Jinja2"}

# Calls and keywords that take mesh axes: there, not even "expert" may be spelled, which elsewhere is a role.
AXIS_CALLS = {
  "PartitionSpec", "P", "Mesh", "AbstractMesh", "make_mesh", "size", "axis_index", "axis_size", "pcast",
  "pvary", "psum", "pmean", "pmax", "pmin", "ppermute", "pshuffle", "all_gather", "all_to_all",
  "psum_scatter", "ragged_all_to_all",
}  # fmt: skip
AXIS_KEYWORDS = {"axis_name", "axis_names", "out_sharding", "heads_over", "experts_over"}


def modules_of(*layers):
  return sorted(name for name in package_modules() if layer_of(name) in layers)


def third_party(module):
  """(top-level name, whether imported on load) of every import that is neither ours nor Python's."""
  found = {(item.target.partition(".")[0], item.on_load) for item in imports(package_modules()[module])}
  return {(name, on_load) for name, on_load in found if name not in sys.stdlib_module_names | {"jaxmoe"}}


def test_every_layer_is_in_the_table():
  assert {layer_of(name) for name in package_modules()} - {"jaxmoe"} <= set(LAYERS)


def test_modules_import_only_allowed_layers():
  assert [edge for module in package_modules() for edge in forbidden(module)] == []


def forbidden(module):
  """Imports of our modules that the table does not allow, `importer -> imported`."""
  allowed = LAYERS.get(layer_of(module), set()) | {layer_of(module), "jaxmoe"}
  for target in {item.target for item in imports(package_modules()[module])}:
    ours = target.partition(".")[0] == "jaxmoe"
    if ours and not {layer_of(target), target.removeprefix("jaxmoe.")} & allowed:
      yield f"{module} -> {target}"


@pytest.mark.parametrize("module", pure_modules())
def test_pure_module_cannot_reach_jax(module):
  assert of_packages(reached(module), JAX_FAMILY) == []


@pytest.mark.parametrize("module", sorted(set(modules_of("meshes")) - MESHES_WITH_JAX))
def test_pure_meshes_leave_numpy_out(module):
  assert of_packages(reached(module), {"numpy"}) == []


def of_packages(modules, packages):
  return [name for name in modules if name.partition(".")[0] in packages]


@pytest.mark.parametrize("layer", THIRD_PARTY)
def test_layer_imports_only_allowed_third_party(layer):
  assert {name for module in modules_of(layer) for name, _ in third_party(module)} <= THIRD_PARTY[layer]


def test_chex_stays_in_tests_and_model():
  users = {layer_of(module) for module in package_modules() if "chex" in dict(third_party(module))}
  assert users <= CHEX_LAYERS


def test_third_party_is_declared():
  core, extras = declared()
  for module in package_modules():
    for name, on_load in third_party(module):
      distribution = DISTRIBUTIONS.get(name, name.replace("_", "-"))
      assert distribution in (core if on_load else core | extras), f"{module} imports {name}"


def declared():
  """Names of the distributions that the core and the extras install."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
  return tuple(
    {re.match(r"[\w.-]+", requirement).group() for requirement in requirements}
    for requirements in (project["dependencies"], extras)
  )


def test_nobody_imports_bare_kernels_or_meshes():
  trees = package_modules() | scripts()
  targets = [(source, item.target) for source, tree in trees.items() for item in imports(tree)]
  assert [pair for pair in targets if pair[1].partition(".")[0] in {"kernels", "meshes"}] == []


def test_examples_and_benchmarks_use_public_names():
  for path, tree in scripts().items():
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imported if node.module.startswith("jaxmoe") for alias in node.names]
    private = [name for name in names if name.startswith("_") and name != "__version__"]
    assert path.startswith("tests/") or private == [], path


def test_axis_names_are_spelled_in_one_file():
  spelling = {module for module, tree in package_modules().items() if spelled(tree) & (set(AXES) - {EXPERT})}
  assert spelling == {"jaxmoe.meshes.axes"}


def test_expert_is_never_given_as_an_axis():
  nodes = [(module, node) for module, tree in package_modules().items() for node in ast.walk(tree)]
  assert [(module, node.lineno) for module, node in nodes if EXPERT in given_as_axis(node)] == []


def spelled(node):
  constants = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
  return {value for value in constants if isinstance(value, str)}


def given_as_axis(node):
  """Strings that this node uses as mesh axes."""
  if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in AXIS_CALLS:
    return set().union(*(spelled(argument) for argument in [*node.args, *node.keywords]))
  if isinstance(node, ast.keyword) and node.arg in AXIS_KEYWORDS:
    return spelled(node.value)
  if isinstance(node, ast.Subscript) and getattr(node.value, "attr", None) == "shape":
    return spelled(node.slice)
  return set()
