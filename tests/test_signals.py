"""What a signal that asks a command to end leaves behind: an exit code, and neither folders nor processes."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxmoe.cli.signals import cleaning_up

# A command whose child keeps a folder of its own and starts a process, and says so.
WAITS = """import subprocess, sys, tempfile
def here(progress):
  with tempfile.TemporaryDirectory(prefix="jaxmoe-dump-"):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
      progress(f"started {process.pid}")
      process.wait()
"""
COMMAND = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background shell ignores
signal.signal(signal.SIGHUP, signal.{hangup})
from jaxmoe.xla import child, verify
verify.verify = lambda d, target, progress, options: child.run_in_child("waits:here", devices=1, progress=progress)
from jaxmoe.cli.main import main
sys.exit(main(["verify", "ep64_tp2"]))
"""


@contextlib.contextmanager
def running(folder, hangup="SIG_DFL"):
  """The command once its child is at work, the process that the child started, and the folder for temporary files."""
  (folder / "waits.py").write_text(WAITS)
  temporary = folder / "temporary"
  temporary.mkdir()
  path = os.pathsep.join([str(folder), *filter(None, sys.path)])
  environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)}
  command = [sys.executable, "-c", COMMAND.format(hangup=hangup)]
  with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
    try:
      assert process.stderr is not None
      yield process, int(process.stderr.readline().split()[-1]), temporary
    finally:
      process.kill()


def alive(number):
  """Not where nobody has fetched the exit code of a process that is over."""
  status = pathlib.Path(f"/proc/{number}/status")
  return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes where Linux lists them")
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_command_that_is_asked_to_end_leaves_nothing(name, code, tmp_path):
  with running(tmp_path) as (process, started, temporary):
    assert [*temporary.rglob("jaxmoe-dump-*")] != [] and alive(started)
    process.send_signal(signal.Signals[name])
    assert process.wait(timeout=30) == code
    assert process.stderr.read() == ""
  assert [*temporary.iterdir()] == []
  end = time.monotonic() + 10
  while alive(started) and time.monotonic() < end:
    time.sleep(0.05)
  assert not alive(started)


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path):
  with running(tmp_path, hangup="SIG_IGN") as (process, _, temporary):
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
  assert [*temporary.iterdir()] == []


@pytest.fixture
def unhandled():
  """Both signals do what they do to a program that says nothing of them."""
  before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.usefixtures("unhandled")
def test_cleaning_up_is_not_interrupted():
  cleaned = []
  with pytest.raises(SystemExit) as asked, cleaning_up():
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      signal.raise_signal(signal.SIGHUP)
      signal.raise_signal(signal.SIGTERM)
      cleaned.append("all")
  assert asked.value.code == 143 and cleaned == ["all"]


@pytest.mark.usefixtures("unhandled")
def test_what_others_say_of_a_signal_holds():
  """Of a program that calls `main`: its own handlers, and all of them afterwards or in another thread."""
  seen = []
  signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
  with cleaning_up():
    signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
  assert seen == ["theirs"] and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
  thread = threading.Thread(target=lambda: seen.append(cleaning_up().__enter__()))
  thread.start()
  thread.join()
  assert seen == ["theirs", None]
