"""Planning never imports jax: it takes seconds, and a laptop or a login node may not have it working."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
JAX_FAMILY = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")
VERBS = (
  ["--help"],
  ["deployments"],
  ["place", "ep64_tp2"],
  ["estimate", "ep64_tp2"],
  ["model", "show", "mixtral-8x7b"],
)
PURE = ("jaxmoe.config", "jaxmoe.cost", "jaxmoe.planner", "jaxmoe.pipeline.schedules")

RUN_VERB = """
import json, sys
from jaxmoe.cli.main import main
code = 0
try:
  code = main()
except SystemExit as end:
  code = end.code
print(json.dumps([code or 0, sorted(sys.modules)]))
"""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
  package = importlib.import_module(name)
  for module in pkgutil.walk_packages(getattr(package, "__path__", []), name + "."):
    importlib.import_module(module.name)
print(json.dumps([0, sorted(sys.modules)]))
"""


def run(code, *arguments):
  """Exit code and imported modules of the program, which ends by printing both."""
  done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return (*json.loads(done.stdout.splitlines()[-1]), done)


def of_jax(modules):
  return [name for name in modules if name.partition(".")[0] in JAX_FAMILY]


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_verb_leaves_jax_out(arguments):
  code, modules, done = run(RUN_VERB, *arguments)
  assert code == 0, done.stderr
  assert of_jax(modules) == []


@pytest.mark.parametrize("package", PURE)
def test_package_leaves_jax_out(package):
  _, modules, _ = run(IMPORT_ALL, package)
  assert package in modules
  assert of_jax(modules) == []
