"""Numbers with the precision they were printed in, and the arithmetic that made them as one line of text.

An amount is an interval: 8.4 GB as printed is 8.35 to 8.45 GB. Sums and products carry the interval on, so that a
recomputed number is no more precise than what it was computed from; what is counted or read from a file is exact.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Literal

# Of what is compared with anything: float arithmetic, not precision.
FLOAT_SLACK = 1e-9

_BASE_UNITS = {"bytes": "B", "bytes/s": "B/s", "FLOP": "FLOP", "FLOP/s": "FLOP/s", "s": "s"}
_LARGE = ("", "k", "M", "G", "T", "P", "E")
_SMALL = ("", "m", "μ", "n")
_WORDLESS = ("wide", "ways", "times", "rank", "layer")


@dataclasses.dataclass(frozen=True, slots=True)
class Amount:
  """A number between `low` and `high`, and how it came about."""

  value: float
  low: float
  high: float
  text: str
  shape: Literal["leaf", "product", "sum"] = "leaf"

  def __mul__(self, other: "Amount") -> "Amount":
    return self._with(other, lambda a, b: a * b, f"{self._factor} x {other._factor}", "product")

  def __truediv__(self, other: "Amount") -> "Amount":
    divisor = other.text if other.shape == "leaf" else f"({other.text})"
    return self._with(other, _divided, f"{self._factor} / {divisor}", "product")

  def __add__(self, other: "Amount") -> "Amount":
    return self._with(other, lambda a, b: a + b, f"{self.text} + {other.text}", "sum")

  def __sub__(self, other: "Amount") -> "Amount":
    taken = f"({other.text})" if other.shape == "sum" else other.text
    return self._with(other, lambda a, b: a - b, f"{self.text} - {taken}", "sum")

  def agrees_with(self, other: "Amount") -> bool:
    """Whether both could be one number."""
    return self.may_reach(other) and other.may_reach(self)

  def may_reach(self, least: "Amount") -> bool:
    """Whether this may be as large as `least`."""
    return self.high >= least.low - FLOAT_SLACK * max(abs(self.high), abs(least.low))

  @property
  def _factor(self) -> str:
    return f"({self.text})" if self.shape == "sum" else self.text

  def _with(
    self, other: "Amount", do: Callable[[float, float], float], text: str, shape: Literal["product", "sum"]
  ) -> "Amount":
    ends = [do(a, b) for a, b in itertools.product((self.low, self.high), (other.low, other.high))]
    return Amount(do(self.value, other.value), min(ends), max(ends), text, shape)


def exact(value: float, text: str | None = None) -> Amount:
  """A number that was counted or read from a file."""
  return Amount(value, value, value, shown(value) if text is None else text)


def shown(value: float, unit: str = "") -> str:
  """As documents write it, bytes decimal: `512,000 batches/s`, `30.72 PFLOP/s`, `1.5 %`, `4.43B parameters`."""
  return f"{brief(value, unit)} {_word(value, unit)}".rstrip()


def brief(value: float, unit: str) -> str:
  """`shown` without the word of what is counted."""
  if unit == "share":
    return f"{_digits(100 * value)} %"
  if unit == "parameters":
    return f"{_digits(value / 1e9)}B"
  if unit in _BASE_UNITS:
    number, prefix = _prefixed(value)
    return f"{_digits(number)} {prefix}{_BASE_UNITS[unit]}"
  return _digits(value)


def _word(value: float, unit: str) -> str:
  if unit == "share" or unit in _BASE_UNITS or unit in _WORDLESS:
    return ""
  first, *rest = unit.split(" ")
  return " ".join([first.removesuffix("s"), *rest]) if value == 1 and "/" not in unit else unit


def _prefixed(value: float) -> tuple[float, str]:
  """Between 1 and 1000, or as near as prefixes go."""
  large = small = 0
  while abs(value) >= 999.95 and large < len(_LARGE) - 1:
    value, large = value / 1000, large + 1
  while not large and 0 < abs(value) < 1 and small < len(_SMALL) - 1:
    value, small = value * 1000, small + 1
  return value, _LARGE[large] or _SMALL[small]


def _digits(value: float) -> str:
  """Whole numbers whole, others in four digits."""
  if not 1e-12 < abs(value) < 1e15:
    return f"{value:.4g}"
  if abs(value - round(value)) < 1e-6 * max(1.0, abs(value)) and round(value):
    return f"{round(value):,}"
  digits = max(0, 3 - math.floor(math.log10(abs(value))))
  text = f"{value:,.{digits}f}"
  return text.rstrip("0").rstrip(".") if "." in text else text


def _divided(a: float, b: float) -> float:
  return a / b if b else math.copysign(math.inf, a)
