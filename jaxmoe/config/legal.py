"""The nearest legal value of a field: it has been built with that value, so what a message suggests is legal."""

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxmoe.meshes.errors import UsageError

TRIALS = 1000
MOST_SIZE = 1 << 24
MOST_LAYERS = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Remedy:
  """Fields that change together, by dotted paths, and values to try, the nearest first.

  Attributes:
    last: tried only when no other remedy helps.
  """

  fields: tuple[str, ...]
  values: Callable[[], Iterable[tuple[int, ...]]]
  last: bool = False


class IllegalError(UsageError):
  """What is wrong with `value`; its text goes on with the nearest legal values.

  They are searched when the text is read: whoever tries many plans and reads no message pays for no search, and the
  search itself may build illegal values as it likes.
  """

  def __init__(self, value: Any, what: str, *remedies: Remedy, prefix: str = ""):
    super().__init__(what)
    self.value, self.what, self.remedies, self.prefix = value, what, remedies, prefix

  def __str__(self) -> str:
    return f"{self.what}; {self._advice}"

  def __reduce__(self):
    return UsageError, (str(self),)  # the search does not travel to other processes

  @functools.cached_property
  def _advice(self) -> str:
    """What mends it, each suggestion by itself and a field in one of them only; or that nothing was found."""
    found: list[dict[str, int]] = []
    for remedy in sorted(self.remedies, key=lambda remedy: remedy.last):
      if not any(remedy.last or field in changes for field in remedy.fields for changes in found):
        found += filter(None, [_legal(self.value, remedy)])
    return ", or ".join(map(self._suggestion, found)) or self._nothing()

  def _suggestion(self, changes: Mapping[str, int]) -> str:
    (field, new), *others = changes.items()
    rest = " and ".join(f"{self.prefix}{path} {size}" for path, size in others)
    return f"the nearest legal {self.prefix}{field} is {new}" + (f" with {rest}" if rest else "")

  def _nothing(self) -> str:
    """That no suggestion was found, with what stands in the way of the first one."""
    alone = [remedy for remedy in self.remedies if len(remedy.fields) == 1]
    names = " or ".join(self.prefix + remedy.fields[0] for remedy in alone)
    for remedy in alone:
      for values in itertools.islice(remedy.values(), 1):
        error = _refusal(self.value, dict(zip(remedy.fields, values, strict=True)))
        what = error.what if isinstance(error, IllegalError) else str(error)  # its text would search again
        if what != self.what:
          return f"changing {names} alone does not mend it: with {self.prefix}{remedy.fields[0]} {values[0]}, {what}"
    return f"no legal {names} was found"


def one(field: str, values: Callable[[], Iterable[int]]) -> Remedy:
  """The remedy that changes a single field."""
  return Remedy((field,), lambda: ((value,) for value in values()))


def changed(value: Any, changes: Mapping[str, Any]) -> Any:
  """A copy with other values at these dotted paths, checked as any new one is."""
  own = {path: new for path, new in changes.items() if "." not in path}
  for part in {path.split(".")[0] for path in changes} - own.keys():
    inner = {path.removeprefix(f"{part}."): new for path, new in changes.items() if path.startswith(f"{part}.")}
    own[part] = changed(getattr(value, part), inner)
  return dataclasses.replace(value, **own)


def divisors(number: int) -> list[int]:
  """All of them, in rising order."""
  low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
  return sorted({*low, *(number // d for d in low)})


def nearest(numbers: Iterable[int], wish: int) -> list[int]:
  """Sorted by distance from `wish`, the larger one first on a tie."""
  return sorted(numbers, key=lambda number: (abs(number - wish), -number))


def multiples(step: int, wish: int, *, most: int = MOST_SIZE) -> Iterable[int]:
  """Multiples of `step` from `step` to `most`, in the order of `nearest`."""
  low = min(wish, most) // step * step
  down, up = range(low, 0, -step), range(max(low, 0) + step, most + 1, step)
  return heapq.merge(down, up, key=lambda number: (abs(number - wish), -number))


def _legal(value: Any, remedy: Remedy) -> dict[str, int]:
  """The first changes of a remedy that build, without those that change nothing; empty if none does."""
  for values in itertools.islice(remedy.values(), TRIALS):
    changes = dict(zip(remedy.fields, values, strict=True))
    if _refusal(value, changes) is None:
      return {path: new for path, new in changes.items() if _at(value, path) != new}
  return {}


def _refusal(value: Any, changes: Mapping[str, int]) -> UsageError | None:
  try:
    changed(value, changes)
  except UsageError as error:
    return error
  return None


def _at(value: Any, path: str) -> Any:
  return functools.reduce(getattr, path.split("."), value)
