"""Cases run in a child process, so that one that hangs or crashes costs its own time and not the run.

The child reads its cases from the standard input and prints lines of JSON: `{"begins": index}` as a case begins, with
`"seconds"` where it may be silent for longer than usual, and `{"index": index, ...}` as it ends. With `"together"`, all
begin: if the child ends then, the next one's cases have `alone` set, and it is to take them one by one.
"""

import contextlib
import json
import math
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxmoe.xla.child import end_with_parent

OUT_OF_TIME = {"skipped": "out of time"}
DEATH_S = 20.0  # a process that the driver holds back is not waited for

GiveUp = Callable[[int], Iterable[int]]


def read_cases() -> list[dict]:
  """In the child: its cases, each with its `index`. From then on it ends with who started it."""
  end_with_parent()
  return json.load(sys.stdin)


def say(**document: Any) -> None:
  """In the child: a line of JSON."""
  print(json.dumps(document), flush=True)


def results(
  script: str,
  cases: Sequence[dict],
  seconds: float,
  arguments: Sequence[str] = (),
  *,
  until: float = math.inf,
  give_up: GiveUp = lambda index: (),
) -> Iterator[dict]:
  """What the script says of each case; `{"index", "error", "correct"}` of one that ended its process.

  Args:
    script: a Python script that follows the protocol above.
    cases: documents; `index` is their place in this sequence.
    seconds: the longest silence: start of the process, compilation and run of one case each stay below.
    until: when the clock (`time.monotonic`) ends everything; what is left then is `OUT_OF_TIME`.
    give_up: of a case that ended its process: those that are not worth a process each, because they would end alike.
  """
  left, alone = list(range(len(cases))), False
  while left and time.monotonic() < until - 0.5:
    lost = _Lost()
    with _child(script, arguments, [{**cases[i], "index": i, "alone": alone} for i in left]) as child:
      yield from _reported(child, left, seconds, until, lost)
    alone = lost.together and not alone
    if lost.why is None or time.monotonic() >= until - 0.5:  # the last wait may end a little early
      continue
    if lost.index in left and not alone:
      left.remove(lost.index)
      yield {"index": lost.index, "error": lost.why, "correct": False}
      for index in sorted(set(give_up(lost.index)) & set(left)):
        left.remove(index)
        yield {"index": index, "skipped": f"not tried: another such case ended its process ({lost.why})"}
  yield from ({"index": index, **OUT_OF_TIME} for index in left)


class _Lost:
  """The case that a child's end is to be blamed on, and what that end was; no case, if it came between two."""

  index: int | None = None
  together = False  # with others, any of which may be the one
  why: str | None = None


def _reported(child: subprocess.Popen, left: list[int], seconds: float, until: float, lost: _Lost) -> Iterator[dict]:
  """Results as they come, each taken off `left`."""
  lost.index, patience = left[0], seconds  # what ends a child before it begins anything is its first case's fault
  lines, heard = _lines(child), time.monotonic()
  try:
    while (line := lines.get(timeout=max(0.0, min(heard + patience, until) - time.monotonic()))) is not None:
      said = _document(line)
      heard = time.monotonic() if said else heard  # other words may come from a child that hangs
      if "begins" in said:
        lost.index, patience = said["begins"], said.get("seconds", seconds)
        lost.together = said.get("together", False)
      if said.get("index") in left:
        left.remove(said["index"])
        lost.index, lost.together = None, False
        yield said
    if left:
      lost.why = f"the process ended with code {child.wait(DEATH_S)}"
  except (queue.Empty, subprocess.TimeoutExpired):
    lost.why = f"nothing came within {patience:g} s"


def _document(line: str) -> dict:
  """Nothing, if the line is no document, or was cut by the end of its process."""
  with contextlib.suppress(json.JSONDecodeError):
    return json.loads(line) if line.startswith("{") else {}
  return {}


@contextlib.contextmanager
def _child(script: str, arguments: Sequence[str], cases: list[dict]) -> Iterator[subprocess.Popen]:
  """The running script; killed in the end."""
  with tempfile.TemporaryFile("w+") as file:  # a pipe could block this process while the child does not read
    json.dump(cases, file)
    file.seek(0)
    command = [sys.executable, "-u", script, *arguments]
    child = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, text=True, errors="replace")
    try:
      yield child
    finally:
      child.kill()
      with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(DEATH_S)


def _lines(child: subprocess.Popen) -> queue.Queue[str | None]:
  """What the child prints, line by line; None at its end."""
  lines: queue.Queue[str | None] = queue.Queue()
  threading.Thread(target=_read, args=(child, lines), daemon=True).start()
  return lines


def _read(child: subprocess.Popen, lines: queue.Queue) -> None:
  assert child.stdout is not None
  with child.stdout:
    for line in child.stdout:
      lines.put(line)
  lines.put(None)
