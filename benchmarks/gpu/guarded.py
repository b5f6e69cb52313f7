"""Cases run in a child process, so that one that hangs or crashes costs its own time and not the run."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator


def results(script: str, cases: int, seconds: float, arguments: list[str]) -> Iterator[dict]:
  """What the script prints of each case, in order; `{"index", "error", "correct"}` of one that ended its process.

  Args:
    script: prints `{"begins": index}` and `{"index": index, ...}` of each of `--cases`.
    cases: how many.
    seconds: the longest silence: start of the process, compilation and run of one case each stay below.
  """
  left = list(range(cases))
  while left:
    command = [sys.executable, "-u", script, *arguments, "--cases", *map(str, left)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
      begun, why = left[0], None
      try:
        for said in _said(child, seconds):
          begun = said.get("begins", begun)
          if "index" in said:
            left.remove(said["index"])
            yield said
        why = f"the process ended with code {child.wait()}"
      except queue.Empty:
        why = f"nothing came within {seconds:g} s"
      finally:
        child.kill()
    if left:
      left.remove(begun)
      yield {"index": begun, "error": why, "correct": False}


def _said(child: subprocess.Popen, seconds: float) -> Iterator[dict]:
  """The documents that the child prints, each on a line; raises where none comes for so long."""
  lines: queue.Queue[str | None] = queue.Queue()
  threading.Thread(target=_read, args=(child, lines), daemon=True).start()
  while (line := lines.get(timeout=seconds)) is not None:
    if line.startswith("{"):
      yield json.loads(line)


def _read(child: subprocess.Popen, lines: queue.Queue) -> None:
  assert child.stdout is not None
  with child.stdout:
    for line in child.stdout:
      lines.put(line)
  lines.put(None)
