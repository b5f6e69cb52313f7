"""Planning never imports jax: it takes seconds, and a laptop or a login node may not have it working."""

import json
import subprocess
import sys

import pytest
from imports import JAX_FAMILY, pure_modules

VERBS = (
  ["--help"],
  ["deployments"],
  ["place", "ep64_tp2"],
  ["estimate", "ep64_tp2"],
  ["audit", "all"],
  ["why", "ep64_tp2", "ep64_tp2"],
  ["model", "show", "mixtral-8x7b"],
)

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
import importlib, json, sys
for name in sys.argv[1:]:
  importlib.import_module(name)
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


def test_pure_modules_leave_jax_out():
  _, modules, _ = run(IMPORT_ALL, *pure_modules())
  assert of_jax(modules) == []
