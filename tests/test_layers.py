"""Who may import whom, and who may name a mesh axis: the tables below are the architecture."""

import ast
import re
import sys
import tomllib

import pytest
from imports import ROOT, imports, package_modules, reached, scripts

from jaxmoe.meshes.axes import AXES, EXPERT

BELOW_REPORT = {"kernels", "meshes", "config", "cost", "planner", "model", "pipeline", "train", "serve", "xla"}
# Layer -> the layers that it may import, beside itself. `pipeline.schedules` is the one module named alone.
LAYERS = {
  "kernels": set(),
  "meshes": set(),
  "config": {"meshes"},
  "cost": {"config", "meshes", "pipeline.schedules"},
  "planner": {"config", "meshes", "cost", "pipeline.schedules"},
  "model": {"config", "meshes", "kernels"},
  "pipeline": {"meshes"},
  "train": {"config", "meshes", "model", "pipeline"},
  "serve": {"config", "meshes", "model", "pipeline"},
  "xla": {"config", "meshes", "model", "train", "serve", "cost"},
  "report": BELOW_REPORT,
  "cli": BELOW_REPORT | {"report"},
}
# Layers that never reach jax, whatever they import and whichever of their functions is called.
PURE_LAYERS = {"config", "cost", "planner"}
PURE_MODULES = {"jaxmoe", "jaxmoe.pipeline", "jaxmoe.pipeline.schedules"}
MESHES_WITH_JAX = {"jaxmoe.meshes.build"}
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
# Layer -> the only other people's packages that it may import; for the layers not listed, PURE_LAYERS says enough.
THIRD_PARTY = {"kernels": {"jax"}, "meshes": {"jax", "numpy"}, "cost": {"numpy"}}
CHEX_LAYERS = {"model"}

DISTRIBUTIONS = {"yaml": "PyYAML", "orbax": "orbax-checkpoint", "jaxlib": "jax", "jinja2": "Jinja2"}

# Calls and keywords that take mesh axes: there, not even "expert" may be spelled, which elsewhere is a role.
AXIS_CALLS = {
  "PartitionSpec", "P", "Mesh", "AbstractMesh", "make_mesh", "size", "axis_index", "axis_size", "pcast", "pvary",
  "psum", "pmean", "pmax", "pmin", "ppermute", "pshuffle", "all_gather", "all_to_all", "psum_scatter",
  "ragged_all_to_all",
}  # fmt: skip
AXIS_KEYWORDS = {"axis_name", "axis_names", "out_sharding", "heads_over", "experts_over"}


def modules_of(*layers):
  return sorted(name for name in package_modules() if layer_of(name) in layers)


def layer_of(module):
  return module.split(".")[1] if "." in module else "jaxmoe"


def third_party(module):
  """(top-level name, whether imported on load) of every import that is neither ours nor Python's."""
  found = {(item.target.partition(".")[0], item.on_load) for item in imports(package_modules()[module])}
  return {(name, on_load) for name, on_load in found if name != "jaxmoe" and name not in sys.stdlib_module_names}


def is_pure(module):
  in_pure_meshes = layer_of(module) == "meshes" and module not in MESHES_WITH_JAX
  return in_pure_meshes or layer_of(module) in PURE_LAYERS or module in PURE_MODULES


def test_every_layer_is_in_the_table():
  assert {layer_of(name) for name in package_modules()} - {"jaxmoe"} <= set(LAYERS)


@pytest.mark.parametrize("module", sorted(package_modules()))
def test_imports_only_allowed_layers(module):
  layer = layer_of(module)
  ours = {item.target for item in imports(package_modules()[module]) if item.target.startswith("jaxmoe.")}
  outside = {target for target in ours if layer_of(target) != layer}
  allowed = LAYERS.get(layer, set())
  assert [name for name in outside if not {layer_of(name), name.removeprefix("jaxmoe.")} & allowed] == []


@pytest.mark.parametrize("module", [name for name in sorted(package_modules()) if is_pure(name)])
def test_pure_module_cannot_reach_jax(module):
  assert {name for name in reached(module) if name.partition(".")[0] in JAX_FAMILY} == set()


@pytest.mark.parametrize("module", sorted(set(modules_of("meshes")) - MESHES_WITH_JAX))
def test_pure_meshes_leave_numpy_out(module):
  assert {name for name in reached(module) if name.partition(".")[0] == "numpy"} == set()


@pytest.mark.parametrize("module", modules_of(*THIRD_PARTY))
def test_third_party_is_allowed(module):
  assert {name for name, _ in third_party(module)} <= THIRD_PARTY[layer_of(module)]


@pytest.mark.parametrize("module", sorted(set(package_modules()) - set(modules_of(*CHEX_LAYERS))))
def test_chex_stays_in_tests_and_model(module):
  assert "chex" not in {name for name, _ in third_party(module)}


@pytest.mark.parametrize("module", sorted(package_modules()))
def test_third_party_is_declared(module):
  core, extras = declared()
  for name, on_load in third_party(module):
    distribution = DISTRIBUTIONS.get(name, name.replace("_", "-"))
    assert distribution in (core if on_load else core | extras)


def declared():
  """Names of the distributions that the core and the extras install."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
  return tuple(
    {re.match(r"[\w.-]+", requirement).group() for requirement in requirements}
    for requirements in (project["dependencies"], extras)
  )


@pytest.mark.parametrize("source", [*sorted(package_modules()), *scripts()])
def test_nobody_imports_bare_kernels_or_meshes(source):
  tree = package_modules().get(source) or scripts()[source]
  assert {item.target.partition(".")[0] for item in imports(tree)} & {"kernels", "meshes"} == set()


@pytest.mark.parametrize("script", [path for path in scripts() if not path.startswith("tests/")])
def test_examples_and_benchmarks_use_public_names(script):
  imported = [node for node in ast.walk(scripts()[script]) if isinstance(node, ast.ImportFrom)]
  names = [alias.name for node in imported if node.module.startswith("jaxmoe") for alias in node.names]
  assert [name for name in names if name.startswith("_") and name != "__version__"] == []


@pytest.mark.parametrize("module", sorted(set(package_modules()) - {"jaxmoe.meshes.axes"}))
def test_axis_names_are_spelled_in_one_file(module):
  tree = package_modules()[module]
  assert spelled(tree) & (set(AXES) - {EXPERT}) == set()
  assert [node.lineno for node in ast.walk(tree) if EXPERT in given_as_axis(node)] == []


def spelled(node):
  return {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) if isinstance(inner.value, str)}


def given_as_axis(node):
  """Strings that this node uses as mesh axes."""
  if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in AXIS_CALLS:
    return set().union(*(spelled(argument) for argument in [*node.args, *node.keywords]))
  if isinstance(node, ast.keyword) and node.arg in AXIS_KEYWORDS:
    return spelled(node.value)
  if isinstance(node, ast.Subscript) and getattr(node.value, "attr", None) == "shape":
    return spelled(node.slice)
  return set()
