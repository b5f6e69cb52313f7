"""Eight fake CPU devices for every test. Set before jax is imported, and without importing it."""

import os
import pathlib
import shutil
import tempfile

import hypothesis
import pytest

from jaxmoe.xla import cuda

# A machine that is busy with other tests is no fault of the example that was drawn.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

# Tests compile far more than they compute: machine code without LLVM's optimisations halves their time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
if cuda.missing() is None:  # some tests compile for GPUs that are not here
  os.environ["XLA_FLAGS"] += f" {cuda.flags()}"
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
CACHE = tempfile.mkdtemp(prefix="jaxmoe-tests-")
os.environ["JAXMOE_CACHE_DIR"] = CACHE  # never the user's own
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """What needs the compiler of an extra bears the marker `compilers`."""
  for item in items:
    if any("the extra" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
      item.add_marker("compilers")


@pytest.fixture(autouse=True)
def no_results_of_other_tests():
  """Every test compiles for itself."""
  yield
  for entry in pathlib.Path(CACHE).glob("*"):
    entry.unlink()


@pytest.fixture(scope="module")
def tiny_step():
  """A tiny step with everything in it, compiled: its comparison and its estimate."""
  import tiny

  from jaxmoe.cost.estimate import estimate
  from jaxmoe.meshes.strategy import Strategy
  from jaxmoe.xla.compare import compare
  from jaxmoe.xla.compiled import compile_step

  d = tiny.deployment(Strategy(stage=2, expert=2, tensor=2), remat="full")
  return compare(d, "cpu", compile_step(d)), estimate(d)


def pytest_unconfigure():
  shutil.rmtree(CACHE, ignore_errors=True)
