"""That a scope which declares the work of one loop or kernel has only one in it, in the program as jax traced it.

A compiler copies loops and kernels, and a function called twice writes the same name twice, so names in a module say
nothing. jax makes a new object whenever a scope is entered, and what it makes of an equation, such as a gradient or a
recomputation, keeps that object and has another name. Where differentiation makes two of one equation under one name,
they come from one line.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxmoe.xla import jaxpr_equations as equations
from jaxmoe.xla.declarations import KERNEL, LOOP
from jaxmoe.xla.unknown import WrongDeclaration

Entered = Sequence[tuple[Any, object]]  # jax's object for a scope, and the execution of a program that entered it

_DIFFERENTIATION = frozenset({"jvp", "transpose"})


class _First(NamedTuple):
  scope: Any
  execution: object
  line: str
  place: Callable[[], str]


class Served:
  """Which loop or kernel each scope that was entered declares."""

  def __init__(self):
    self._found: dict[tuple[int, int, str], _First] = {}

  def by(self, scope: str, eqn: Any, op_name: str, entered: Entered, place: Callable[[], str]) -> None:
    """Notes that the innermost of `entered` that is called `scope` declares an operation; raises if it had another."""
    around = [one for one in entered if scope in one[0].name.split("/")]
    if not scope.startswith((LOOP, KERNEL)) or not around:
      return
    this = _First(*around[-1], equations.line(eqn), place)
    first = self._found.setdefault((id(this.scope), id(this.execution), op_name), this)  # keeps what has these ids
    derived = first.line == this.line and any(
      one.name in _DIFFERENTIATION for one, execution in entered if execution is this.execution
    )
    if first is not this and not derived:
      raise WrongDeclaration(
        f"scope {scope} declares the work of one loop or kernel, and two stand in it: {first.place()}, and {place()};"
        " put each into a jax.named_scope of its own"
      )
