"""A compiler that refuses a program: what it said, and what of the program is too large if memory is the reason."""

import re
from collections.abc import Mapping

TEMPORARIES = "temporaries"

_EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|[Rr]an out of memory|[Oo]ut of memory")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LONGEST = 600


class CompileFailed(Exception):
  """The compiler's own message, shortened.

  Attributes:
    message: as it is shown.
    class_bytes: of one device's arguments by class; with the temporaries where the compiler says them.
  """

  def __init__(self, message: str, class_bytes: Mapping[str, int]):
    super().__init__(message, dict(class_bytes))  # both, so that it pickles
    self.message = message
    said = _TEMPORARIES.search(message)
    room = {TEMPORARIES: round(float(said[1]) * _UNITS[said[2]])} if said else {}
    self.class_bytes = {**class_bytes, **room}

  def __str__(self) -> str:
    return self.message

  @property
  def out_of_memory(self) -> bool:
    return bool(_EXHAUSTED.search(self.message))

  @property
  def largest(self) -> str:
    """The class that takes most."""
    return max(self.class_bytes, key=lambda name: self.class_bytes[name])


def shortened(text: str) -> str:
  """The first lines of what a compiler says, without stack frames, on one line."""
  lines = (line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("@", "at ")))
  whole = " ".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
  return whole if len(whole) <= _LONGEST else whole[:_LONGEST].rstrip() + " ..."
