"""Values of a register in the 128 threads of a warpgroup, as 64-bit patterns, and a table of what computes them."""

import functools
import re
from collections.abc import Callable

import numpy as np

COUNT = 128  # threads of a warpgroup, in four warps of 32
LANE = np.arange(COUNT)

Lanes = np.ndarray
COMPUTED: dict[str, Callable[..., Lanes]] = {}


@functools.cache
def everywhere(number: int) -> Lanes:
  lanes = np.full(COUNT, number & (2**64 - 1), np.uint64)
  lanes.setflags(write=False)
  return lanes


def uniform(lanes: Lanes) -> int | None:
  """The value of all threads, if they have the same."""
  return int(lanes[0]) if (lanes == lanes[0]).all() else None


def number(lanes: Lanes, kind: str) -> Lanes:
  """Patterns as integers of 64 bits: the low bits that the kind has, with their sign if it has one."""
  bits = int(kind[1:])
  if kind[0] != "s":
    return lanes & np.uint64(2**bits - 1)
  shift = np.int64(64 - bits)
  return lanes.view(np.int64) << shift >> shift


def pattern(integers: Lanes, bits: int) -> Lanes:
  return integers.view(np.uint64) & np.uint64(2**bits - 1)


def computes(opcodes: str):
  """Registers a function of an opcode's variable parts and its sources."""

  def register(function):
    COMPUTED[opcodes] = function
    return function

  return register


@functools.cache
def computation(opcode: str) -> Callable[..., Lanes] | None:
  """What an opcode computes of its sources; None if it is no such opcode."""
  for opcodes, function in COMPUTED.items():
    if found := re.fullmatch(opcodes, opcode):
      return functools.partial(function, *found.groups())
  return None
