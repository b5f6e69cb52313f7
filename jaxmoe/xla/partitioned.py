"""Compile, and keep the partitioned program: after sharding is resolved, before the backend rewrites anything."""

import pathlib
import tempfile

from jaxmoe.xla.hlo import Module

_PASS = "spmd-partition.*"
_PARTITIONED = "*.after_spmd-partitioning.*.txt"
_LOWERED = "*.before_optimizations.txt"  # with one device there is nothing to partition


def compile_with_partitioned(lowered):
  """`(compiled, partitioned module)` of a `jax.stages.Lowered`.

  XLA shows the partitioned program only as a dump; the dump directory is deleted before this returns.

  Raises:
    RuntimeError: XLA wrote no dump, as when a persistent compilation cache answered instead.
  """
  with tempfile.TemporaryDirectory(prefix="jaxmoe-dump-") as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": _PASS, "xla_dump_hlo_as_text": True}
    compiled = lowered.compile(compiler_options=options)
    return compiled, Module.from_text(_last_dump(pathlib.Path(folder)).read_text())


def _last_dump(folder: pathlib.Path) -> pathlib.Path:
  dumps = sorted(folder.glob(_PARTITIONED)) or sorted(folder.glob(_LOWERED))
  if not dumps:
    raise RuntimeError("XLA wrote no partitioned program; turn the persistent compilation cache off for this compile")
  return dumps[-1]
