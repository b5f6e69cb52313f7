"""What `jaxmoe verify` prints: errors that are too small to show, rows that are wide, and compilers that are killed."""

import dataclasses
import itertools

import pytest

from jaxmoe.cli.output import aligned
from jaxmoe.report import units
from jaxmoe.report.html import page
from jaxmoe.report.verification import tables
from jaxmoe.xla.compare import Check


@pytest.mark.parametrize(
  "share, decimals, words",
  [
    (0.0, 2, "0"), (-1e-9, 2, "0.00 %"), (1e-9, 2, "0.00 %"), (-0.0001, 2, "-0.01 %"), (-0.0001, 1, "0.0 %"),
    (0.5, 1, "+50.0 %"), (2.5, 2, "+250.00 %"),
  ],
)  # fmt: skip
def test_what_rounds_to_nothing_has_no_sign(share, decimals, words):
  assert units.difference(share, decimals) == words


def test_an_error_too_small_to_show_has_no_sign_in_any_table(tiny_step):
  c, e = tiny_step
  less = {"predicted": 1e9, "compiled": 1e9 - 1, "unit": "FLOPs", "axis": ""}
  check = Check(name="tiny matmuls", tolerance=0.01, **less)
  row = dataclasses.replace(c.informational[0], name="tiny traffic", **less)
  found = dataclasses.replace(c, checks=[check], informational=[row])
  printed = {row[0]: row for table in tables(found)[:2] for row in table.rows}
  assert [printed[name][place] for name, place in (("tiny matmuls", -3), ("tiny traffic", -2))] == ["0.00 %"] * 2
  text = page(found, e)
  assert text.count(">0.00 %<") >= 2 and ">-0.00 %<" not in text


def test_wide_rows_are_folded(tiny_step):
  """Versions, flags and notes, of which NVIDIA's are longest; nothing of them is lost, and no version is cut off."""
  c, _ = tiny_step
  versions = {f"nvidia-package-{number}": "13.0.88.post1" for number in range(9)}
  notes = ("word " * 60 + "end",)
  step = dataclasses.replace(c.compiled, versions=versions, settings={"XLA flags": "--xla_flag=1 " * 20}, notes=notes)
  shown = tables(dataclasses.replace(c, compiled=step))[-1]
  assert max(map(len, aligned(shown.headers, shown.rows).splitlines())) <= 160
  texts = {name: " ".join(row[1] for row in rows) for name, rows in _by_name(shown.rows)}
  assert texts["versions"] == ", ".join(f"{name} {version}" for name, version in versions.items())
  assert (texts["XLA flags"].split(), texts["note"]) == (["--xla_flag=1"] * 20, notes[0])
  lines = [row[1] for name, rows in _by_name(shown.rows) if name == "versions" for row in rows]
  assert len(lines) > 1 and all(line.startswith("nvidia-package-") for line in lines)


def _by_name(rows):
  """Rows with those that continue them, which have no name."""
  starts = [at for at, row in enumerate(rows) if row[0]]
  return [(rows[a][0], rows[a:b]) for a, b in itertools.pairwise([*starts, len(rows)])]
