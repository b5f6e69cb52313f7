"""Kernels that lost their name in the compiler, and with it the scope that declares their work: what equal ones say.

A compiler that replaces a kernel by another spelling of it may forget where it came from. Two kernels are equal if all
but their metadata is: target, operands' and results' shapes, layouts and configuration, in which the code of a kernel
stands. They then do the same work on the same operands, and how many of the rows are expected, which a program may say
of each, has to be the same wherever it is said.
"""

import functools
import re
from collections.abc import Hashable, Mapping

from jaxmoe.xla import declarations, scopes
from jaxmoe.xla.hlo import Instruction, Module

_METADATA = re.compile(r'\bmetadata=\{(?:"[^"]*"|[^}"])*\}')


def kernel_scope(module: Module, x: Instruction) -> str:
  """The scope that declares the work of `x`, or the only one that declares its equals'; empty if none does."""
  declared = own_scope(x)
  if declared:
    return declared
  found = scopes_of_equals(module, x)
  return next(iter(found)) if len(found) == 1 else ""


def own_scope(x: Instruction) -> str:
  """The scope that declares the work of `x`; empty if none does."""
  return declarations.of_kernel(x.op_name)


def scopes_of_equals(module: Module, x: Instruction) -> frozenset[str]:
  """What kernels equal to one without any scope declare; nothing for other operations."""
  if x.opcode != "custom-call" or scopes.path(x.op_name):
    return frozenset()
  return _declared(module).get(_likeness(x), frozenset())


@functools.lru_cache(maxsize=4)  # as walks over a module
def _declared(module: Module) -> Mapping[Hashable, frozenset[str]]:
  found: dict[Hashable, frozenset[str]] = {}
  for computation in module.computations.values():
    for x in computation.instructions:
      if x.opcode == "custom-call" and (scope := own_scope(x)):
        key = _likeness(x)
        found[key] = found.get(key, frozenset()) | {scope}
  return found


def _likeness(x: Instruction) -> Hashable:
  """Equal for equal kernels."""
  return x.shapes, tuple(operand.shapes for operand in x.operands), _METADATA.sub("", x.attributes)
