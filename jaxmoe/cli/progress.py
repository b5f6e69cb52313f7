"""What a long command is doing, on stderr: a spinner on a terminal, one line a step elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from jaxmoe.cli.output import log


@contextlib.contextmanager
def progress_display() -> Iterator[Callable[[str], None]]:
  """A callable that shows one line; the display is gone when the block ends."""
  if sys.stderr.isatty():
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
      yield status.update
    return
  start = time.perf_counter()
  yield lambda message: log(f"[{time.perf_counter() - start:6.1f} s] {message}")
