"""A table as data; the command line decides how it is drawn."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
  """A title, column headers and rows of text."""

  title: str
  headers: Sequence[str]
  rows: Sequence[Sequence[str]]
