"""Instructions on integers and predicates."""

import operator

import numpy as np

from ptx.lanes import LANE, Lanes, computes, number, pattern, uniform
from ptx.objection import Unmodelled


@computes(r"(add|sub|min|max|and|or|xor)\.([sub]\d+)")
def integer_pair(name: str, kind: str, left: Lanes, right: Lanes) -> Lanes:
  functions = {"add": operator.add, "sub": operator.sub, "min": np.minimum, "max": np.maximum}
  function = functions.get(name) or getattr(np, f"bitwise_{name}")
  return pattern(function(number(left, kind), number(right, kind)), int(kind[1:]))


@computes(r"neg\.(s32)")
def negative(kind: str, source: Lanes) -> Lanes:
  return pattern(-number(source, kind), 32)


@computes(r"mul\.(lo|hi|wide)\.([su](?:16|32))")
def product(part: str, kind: str, left: Lanes, right: Lanes) -> Lanes:
  whole, bits = number(left, kind) * number(right, kind), int(kind[1:])
  return pattern(whole >> whole.dtype.type(bits) if part == "hi" else whole, 2 * bits if part == "wide" else bits)


@computes(r"mad\.lo\.([su]32)")
def product_and_sum(kind: str, left: Lanes, right: Lanes, summand: Lanes) -> Lanes:
  return pattern(number(left, kind) * number(right, kind) + number(summand, kind), 32)


@computes(r"(div|rem)\.(s32)")
def division(name: str, kind: str, left: Lanes, right: Lanes) -> Lanes:
  """Rounded to zero; the remainder has the sign of what was divided."""
  left, right = number(left, kind), number(right, kind)
  if not right.all():
    raise Unmodelled("division by zero, whose result is unspecified")
  quotient = np.abs(left) // np.abs(right) * np.sign(left) * np.sign(right)
  return pattern(quotient if name == "div" else left - quotient * right, 32)


@computes(r"shl\.b(32|64)")
def shifted_left(bits: str, source: Lanes, count: Lanes) -> Lanes:
  count = number(count, "u32")
  return pattern(np.where(count < int(bits), source << (count & np.uint64(63)), np.uint64(0)), int(bits))


@computes(r"shr\.([su](?:16|32|64))")
def shifted_right(kind: str, source: Lanes, count: Lanes) -> Lanes:
  source, bits = number(source, kind), int(kind[1:])
  count = number(count, "u32").astype(source.dtype)
  if kind[0] == "s":
    return pattern(source >> np.minimum(count, bits - 1), bits)
  return np.where(count < bits, source >> (count & count.dtype.type(63)), source.dtype.type(0))


@computes(r"setp\.(eq|ne|lt|le|gt|ge)(?:\.(and|or))?\.([sub]32)")
def comparison(name: str, joined: str | None, kind: str, left: Lanes, right: Lanes, *other: Lanes) -> Lanes:
  result = getattr(operator, name)(number(left, kind), number(right, kind))
  return getattr(np, f"logical_{joined}")(result, *other) if joined else result


@computes(r"selp\.(?:b16|b32|f32)")
def selection(first: Lanes, second: Lanes, condition: Lanes) -> Lanes:
  return np.where(condition, first, second)


@computes(r"not\.pred")
def negation(source: Lanes) -> Lanes:
  return ~source


@computes(r"mov\.pred")
def predicate(source: Lanes) -> Lanes:
  return source.astype(bool)


@computes(r"mov\.(?:u32|b64)|cvta\.(?:to\.global|param)\.u64|cvt\.(?:u64\.u32|u32\.u16)")
def unchanged(source: Lanes) -> Lanes:
  return source


@computes(r"cvt\.u(?:32\.u64|(16)\.u32)")
def low_half(bits: str | None, source: Lanes) -> Lanes:
  return pattern(source, int(bits or 32))


@computes(r"cvt\.s64\.s32")
def extended(source: Lanes) -> Lanes:
  return pattern(number(source, "s32"), 64)


@computes(r"shfl\.sync\.idx\.b32")
def of_first_in_warp(source: Lanes, lane: Lanes, bound: Lanes, mask: Lanes) -> Lanes:
  if (uniform(lane), uniform(bound), uniform(mask)) != (0, 31, 2**64 - 1):
    raise Unmodelled("a shuffle from another lane than the first, or among fewer than 32")
  return source[LANE // 32 * 32]
