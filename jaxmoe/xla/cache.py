"""Results of compiles, kept from one command to the next.

An entry's name is a digest of all that decides the result: deployment, target, versions, flags, and the source of every
package that builds or reads the program. A file that cannot be read is as good as none.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile

import pydantic

from jaxmoe.config.deployment import Deployment
from jaxmoe.xla.child import COMPILE_FLAGS
from jaxmoe.xla.target import Target, versions

_ROOT = pathlib.Path(__file__).parents[1]
# Folders of jaxmoe whose code or data decides what is compiled and counted.
_SOURCES = ("config", "kernels", "meshes", "model", "pipeline", "serve", "train", "xla")
_SUFFIXES = (".py", ".json", ".txtpb")
_MOST_ENTRIES = 500


def folder() -> pathlib.Path:
  """JAXMOE_CACHE_DIR, else `jaxmoe` in the user's folder for caches."""
  named = os.environ.get("JAXMOE_CACHE_DIR")
  if named:
    return pathlib.Path(named)
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxmoe"


def key(deployment: Deployment, target: Target) -> str:
  """Name of the entry; equal for programs that must compile to the same."""
  parts = (repr(deployment), str(target), repr(versions(target)), COMPILE_FLAGS, target.flags, source_digest())
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def source_digest() -> str:
  """Of every file that has a part in making or reading the program."""
  digest = hashlib.sha256()
  for name in _SOURCES:
    files = (file for file in (_ROOT / name).rglob("*") if file.suffix in _SUFFIXES)
    for file in sorted(files):
      digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes())
  return digest.hexdigest()


def load(name: str):
  """The `CompiledStep` of an entry; None if there is none that can be read."""
  try:
    return _form().validate_json((folder() / f"{name}.json").read_bytes())
  except (OSError, pydantic.ValidationError):
    return None


def store(name: str, compiled) -> None:
  """Keeps a `CompiledStep`; whoever reads meanwhile sees the old file or the new. Quietly nothing without the right."""
  with contextlib.suppress(OSError):
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder(), suffix=".part", delete=False) as file:
      file.write(_form().dump_json(compiled))
    pathlib.Path(file.name).replace(folder() / f"{name}.json")
    _forget_oldest()


def _forget_oldest() -> None:
  entries = sorted(folder().glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
  for file in entries[_MOST_ENTRIES:]:
    file.unlink(missing_ok=True)


@functools.cache
def _form() -> pydantic.TypeAdapter:
  from jaxmoe.xla.compiled_step import CompiledStep  # imports jaxlib, which a command without a result never needs

  return pydantic.TypeAdapter(CompiledStep)
