"""Signals that ask a command to end let it clean up first: folders of its own go, and processes that it started end."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_ASKING = (signal.SIGHUP, signal.SIGTERM)  # beside SIGINT, which Python makes an exception of by itself


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
  """Within the block the first SIGHUP or SIGTERM raises SystemExit(128 + its number), and later ones wait for that.

  A signal that is ignored, as `nohup` has it, stays ignored; one that somebody handles stays theirs.
  """
  here = threading.current_thread() is threading.main_thread()  # no other may say what a signal does
  ours = [number for number in _ASKING if here and signal.getsignal(number) is signal.SIG_DFL]

  def end(number: int, _: object) -> None:
    for each in ours:
      signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)

  for number in ours:
    signal.signal(number, end)
  try:
    yield
  finally:
    for number in ours:
      signal.signal(number, signal.SIG_DFL)
