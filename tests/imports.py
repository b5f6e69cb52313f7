"""What every module imports, read from the syntax tree without running it, and which must not reach jax."""

import ast
import dataclasses
import functools
import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ("tests", "examples", "benchmarks")

# Layers that never reach jax, whatever they import and whichever of their functions is called.
PURE_LAYERS = {"config", "cost", "planner"}
PURE_MODULES = {
  "jaxmoe",
  "jaxmoe.pipeline",
  "jaxmoe.kernels",
  "jaxmoe.kernels.work",
  "jaxmoe.pipeline.schedules",
  "jaxmoe.pipeline.schedule_makers",
  "jaxmoe.pipeline.schedule_timing",
  "jaxmoe.pipeline.schedule_drawing",
}
MESHES_WITH_JAX = {"jaxmoe.meshes.build"}
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


@dataclasses.dataclass(frozen=True, slots=True)
class Import:
  """One imported module, or name of a module; `on_load` unless it stands in a function."""

  target: str
  on_load: bool


@functools.cache
def package_modules() -> dict[str, ast.Module]:
  """Import name -> syntax tree of every module of the package, through its symlinks."""
  modules = {}
  for folder, _, names in os.walk(ROOT / "jaxmoe", followlinks=True):
    for name in names:
      if name.endswith(".py"):
        file = pathlib.Path(folder, name)
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text())
  return modules


@functools.cache
def scripts() -> dict[str, ast.Module]:
  """Path -> syntax tree of tests, examples and benchmarks."""
  files = (file for folder in SCRIPTS for file in sorted((ROOT / folder).rglob("*.py")))
  return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def imports(tree: ast.Module) -> set[Import]:
  """Every import of the module, those in functions included."""
  in_functions = {
    id(inner)
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for inner in ast.walk(node)
  }
  found = set()
  for node in ast.walk(tree):
    on_load = id(node) not in in_functions
    if isinstance(node, ast.Import):
      found |= {Import(alias.name, on_load) for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0 and node.module, "relative import"
      found |= {Import(_target(node.module, alias.name), on_load) for alias in node.names}
  return found


def _target(module: str, name: str) -> str:
  submodule = f"{module}.{name}"
  return submodule if submodule in package_modules() else module


def reached(module: str) -> set[str]:
  """Everything that loading the module and calling its functions can import, parent packages included."""
  seen, waiting = set(), [module]
  while waiting:
    name = waiting.pop()
    if name not in seen:
      seen.add(name)
      waiting += _parents(name)
      waiting += [found.target for found in imports(package_modules().get(name, ast.Module([], [])))]
  return seen


def _parents(name: str) -> list[str]:
  parts = name.split(".")
  return [".".join(parts[:length]) for length in range(1, len(parts))]


def layer_of(module: str) -> str:
  """The folder under `jaxmoe/` that holds the module; `python -m jaxmoe` is the command line."""
  alone = {"jaxmoe": "jaxmoe", "jaxmoe.__main__": "cli"}
  return alone[module] if module in alone else module.split(".")[1]


def pure_modules() -> list[str]:
  """Modules that must not reach jax."""
  return sorted(
    name
    for name in package_modules()
    if name in PURE_MODULES
    or layer_of(name) in PURE_LAYERS
    or (layer_of(name) == "meshes" and name not in MESHES_WITH_JAX)
  )
