"""Writing several files as one: all of them or none, and nothing of the user's overwritten unasked."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxmoe.cli.loading import with_home
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import UsageError


def checked_folder(option: str, path: str, *, force: bool) -> Path:
  """Where files may go: a folder that is not there yet, is empty, or with `force` any.

  Raises:
    UsageError: it holds something, is no folder, or its parent is none.
  """
  if not path.strip():
    raise UsageError(f"{option}: expected a directory, got nothing; name one")
  folder = Path(with_home(path)).absolute()
  try:
    if folder.exists() and not folder.is_dir():
      raise UsageError(f"{option}: expected a directory, got the file {shown(path)}; name another")
    if not folder.parent.is_dir():
      raise UsageError(f"{option}: {shown(path)}: its parent is no directory; make that first")
    if folder.is_dir() and any(folder.iterdir()) and not force:
      raise UsageError(f"{option}: {shown(path)} is not empty; name another, or add --force to replace a plan's files")
  except OSError as error:
    raise _refused(option, path, error) from error
  except ValueError as error:
    raise error if isinstance(error, UsageError) else UsageError(f"{option}: {shown(path)} is no path") from error
  return folder


def write_folder(option: str, folder: Path, files: Mapping[str, bytes], stale: Iterable[str] = ()) -> None:
  """Every file, written beside the folder first and moved into place when all are whole.

  Args:
    stale: names of earlier files that are removed unless they are written again.

  Raises:
    UsageError: it cannot be written; then nothing was.
  """
  try:
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name[:80]}.", dir=folder.parent))
  except (OSError, ValueError) as error:
    raise _refused(option, str(folder), error) from error
  try:
    for name, content in files.items():
      (fresh / name).write_bytes(content)
    _move(fresh, folder, set(stale) - set(files))
  except OSError as error:
    raise _refused(option, str(folder), error) from error
  finally:
    shutil.rmtree(fresh, ignore_errors=True)


def _move(fresh: Path, folder: Path, stale: set[str]) -> None:
  if not folder.exists():
    mask = os.umask(0)
    os.umask(mask)
    fresh.chmod(0o777 & ~mask)
    fresh.rename(folder)
    return
  _check_replaceable(folder, {*(file.name for file in fresh.iterdir()), *stale})
  for file in sorted(fresh.iterdir()):
    file.replace(folder / file.name)
  for name in stale:
    (folder / name).unlink(missing_ok=True)


def _check_replaceable(folder: Path, names: Iterable[str]) -> None:
  """That a file may stand at every place, before the first is taken."""
  for name in sorted(names):
    place = folder / name
    if place.is_dir() and not place.is_symlink():
      raise IsADirectoryError(errno.EISDIR, f"{name} in it is a directory; move that")


def _refused(option: str, path: str, error: Exception) -> UsageError:
  reason = (getattr(error, "strerror", None) or str(error)).lower()
  return UsageError(f"{option}: {shown(path)} cannot be written: {reason}")
