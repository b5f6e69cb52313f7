"""The process that compiles: what is said of one that dies, hangs or grows too large."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.xla.child import ChildFailed, ChildStopped, resident_bytes, run_in_child

HAS_PROC = pytest.mark.skipif(resident_bytes() is None, reason="this system does not say how much is resident")


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes a module that a child can import."""
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
  return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def test_a_child_that_dies_is_reported_with_its_last_lines():
  with pytest.raises(ChildFailed, match="No module named 'nowhere'"):
    run_in_child("nowhere:nothing", devices=1, progress=lambda _: None)


DIES = """import signal, time
def by(name, progress):
  progress("at work")
  time.sleep(1)
  signal.raise_signal(signal.Signals[name])
"""
OUTSIDE = r"ended it at 0\.\d+ GB while at work"
ENDED = {
  "SIGKILL": (
    ExitCode.USAGE,
    rf"SIGKILL {OUTSIDE}, as .* no memory left; free .*; --memory-limit ",
  ),
  "SIGTERM": (ExitCode.USAGE, rf"SIGTERM {OUTSIDE}; .* start the command again"),
  "SIGSEGV": (ExitCode.INTERNAL_ERROR, r"internal error: the process for dies:by was ended by SIGSEGV while at work"),
}


@HAS_PROC
@pytest.mark.parametrize("name", ENDED)
def test_a_child_that_a_signal_ends_is_reported_with_it(name, module, monkeypatch, capsys):
  """One from outside is no fault of ours; what the compiler does to itself may be."""
  code, said = ENDED[name]
  module("dies", DIES)
  options = {"devices": 1, "progress": lambda _: None, "memory_limit_bytes": 6e9}
  monkeypatch.setattr("jaxmoe.xla.verify.verify", lambda *_: run_in_child("dies:by", name, **options))
  assert main(["verify", "ep64_tp2"]) == code
  err = capsys.readouterr().err
  assert re.search(f"{said}.*its last lines:\n", err)
  assert ("please report" in err) == ("internal error" in err) == (code == ExitCode.INTERNAL_ERROR)


def test_a_limit_is_named_only_where_there_is_one(module):
  module("dies", DIES)
  with pytest.raises(ChildStopped, match="SIGKILL ended it ") as stopped:
    run_in_child("dies:by", "SIGKILL", devices=1, progress=lambda _: None)
  assert "--memory-limit" not in str(stopped.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_with_a_parent_that_is_killed(module):
  body = "import os, time\ndef here(progress):\n  progress(str(os.getpid()))\n  time.sleep(60)\n"
  module("waits", body)
  call = "run('waits:here', devices=1, progress=lambda line: print(line, flush=True))"
  code = f"from jaxmoe.xla.child import run_in_child as run; {call}"
  with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
    assert parent.stdout is not None
    status = pathlib.Path(f"/proc/{int(parent.stdout.readline())}/status")
    parent.kill()
  end = time.monotonic() + 10
  while time.monotonic() < end and status.exists() and "State:\tZ" not in status.read_text():
    time.sleep(0.05)
  assert time.monotonic() < end


def test_a_child_that_dies_is_printed_with_its_last_lines(monkeypatch, capsys):
  """The exception stands far behind the 120 characters that other errors are cut at."""
  monkeypatch.setattr("jaxmoe.xla.verify.verify", lambda *_: run_in_child("nowhere:no", devices=1, progress=print))
  assert main(["verify", "ep64_tp2"]) == ExitCode.INTERNAL_ERROR
  assert "No module named 'nowhere'" in capsys.readouterr().err


def test_a_child_that_hangs_is_ended(module):
  module("hanging", "import time\ndef hang(progress):\n  progress('started')\n  time.sleep(600)\n")
  seen = []
  with pytest.raises(ChildStopped, match="ended after 3 s, its limit; --timeout raises it; while started"):
    run_in_child("hanging:hang", devices=1, progress=seen.append, timeout_s=3.0)
  assert seen == ["started"]


HUNGRY = "import time\ndef eat(progress):\n  progress('eating')\n  held = b'x' * 400_000_000\n  time.sleep(600)\n"


@HAS_PROC
def test_a_child_that_grows_too_large_is_ended(module):
  module("hungry", HUNGRY)
  seen = []
  with pytest.raises(ChildStopped, match=r"over its limit of 0\.3 GB; --memory-limit raises it; while eating"):
    run_in_child("hungry:eat", devices=1, progress=seen.append, timeout_s=60.0, memory_limit_bytes=300e6)
  assert seen == ["eating"]


@HAS_PROC
def test_limits_are_options_of_the_command(capsys):
  assert main(["verify", "ep64_tp2", "--memory-limit", "1MB"]) == ExitCode.USAGE
  assert "over its limit of 0.001 GB" in capsys.readouterr().err
  assert main(["verify", "ep64_tp2", "--timeout", "1ms"]) == ExitCode.USAGE
  assert "ended after 0.001 s" in capsys.readouterr().err
