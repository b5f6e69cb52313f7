"""Numbers as people read them: bytes in binary units, FLOPs and seconds in decimal ones."""

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "K", "M", "G", "T", "P", "E")
_SMALL = ("", "m", "u", "n")


def bytes_(number: float) -> str:
  """`98.1 MiB`; whole bytes below 1 KiB."""
  power = 0
  while abs(number) >= 1024 and power < len(_BINARY) - 1:
    number, power = number / 1024, power + 1
  return f"{number:.0f} B" if power == 0 else f"{number:.{_decimals(number)}f} {_BINARY[power]}"


def flops(number: float) -> str:
  """`554 GFLOP`."""
  return _decimal(number, "FLOP")


def rate(number: float, unit: str) -> str:
  """`6.51 M tokens/s`, `417 tokens/s`."""
  return _decimal(number, f" {unit}").replace("  ", " ")


def seconds(number: float) -> str:
  """`20.1 ms`."""
  power = 0
  while 0 < abs(number) < 1 and power < len(_SMALL) - 1:
    number, power = number * 1000, power + 1
  return f"{number:.{_decimals(number)}f} {_SMALL[power]}s"


def devices(number: int) -> str:
  """`8 devices`, `1 device`."""
  return f"{number} device{'s' * (number != 1)}"


def percent(share: float) -> str:
  """`5.6 %`."""
  return f"{100 * share:.{_decimals(100 * share)}f} %"


def difference(share: float, decimals: int) -> str:
  """`+5.61 %`; `0` for none at all, and `0.00 %`, without a sign, for one that is too small to show."""
  if not share:
    return "0"
  number = f"{100 * share:+.{decimals}f}"
  return f"{number if float(number) else number[1:]} %"


def quantity(number: float, unit: str) -> str:
  """A number of `bytes`, of `FLOPs` or of anything else."""
  return bytes_(number) if unit == "bytes" else flops(number) if unit == "FLOPs" else rate(number, unit)


def _decimal(number: float, unit: str) -> str:
  power = 0
  while abs(number) >= 1000 and power < len(_DECIMAL) - 1:
    number, power = number / 1000, power + 1
  return f"{number:.{_decimals(number)}f} {_DECIMAL[power]}{unit}"


def _decimals(number: float) -> int:
  """Three significant digits."""
  return 0 if abs(number) >= 100 or number == 0 else 1 if abs(number) >= 10 else 2
