"""The numbers that the deployment documents print, and how a number is read with its unit."""

import pathlib
import re

# A bare B is a billion parameters; a bare s is a second.
SCALE = {
  "%": 0.01,
  "B": 1e9,
  "billion": 1e9,
  "k": 1e3,
  "K": 1e3,
  "M": 1e6,
  "G": 1e9,
  "T": 1e12,
  "P": 1e15,
  "m": 1e-3,
  "μ": 1e-6,
}


def quoted_values(quote):
  """Every number of a quote in base units and in order: 0.637 GB -> 6.37e8, 60% -> 0.6, 30B -> 3e10."""
  number = r"(?<![\d.])(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)"
  unit = r"(?:\s?(%|B\b|billion|[kKMGTPmμ]?(?:B|Flops|FLOPS|FLOps|Bps|s)\b))?"
  return [
    float(digits.replace(",", "")) * (SCALE.get(unit) or SCALE.get(unit[:1], 1))
    for digits, unit in re.findall(number + unit, quote)
  ]


def _rows():
  """Document -> (words around its numbers, a claim's name or a reason for each), in the document's order."""
  documents: dict[str, list[tuple[str, list[str]]]] = {}
  rows = None
  for line in (pathlib.Path(__file__).parent / "numerals.txt").read_text().splitlines():
    if line.startswith("## "):
      rows = documents.setdefault(line[3:], [])
    elif not line.startswith("#"):
      words, names = line.rsplit(" | ", 1)
      rows.append((words, names.split()))
  return documents


PRINTED = _rows()
