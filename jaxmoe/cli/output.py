"""How verbs write: one JSON document, or a table, on stdout."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from jaxmoe.report.table import Table

SCHEMA_VERSION = 1


def write_json(document: Mapping[str, Any]) -> None:
  """One versioned document; nothing else may go to stdout."""
  write(json_text(document))


def json_text(document: Mapping[str, Any]) -> str:
  """The document with its version, as a file holds it."""
  return json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False) + "\n"


def write_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
  """A table: wrapped to the width of a terminal; whole lines of aligned columns in a file or pipe."""
  texts = [[str(cell) for cell in row] for row in rows]
  if sys.stdout.isatty():
    _write_wrapped(headers, texts, title)
  else:
    write((f"{title}\n\n" if title else "") + aligned(headers, texts))


def write_tables(tables: Sequence[Table]) -> None:
  """Several tables, an empty line between them."""
  for index, table in enumerate(tables):
    write("\n" if index else "")
    write_table(table.headers, table.rows, title=table.title)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns as wide as their widest cell, numbers to the right, two spaces between."""
  lines = [list(headers), *map(list, rows)]
  columns = range(len(headers))
  widths = [max(len(line[column]) for line in lines) for column in columns]
  right = [_is_numeric(row[column] for row in rows) for column in columns]
  padded = (
    [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)] for line in lines
  )
  return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)


def write(text: str) -> None:
  """`text` to stdout; quietly nothing once the reader has gone (`jaxmoe place ... | head`)."""
  try:
    sys.stdout.write(text)
    sys.stdout.flush()
  except BrokenPipeError:
    silence(sys.stdout)


def log(line: str) -> None:
  """One line to stderr; nothing where that cannot be written, for there is nobody to tell."""
  try:
    print(line, file=sys.stderr, flush=True)
  except OSError:
    silence(sys.stderr)


def silence(stream: TextIO) -> None:
  """What is still buffered goes nowhere, so that the interpreter's last flush cannot fail."""
  with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file has no last flush
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write_wrapped(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
  from rich.console import Console  # here, for a pipe never needs it
  from rich.table import Table
  from rich.text import Text

  table = Table(
    title=Text(title) if title else None, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False
  )
  for column, header in enumerate(headers):
    numeric = _is_numeric(row[column] for row in rows)
    table.add_column(header, justify="right" if numeric else "left", overflow="fold")
  for row in rows:
    table.add_row(*(Text(cell) for cell in row))
  Console().print(table)


def _is_numeric(cells) -> bool:
  return all(cell.replace(",", "").replace(".", "", 1).isdigit() for cell in cells)
