"""Work in a child process with its own settings of jax, its output captured and its progress passed on.

The number of devices must be set before jax starts, and a compiler may print megabytes or die; neither touches the
parent. What the caller's environment says to jax and XLA does not reach the child: it could change what is compiled.
"""

import importlib
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from jaxmoe.meshes.errors import MissingError, UsageError

_PROGRESS = "@progress "
_LAST_LINES = 12


class ChildFailed(RuntimeError):
  """The child died or ran out of time; the message holds its last lines."""


def run_in_child(
  function: str, *arguments: Any, devices: int | None, progress: Callable[[str], None], timeout_s: float = 900.0
) -> Any:
  """`function(*arguments, progress)` in a fresh process with `devices` fake CPU devices, or None: those that are here.

  Machine code is made without LLVM's optimisations: that takes less than half the time and leaves HLO and buffers as
  they are.

  Args:
    function: `package.module:name`; its last argument is a callable that takes one line of progress.
    arguments: anything that pickles, as must the result.

  Raises:
    UsageError, MissingError: the child raised one.
    ChildFailed: it raised anything else, died, or took longer than `timeout_s`.
  """
  with tempfile.TemporaryDirectory(prefix="jaxmoe-") as name:
    folder = pathlib.Path(name)
    (folder / "request").write_bytes(pickle.dumps((function, arguments)))
    code = _run(folder, devices, progress, timeout_s)
    result = folder / "result"
    if code or not result.exists():
      raise ChildFailed(f"the process for {function} ended with code {code}; its last lines:\n{_tail(folder / 'log')}")
    # Trusted: written by our own child into a directory only this user can read.
    succeeded, value = pickle.loads(result.read_bytes())
    if not succeeded:
      raise value
    return value


def _run(folder: pathlib.Path, devices: int | None, progress: Callable[[str], None], timeout_s: float) -> int:
  command = [sys.executable, "-m", "jaxmoe.xla.child", str(folder)]
  with (
    (folder / "log").open("w") as log,
    subprocess.Popen(
      command,
      env=_environment(devices),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
    ) as process,
  ):
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
      assert process.stdout is not None
      for line in process.stdout:
        if line.startswith(_PROGRESS):
          progress(line.removeprefix(_PROGRESS).rstrip())
      return process.wait()
    finally:
      timer.cancel()
      process.kill()


def _environment(devices: int | None) -> dict[str, str]:
  inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_FLAGS"))}
  # No persistent cache: it would answer without the partitioned program.
  ours = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  flags = "--xla_backend_optimization_level=0"
  if devices is not None:
    ours["JAX_PLATFORMS"] = "cpu"
    flags += f" --xla_force_host_platform_device_count={devices}"
  return {**inherited, **ours, "XLA_FLAGS": flags}


def _tail(log: pathlib.Path) -> str:
  lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
  return "\n".join(_printable(line[:300]) for line in lines) or "(it printed nothing)"


def _printable(line: str) -> str:
  return "".join(c if c.isprintable() else " " for c in line)


def _child(folder: pathlib.Path) -> None:
  def progress(message: str) -> None:
    print(_PROGRESS + message, flush=True)

  function, arguments = pickle.loads((folder / "request").read_bytes())
  module, name = function.split(":")
  try:
    outcome = (True, getattr(importlib.import_module(module), name)(*arguments, progress))
  except (UsageError, MissingError) as error:
    outcome = (False, error)
  (folder / "result").write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
  _child(pathlib.Path(sys.argv[1]))
