"""Scopes that declare the work of one loop or kernel: what they say, and whether it can be.

A scope `loop[..]` or `kernel[..]` serves the one operation that stands directly in it. What is inside that loop, or
inside a branch, is another operation and needs its own.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxmoe.xla import scopes
from jaxmoe.xla.unknown import WrongDeclaration

LOOP, KERNEL = "loop[", "kernel["  # such scopes begin so
LOOP_FORM, KERNEL_FORM = f"{LOOP}expected=..,max=..]", f"{KERNEL}expected=..,max=..,bytes=..]"

_ROUNDING = 1e-5  # programs write six digits
_DECLARATION = re.compile(r"(loop|kernel)\[")
_TWO = r"expected=(?P<expected>[^,]*),max=(?P<max>[^,]*)"
_FORMS = {
  LOOP: re.compile(rf"loop\[{_TWO}\]"),
  KERNEL: re.compile(rf"kernel\[{_TWO}(?:,bytes=(?P<bytes>[^,]*))?\]"),
}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?")

Place = Callable[[], str]


class Work(NamedTuple):
  """Trips of a loop, or FLOPs and bytes of a kernel."""

  expected: float
  most: float
  bytes: float | None = None


def of_kernel(op_name: str) -> str:
  """The scope that declares a kernel's work, which the kernel's own name may stand behind; empty if there is none."""
  declared = (scope for scope in reversed(scopes.own(op_name)) if scope.startswith((KERNEL, LOOP)))
  scope = next(declared, "")
  return scope if scope.startswith(KERNEL) else ""


def of_loop(op_name: str) -> str:
  """The innermost scope that is a loop's own; empty of another operation, which the compiler may make a loop of."""
  return scopes.innermost_own(op_name) if op_name.rpartition("/")[2] == "while" else ""


def kernel_work(scope: str, place: Place) -> Work | None:
  """What a kernel's scope declares; raises `WrongDeclaration` if that cannot be."""
  work = _work(KERNEL, scope, place)
  if work:
    _require_order(work, scope, place)
  return work


def loop_work(op_name: str, place: Place) -> Work | None:
  """What a loop's scope declares; raises `WrongDeclaration` if that cannot be.

  Trips are a mean over the loop around, so of loops in loops, how often they run together has to be in order.
  """
  scope = of_loop(op_name)
  work = _work(LOOP, scope, place)
  if work:
    read = (_read(LOOP, scope) for scope in scopes.path(op_name))
    declared = [one for one in read if isinstance(one, Work)]
    together = Work(math.prod(one.expected for one in declared), math.prod(one.most for one in declared))
    _require_order(together, scope, place)
  return work


def undeclared_loop(op_name: str, place: str) -> str:
  """What is said of a loop that nothing says the trips of."""
  others = [scope for scope in scopes.path(op_name) if scope.startswith(LOOP)]
  beside = f"; {others[-1]} does not stand directly around it, so it declares another" if others else ""
  return (
    f"cannot derive how often a loop runs ({place}); declare it in a jax.named_scope around it, {LOOP_FORM}, or with"
    f" Declared(trip_counts=...) under the name of that scope{beside}"
  )


def _require_order(work: Work, scope: str, place: Place) -> None:
  if work.expected > work.most * (1 + _ROUNDING):
    raise _wrong(scope, "expects more than the maximum", place)


def _work(what: str, scope: str, place: Place) -> Work | None:
  read = _read(what, scope)
  if isinstance(read, str):
    raise _wrong(scope, read, place)
  return read


def _wrong(scope: str, why: str, place: Place) -> WrongDeclaration:
  return WrongDeclaration(
    f"scope {scope} {why} ({place()}); a declaration is {LOOP_FORM} or {KERNEL_FORM}, finite numbers of at least 0, the"
    " expected one no more than the maximum"
  )


@functools.lru_cache
def _read(what: str, scope: str) -> Work | str | None:
  """What a scope declares of a loop or a kernel, or why that cannot be; `None` if it is no declaration of one."""
  if not _DECLARATION.match(scope) or not scope.startswith(what):
    return None
  said = _FORMS[what].fullmatch(scope)
  if not said:
    return "is no declaration that can be read"
  numbers = {field: _number(text) for field, text in said.groupdict().items() if text is not None}
  wrong = [field for field, number in numbers.items() if not 0 <= number < math.inf]
  if wrong:
    return f"declares {' and '.join(f'{field}={said[field]}' for field in wrong)}"
  return Work(numbers["expected"], numbers["max"], numbers.get("bytes"))


def _number(text: str) -> float:
  return float(text) if _NUMBER.fullmatch(text) else math.nan
