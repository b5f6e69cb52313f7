"""What a page is made of, as data that the template draws: sections of sentences, figures and tables."""

import dataclasses
from collections.abc import Iterable, Sequence

from jaxmoe.report import units
from jaxmoe.report.table import Table

# Colours of the style sheet for series (`s0`, ...); later ones come round again, with their names beside them.
COLOURS = 8


class Number(str):
  """A number as people read it, that also knows its exact value."""

  value: float
  __slots__ = ("value",)

  def __new__(cls, text: str, value: float):
    number = super().__new__(cls, text)
    number.value = value
    return number


def of_bytes(value: float) -> Number:
  return Number(units.bytes_(value), value)


def of_flops(value: float) -> Number:
  return Number(units.flops(value), value)


def of_seconds(value: float) -> Number:
  return Number(units.seconds(value), value)


def of_share(value: float) -> Number:
  return Number(units.percent(value), value)


def of_rate(value: float, unit: str) -> Number:
  return Number(units.rate(value, unit), value)


def of_count(value: float) -> Number:
  return Number(f"{value:,.0f}" if value == int(value) else f"{value:,.3g}", value)


def quantity(value: float, unit: str) -> Number:
  """A number of `bytes` or `FLOPs`."""
  return Number(units.quantity(value, unit), value)


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
  """One bar, or one piece of a stack; places in percent of the figure's width."""

  label: str
  number: Number
  source: str
  colour: int
  width: float
  left: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Bars:
  """Bars under each other on one scale; the bars of a group share its heading."""

  title: str
  groups: Sequence[tuple[str, Sequence[Bar]]]
  kind: str = "bars"


@dataclasses.dataclass(frozen=True, slots=True)
class Stacks:
  """Bars made of pieces, on one scale.

  Attributes:
    rows: heading and pieces of each bar.
    limit: where a line stands; shares are of it, without one of the whole width.
  """

  title: str
  rows: Sequence[tuple[str, Sequence[Bar]]]
  limit: float | None = None
  limit_name: str = ""
  kind: str = "stacks"


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
  """One part of the page; `figures` are drawn by the macro that their `kind` names, and `tables` stand below."""

  id: str
  title: str
  text: Sequence[str] = ()
  figures: Sequence[object] = ()
  tables: Sequence[Table] = ()


type Measure = tuple[str, Number, str]  # label, number, source


def bars(title: str, groups: Sequence[tuple[str, Sequence[Measure]]]) -> Bars:
  """All to the scale of the largest."""
  most = max((number.value for _, group in groups for _, number, _ in group), default=0) or 1
  drawn = [
    (heading, [Bar(*measure, place, percent(measure[1].value, most)) for place, measure in enumerate(group)])
    for heading, group in groups
  ]
  return Bars(title, drawn)


def stack(measures: Iterable[Measure], whole: float) -> list[Bar]:
  """Pieces one after the other, in percent of `whole`; what is zero is left out."""
  pieces: list[Bar] = []
  before = 0.0
  for place, (label, number, source) in enumerate(measures):
    if number.value > 0:
      pieces.append(Bar(label, number, source, place % COLOURS, percent(number.value, whole), percent(before, whole)))
      before += number.value
  return pieces


def numeric_columns(table: Table) -> list[bool]:
  """Whether a column holds nothing but numbers, and dashes where there is none."""
  columns = [[row[place] for row in table.rows if row[place] != "-"] for place in range(len(table.headers))]
  return [bool(cells) and all(isinstance(cell, Number) for cell in cells) for cells in columns]


def percent(part: float, whole: float) -> float:
  return round(100 * part / whole, 3)
