"""Arithmetic that takes one whole number or an array of them alike, and gives back what it was given."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def least(first: Any, second: Any) -> Any:
  """The smaller of two, element by element."""
  return np.minimum(first, second) if _arrays(first, second) else min(first, second)


def most(first: Any, second: Any) -> Any:
  """The larger of two, element by element."""
  return np.maximum(first, second) if _arrays(first, second) else max(first, second)


def ceil(number: Any) -> Any:
  """The next whole number at or above."""
  return np.ceil(number) if _arrays(number) else math.ceil(number)


def ceil_div(number: Any, parts: Any) -> Any:
  """The largest part of `number` things dealt out to `parts`."""
  return -(-number // parts)


def table_of(function: Callable[..., float], *sizes: Any) -> Any:
  """`function` of every entry of arrays of few different sizes, or of single ones."""
  if not _arrays(*sizes):
    return function(*sizes)
  columns = np.broadcast_arrays(*sizes)
  values, places = np.unique(np.stack([column.ravel() for column in columns]), axis=1, return_inverse=True)
  each = np.array([function(*(int(size) for size in entry)) for entry in values.T])
  return each[places].reshape(columns[0].shape)


def total(parts: Iterable[Any]) -> Any:
  """Their sum, small arrays first: fewer entries are added twice where they broadcast."""
  return sum(sorted(parts, key=np.size))


def _arrays(*values: Any) -> bool:
  return any(isinstance(value, np.ndarray) for value in values)
