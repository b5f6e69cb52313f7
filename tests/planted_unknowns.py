"""Steps counted by a walk that lacks something it knows, so that it meets the unknown; for processes that compile."""

import re

import jax
from jax import lax

from jaxmoe.kernels import tiling
from jaxmoe.xla import declarations, opcodes
from jaxmoe.xla.compiled import compile_step


def operation(*arguments):
  opcodes.KNOWN = opcodes.KNOWN - {"exponential"}
  return compile_step(*arguments)


def custom_call(*arguments):
  opcodes.OTHER_CUSTOM_CALLS = opcodes.OTHER_CUSTOM_CALLS - {"TopK"}
  return compile_step(*arguments)


def loop(*arguments):
  return _undeclared(*arguments)


def kernel(*arguments):
  return _undeclared(*arguments)


def two_loops(*arguments):
  tiling._declared_loop = _two_loops
  return compile_step(*arguments)


def _two_loops(trips, count, body, init):
  with jax.named_scope(f"loop[expected={trips.expected:g},max={trips.most:g}]"):
    return lax.fori_loop(0, count, body, lax.fori_loop(0, 0 * count, body, init))


def _undeclared(*arguments):
  declarations._DECLARATION = re.compile("(?!)")
  return compile_step(*arguments)
