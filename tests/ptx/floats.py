"""Instructions on floating-point numbers. Where they are approximate, results are exact before they are rounded."""

import operator

import ml_dtypes
import numpy as np

from ptx.lanes import Lanes, computes

HALVES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
QUARTERS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def read(lanes: Lanes) -> Lanes:
  return lanes.astype(np.uint32).view(np.float32)


def written(values: Lanes) -> Lanes:
  return values.astype(np.float32).view(np.uint32).astype(np.uint64)


def written_pair(low: Lanes, high: Lanes) -> Lanes:
  """Two of 16 bits side by side."""
  low, high = (half.view(np.uint16).astype(np.uint64) for half in (low, high))
  return high << np.uint64(16) | low


@computes(r"(add|mul)\.f32")
def pair(name: str, left: Lanes, right: Lanes) -> Lanes:
  with np.errstate(all="ignore"):
    return written(getattr(operator, name)(read(left), read(right)))


@computes(r"rcp\.approx\.f32")
def reciprocal(source: Lanes) -> Lanes:
  with np.errstate(all="ignore"):
    return written(1 / read(source))


@computes(r"ex2\.approx\.ftz\.f32")
def power_of_two(source: Lanes) -> Lanes:
  with np.errstate(all="ignore"):
    return written(np.exp2(read(source)))


@computes(r"cvt\.rn\.(bf16|f16)x2\.f32")
def rounded(kind: str, high: Lanes, low: Lanes) -> Lanes:
  with np.errstate(all="ignore"):
    return written_pair(*(read(half).astype(HALVES[kind]) for half in (low, high)))


@computes(r"cvt\.f32\.f16")
def widened(source: Lanes) -> Lanes:
  return written(source.astype(np.uint16).view(np.float16))


@computes(r"cvt\.rn\.f16x2\.(e4m3|e5m2)x2")
def widened_pair(kind: str, source: Lanes) -> Lanes:
  low, high = source.astype(np.uint16).view(QUARTERS[kind]).reshape(-1, 2).T.astype(np.float16)
  return written_pair(low, high)
