"""Steps counted by a walk that lacks something it knows, so that it meets the unknown; for processes that compile."""

import re

from jaxmoe.xla import declared, opcodes
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


def _undeclared(*arguments):
  declared._DECLARATION = re.compile("(?!)")
  return compile_step(*arguments)
