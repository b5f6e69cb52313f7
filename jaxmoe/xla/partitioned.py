"""Compile, and keep the partitioned program: shardings resolved, nothing rewritten by the backend yet."""

import contextlib
import pathlib
import tempfile

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxmoe.xla.assignment import Assignment, read_assignment
from jaxmoe.xla.hlo import Module

_PASS = "spmd-partition.*"
_PARTITIONED = "*.after_*spmd-partitioning.*.txt"  # on TPU the pass is called tpu-spmd-partitioning
_LOWERED = "*.before_optimizations.txt"


def compile_with_dumps(lowered) -> tuple[jax.stages.Compiled, Module, Assignment | None]:
  """`(compiled, partitioned module, assignment of its buffers)` of a `jax.stages.Lowered`.

  XLA shows the partitioned program and the buffers only as dumps; the dump directory is deleted before this returns.

  Raises:
    RuntimeError: XLA dumped no partitioned program.
  """
  with tempfile.TemporaryDirectory(prefix="jaxmoe-dump-") as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": _PASS, "xla_dump_hlo_as_text": True}
    with _without_persistent_cache():
      compiled = lowered.compile(compiler_options=options)
    dumps = pathlib.Path(folder)
    return compiled, _partitioned(dumps), read_assignment(dumps)


def _partitioned(folder: pathlib.Path) -> Module:
  for pattern in (_PARTITIONED, _LOWERED):
    for file in sorted(folder.glob(pattern), reverse=True):
      module = Module.from_text(file.read_text())
      if pattern == _PARTITIONED or module.devices == 1:  # for one device there is nothing to partition
        return module
  raise RuntimeError(f"XLA dumped no {_PARTITIONED} among {sorted(file.name for file in folder.iterdir())}")


@contextlib.contextmanager
def _without_persistent_cache():
  """An executable from the cache is not compiled, so nothing is dumped."""
  enabled = jax.config.jax_enable_compilation_cache
  _enable_cache(False)
  try:
    yield
  finally:
    _enable_cache(enabled)


def _enable_cache(enabled: bool) -> None:
  jax.config.update("jax_enable_compilation_cache", enabled)
  compilation_cache.reset_cache()  # jax looks at the setting once, then remembers
