"""Writing one file whole: what stood there stays until the new one is complete."""

import contextlib
import os
from pathlib import Path

from jaxmoe.cli.loading import with_home
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import UsageError


def checked_file(option: str, path: str) -> Path:
  """Where a file may be written or replaced, found out before the work for it begins.

  Raises:
    UsageError: it is a folder or a device, or its folder is missing or may not be written.
  """
  try:
    file = Path(with_home(path)).resolve()  # a link stays, and what it points to is replaced
    with contextlib.suppress(FileNotFoundError):
      file.lstat()  # raises if a name is too long, or not to be looked at
    if file.is_dir():
      raise UsageError(f"{option}: expected a file, got the directory '{shown(path)}'; name a file in it")
    if file.exists() and not file.is_file():
      raise UsageError(f"{option}: expected a regular file, got the device or pipe '{shown(path)}'; name another")
    if not file.parent.is_dir():
      raise UsageError(f"{option}: {shown(path)}: its parent is no directory; make that first")
    _partial(file).touch()
    _partial(file).unlink()
  except OSError as error:
    raise _refused(option, path, error) from error
  except (RuntimeError, ValueError) as error:
    raise error if isinstance(error, UsageError) else UsageError(f"{option}: {shown(path)} is no path") from error
  return file


def write_file(option: str, file: Path, text: str) -> None:
  """`text`, written beside `file` and moved there when it is whole.

  Raises:
    UsageError: it cannot be written; then `file` is as it was.
  """
  partial = _partial(file)
  try:
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
      stream.write(text)
      stream.flush()
      os.fsync(stream.fileno())
    partial.replace(file)
  except OSError as error:
    raise _refused(option, str(file), error) from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def _partial(file: Path) -> Path:
  return file.with_name(f".{file.name[:200]}.{os.getpid()}.partial")


def _refused(option: str, path: str, error: OSError) -> UsageError:
  return UsageError(f"{option}: {shown(path)} cannot be written: {(error.strerror or str(error)).lower()}")
