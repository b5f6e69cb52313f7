"""Work in a child process with its own settings of jax, its output captured and its progress passed on.

The number of devices must be set before jax starts, and a compiler may print megabytes or die; neither touches the
parent. What the caller's environment says to jax and XLA does not reach the child: it could change what is compiled.
"""

import contextlib
import ctypes
import importlib
import math
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.xla.failed import CompileFailed
from jaxmoe.xla.unknown import Unknown

COMPILE_FLAGS = "--xla_backend_optimization_level=0"

_NOT_INHERITED = ("JAX_", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
_PROGRESS = "@progress "
_LAST_LINES = 12
_LOOK_EVERY_S = 0.2
_PR_SET_PDEATHSIG = 1  # of prctl(2)
# What others send to a process; all else it does to itself.
_FROM_OUTSIDE = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU})


class ChildFailed(RuntimeError):
  """The child died; the message holds its last lines."""


class ChildStopped(ChildFailed):
  """The child was ended from outside: by its limits of time or memory, by the system or by somebody."""


def run_in_child(
  function: str,
  *arguments: Any,
  devices: int | None,
  progress: Callable[[str], None],
  timeout_s: float = 900.0,
  memory_limit_bytes: float = math.inf,
  to_run: bool = False,
  environment: Mapping[str, str] = MappingProxyType({}),
  flags: str = "",
) -> Any:
  """`function(*arguments, progress)` in a fresh process with `devices` fake CPU devices, or None: those that are here.

  Unless it is `to_run`, machine code is made without LLVM's optimisations: that takes less than half the time and
  leaves HLO and buffers as they are.

  Args:
    function: `package.module:name`; its last argument is a callable that takes one line of progress.
    arguments: anything that pickles, as must the result.
    memory_limit_bytes: what may be resident, where the system says how much is (Linux).
    environment, flags: variables and flags of XLA, beside those that every child gets.

  Raises:
    UsageError, MissingError, CompileFailed, Unknown: the child raised one.
    ChildStopped: it took longer than `timeout_s`, or more than `memory_limit_bytes`; or a signal from outside ended it.
    ChildFailed: it raised anything else, or died.
  """
  with tempfile.TemporaryDirectory(prefix="jaxmoe-") as name:
    folder = pathlib.Path(name)
    (folder / "request").write_bytes(pickle.dumps((function, arguments)))
    watch = _Watch(timeout_s, memory_limit_bytes)
    code = _run(folder, {**_environment(folder, devices, to_run, flags), **environment}, progress, watch)
    result = folder / "result"
    if watch.reason or code or not result.exists():
      raise _failure(function, code, watch, _tail(folder / "log"))
    # Trusted: written by our own child into a directory only this user can read.
    succeeded, value = pickle.loads(result.read_bytes())
    if not succeeded:
      raise value
    return value


def resident_bytes(process: int | str = "self", field: str = "VmRSS") -> int | None:
  """Memory of a process that is resident now, or with `VmHWM` was at most; None where the system does not say."""
  try:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
  except OSError:
    return None
  found = re.search(rf"{field}:\s*(\d+) kB", status)
  return int(found[1]) * 1024 if found else None


class _Watch:
  """Ends a process that takes too long or grows too large, and then says why in `reason`.

  Attributes:
    step: the last line of progress.
    most_bytes: resident, as far as was seen; 0 where the system does not say.
  """

  def __init__(self, timeout_s: float, memory_limit_bytes: float):
    self.timeout_s, self.memory_limit_bytes = timeout_s, memory_limit_bytes
    self.reason, self.step, self.most_bytes = "", "starting", 0
    self._over = threading.Event()

  @contextlib.contextmanager
  def over(self, process: subprocess.Popen[str]) -> Iterator[None]:
    """Watches until the block ends; then what is left of the process's group ends too."""
    thread = threading.Thread(target=self._look, args=(process,), daemon=True)
    thread.start()
    try:
      yield
    finally:
      self._over.set()
      thread.join()
      _kill(process)

  def _look(self, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + self.timeout_s
    while not self._over.wait(min(_LOOK_EVERY_S, max(0.0, end - time.monotonic()))):
      size = resident_bytes(process.pid) or 0
      self.most_bytes = max(self.most_bytes, size)
      if size > self.memory_limit_bytes:
        limit = f"its limit of {self.memory_limit_bytes / 1e9:.3g} GB; --memory-limit raises it"
        self.reason = f"ended at {size / 1e9:.3g} GB, over {limit}"
      elif time.monotonic() >= end:
        self.reason = f"ended after {self.timeout_s:g} s, its limit; --timeout raises it"
      if self.reason:
        return _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
  """Ends the process and those that it started, which are a group of their own."""
  with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself
    os.killpg(process.pid, signal.SIGKILL)


def _run(folder: pathlib.Path, environment: dict[str, str], progress: Callable[[str], None], watch: _Watch) -> int:
  command = [sys.executable, "-m", "jaxmoe.xla.child", str(folder)]
  with (
    (folder / "log").open("w") as log,
    subprocess.Popen(
      command,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      process_group=0,
    ) as process,
    watch.over(process),
  ):
    assert process.stdout is not None
    for line in process.stdout:
      if line.startswith(_PROGRESS):
        watch.step = line.removeprefix(_PROGRESS).rstrip()
        progress(watch.step)
    return process.wait()


def _environment(folder: pathlib.Path, devices: int | None, to_run: bool, more_flags: str) -> dict[str, str]:
  inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
  # No persistent cache: it would answer without the partitioned program.
  ours = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  ours["TMPDIR"] = str(folder)  # what a killed child cannot delete goes with our folder
  flags = ["" if to_run else COMPILE_FLAGS, more_flags]
  if devices is not None:
    ours["JAX_PLATFORMS"] = "cpu"
    flags.append(f"--xla_force_host_platform_device_count={devices}")
  return {**inherited, **ours, "XLA_FLAGS": " ".join(flag for flag in flags if flag)}


def _failure(function: str, code: int, watch: _Watch, last_lines: str) -> ChildFailed:
  if watch.reason:
    return ChildStopped(f"{watch.reason}; while {watch.step}, and its last lines:\n{last_lines}")
  if -code in _FROM_OUTSIDE:
    what = f"expected the process for {function} to end by itself, and {_killed(signal.Signals(-code), watch)}"
    return ChildStopped(f"{what}; its last lines:\n{last_lines}")
  return ChildFailed(f"the process for {function} {_ended(code)} while {watch.step}; its last lines:\n{last_lines}")


def _ended(code: int) -> str:
  """What became of a process, by its exit status; below 0 it is a signal's number."""
  if code >= 0:
    return f"ended with code {code}"
  return f"was ended by {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"


def _killed(number: signal.Signals, watch: _Watch) -> str:
  """What a signal from outside did, and what to do."""
  size = f" at {watch.most_bytes / 1e9:.3g} GB" if watch.most_bytes else ""
  what = f"{number.name} ended it{size} while {watch.step}"
  if number != signal.SIGKILL:
    return f"{what}; somebody or a limit of this system wants it to end: mend that, and start the command again"
  remedy = "free some, or use a machine that has more"
  if not math.isinf(watch.memory_limit_bytes):
    remedy += "; --memory-limit below what is free ends it before the system does"
  return f"{what}, as a system does that has no memory left; {remedy}"


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
  except (UsageError, MissingError, CompileFailed, Unknown) as error:
    outcome = (False, error)
  (folder / "result").write_bytes(pickle.dumps(outcome))


def end_with_parent() -> None:
  """A parent that is killed ends nobody; Linux then ends us, before we compile for minutes and nobody reads it."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
  end_with_parent()
  _child(pathlib.Path(sys.argv[1]))
