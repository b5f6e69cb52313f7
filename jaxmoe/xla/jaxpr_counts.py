"""Matmuls and collectives of the program as jax traced it, before any compiler sees it.

A third count beside the formulas and the compiled module: where those two part, it says on which side. It reads the
jaxpr and shares with the walk over HLO only what scopes declare. Shapes inside `shard_map` are one device's.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.interpreters import partial_eval

from jaxmoe.xla import declarations, scopes
from jaxmoe.xla import jaxpr_equations as equations
from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.declared import NOTHING, Declared
from jaxmoe.xla.matmuls import Matmul
from jaxmoe.xla.one_for_one import Served
from jaxmoe.xla.unknown import UnknownOperation, UnknownTripCount

# Their inner program runs once, whole.
_CALLS = frozenset(
  {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
    "custom_vmap_call", "eval_jaxpr",
  }
)  # fmt: skip
# Their inner program is a function of scalars.
_OF_SCALARS = frozenset(
  {
    "reduce", "reduce_window", "select_and_scatter", "sort", "scatter", "scatter-add", "scatter_add", "scatter_sub",
    "scatter-sub", "scatter_mul", "scatter-mul", "scatter_min", "scatter-min", "scatter_max", "scatter-max",
  }
)  # fmt: skip
# Not looked into: a scope around them, or their own estimate, says their work.
_KERNELS = frozenset({"pallas_call", "core_map", "mpmd_map", "ffi_call"})
# Work without a rule.
_UNKNOWN = frozenset({"conv_general_dilated", "triangular_solve", "cholesky", "lu", "qr", "eigh", "eig", "svd"})


@dataclasses.dataclass(frozen=True, slots=True)
class Traced:
  """What one device executes, in program order; a collective within one device is left out."""

  matmuls: list[Matmul]
  collectives: list[Collective]

  @property
  def flops(self) -> float:
    return sum(matmul.total for matmul in self.matmuls)

  def by_part(self, parts: Sequence[str]) -> dict[str, float]:
    """FLOPs within each scope of `parts`, and of the other matmuls."""
    found = dict.fromkeys((*parts, scopes.OTHER), 0.0)
    for matmul in self.matmuls:
      found[scopes.part(matmul.op_name, parts)] += matmul.total
    return found


def count(jaxpr: Any, declared: Declared = NOTHING, *, devices: int = 1) -> Traced:
  """Counts of a traced program, `jitted.trace(...).jaxpr`, that runs on `devices`; without what no result needs.

  A scan counts by its length, a `while` by the trips that its scope declares (`jaxmoe.xla.declared`); of a conditional
  without declared shares the branch with the most work counts, as in `walk`.

  Raises:
    UnknownOperation: work that cannot be counted: a call, kernel or collective without a rule, or a matmul outside
      `shard_map`, which the compiler divides as it likes.
    UnknownTripCount: a `while` that does work without a declared number of trips.
    WrongDeclaration: a scope that declares what cannot be, or declares it for several loops or kernels.
  """
  program = _opened(jaxpr)
  needed, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
  found = list(_Walker(declared, devices).program(needed, _Place()))
  return Traced(
    [one for one in found if isinstance(one, Matmul)], [one for one in found if isinstance(one, Collective)]
  )


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
  """Where equations stand.

  Attributes:
    count: executions by one device.
    names: of the scopes and calls around, with the parts of loops and branches, as HLO spells them.
    entered: jax's own objects for scopes and transforms around, each with the execution of a program that it is from.
    mesh: sizes of its axes inside `shard_map`, else None.
    bound: under a conditional whose shares nobody declares.
  """

  count: float = 1.0
  names: str = ""
  entered: tuple[tuple[Any, object], ...] = ()
  mesh: Mapping[str, int] | None = None
  bound: bool = False

  @property
  def scope(self) -> str:
    """The innermost."""
    return scopes.innermost(f"{self.names}/")

  def times(self, number: float) -> "_Place":
    return dataclasses.replace(self, count=self.count * number)

  def inside(self, part: str) -> "_Place":
    """Of a loop or a branch."""
    return dataclasses.replace(self, names=f"{self.names}/{part}")

  def at(self, eqn: Any, execution: object) -> "_Place":
    """Of one equation; its names are relative to the program that it stands in."""
    stack = eqn.source_info.name_stack
    entered = (*self.entered, *((one, execution) for one in stack.stack))
    return dataclasses.replace(self, names=scopes.join(self.names, str(stack)), entered=entered)


type _Found = Iterator[Matmul | Collective]


class _Walker:
  """Goes through a program and all that it calls."""

  def __init__(self, declared: Declared, devices: int):
    self._declared, self._devices = declared, devices
    self._served = Served()

  def program(self, jaxpr: Any, place: _Place) -> _Found:
    execution = object()
    for eqn in _opened(jaxpr).eqns:
      yield from self._equation(eqn, place.at(eqn, execution))

  def _equation(self, eqn: Any, place: _Place) -> _Found:
    name = eqn.primitive.name
    if name in equations.MATMULS or name in _KERNELS:
      yield self._matmul(eqn, place)
    elif name in equations.COLLECTIVES:
      found = _collective(eqn, place)
      yield from [found] if found.axes else []
    elif name in _UNKNOWN or (name not in equations.FREE and equations.axes_named(eqn)):
      raise _unknown(eqn, place)
    elif name not in _OF_SCALARS and (inner := _inner(eqn)):
      yield from self._inside(eqn, inner, place)

  def _inside(self, eqn: Any, inner: list[Any], place: _Place) -> _Found:
    """What a call, a loop or a conditional executes."""
    match eqn.primitive.name:
      case "shard_map":
        yield from self.program(inner[0], dataclasses.replace(place, mesh=dict(eqn.params["mesh"].shape)))
      case "scan":
        yield from self.program(inner[0], place.times(eqn.params["length"]).inside("while/body"))
      case "while":
        yield from self._while(eqn, place)
      case "cond":
        yield from self._branches(inner, place)
      case name if name in _CALLS:
        yield from self.program(inner[0], place)
      case _:
        raise _unknown(eqn, place)

  def _while(self, eqn: Any, place: _Place) -> _Found:
    """Its condition runs once more than its body."""
    op_name, where = f"{place.names}/while", lambda: _where(eqn, place)
    trips = self._declared.trip_counts.get(scopes.innermost_own(op_name))
    if trips is None:
      trips = self._declared.of_loop(op_name, where)
      self._served.by(declarations.of_loop(op_name), eqn, op_name, place.entered, where)
    for part, more in (("cond", 1), ("body", 0)):
      around = place.times((trips or 0) + more).inside(f"while/{part}")
      for one in self.program(eqn.params[f"{part}_jaxpr"], around):
        if trips is None:
          raise UnknownTripCount(declarations.undeclared_loop(op_name, where()))
        yield one

  def _branches(self, branches: list[Any], place: _Place) -> _Found:
    """Each by its declared share; else the matmuls, and the collectives, of the branch that has most of them."""
    shares = self._declared.branch_shares.get(place.scope)
    if shares is not None:
      for i, (branch, share) in enumerate(zip(branches, shares, strict=True)):
        yield from self.program(branch, place.times(share).inside(f"cond/branch_{i}_fun"))
      return
    bound = dataclasses.replace(place, bound=True)
    done = [list(self.program(branch, bound.inside(f"cond/branch_{i}_fun"))) for i, branch in enumerate(branches)]
    yield from max(([x for x in one if isinstance(x, Matmul)] for one in done), key=_flops)
    yield from max(([x for x in one if isinstance(x, Collective)] for one in done), key=_bytes)

  def _matmul(self, eqn: Any, place: _Place) -> Matmul:
    name = eqn.primitive.name
    if place.mesh is None and self._devices > 1:
      raise UnknownOperation(f"jax's {name} stands outside shard_map, where no device's share of it is known")
    flops = None if name == "dot_general" else self._declared_flops(eqn, place)
    if flops is None:
      flops = equations.MATMULS[name](eqn) if name in equations.MATMULS else equations.estimated_flops(eqn)
    if flops is None:
      raise _unknown(eqn, place)
    return Matmul(name=name, op_name=f"{place.names}/{name}", flops=flops, count=place.count)

  def _declared_flops(self, eqn: Any, place: _Place) -> float | None:
    """Of the scope that declares a kernel's work."""
    op_name, where = f"{place.names}/{eqn.primitive.name}", lambda: _where(eqn, place)
    scope = declarations.of_kernel(op_name)
    flops = self._declared.of_kernel(scope, where)
    self._served.by(scope, eqn, op_name, place.entered, where)
    return flops


def _collective(eqn: Any, place: _Place) -> Collective:
  assert place.mesh is not None, "jax has no collectives outside shard_map"
  payload_bytes, elements, dtype = equations.payload(eqn)
  return Collective(
    name=eqn.primitive.name,
    kind=equations.COLLECTIVES[eqn.primitive.name],
    axes=equations.axes_crossed(eqn, place.mesh),
    group_size=equations.group_size(eqn, place.mesh),
    payload_bytes=payload_bytes,
    elements=elements,
    dtype=dtype,
    count=place.count,
    op_name=f"{place.names}/{eqn.primitive.name}",
    bound=place.bound,
  )


def _flops(matmuls: list[Matmul]) -> float:
  return sum(matmul.total for matmul in matmuls)


def _bytes(collectives: list[Collective]) -> float:
  return sum(one.payload_bytes * one.count for one in collectives)


def _unknown(eqn: Any, place: _Place) -> UnknownOperation:
  remedy = (
    f"declares no work; declare it in a jax.named_scope around it, {declarations.KERNEL_FORM}"
    if eqn.primitive.name in _KERNELS
    else "has no rule in jaxpr_counts.py"
  )
  return UnknownOperation(f"{_where(eqn, place)} {remedy}")


def _where(eqn: Any, place: _Place) -> str:
  """An equation's name, what is around it, and its line."""
  around = filter(None, (place.names.strip("/") or "no scope", equations.line(eqn)))
  return f"jax's {eqn.primitive.name} (in {', '.join(around)})"


def _inner(eqn: Any) -> list[Any]:
  """Programs among an equation's parameters."""
  values = (part for value in eqn.params.values() for part in (value if isinstance(value, (tuple, list)) else (value,)))
  return [value for value in values if _opened(value) is not None]


def _opened(program: Any) -> Any:
  """A program, which some versions of jax keep beside its constants; None of what is none."""
  inner = getattr(program, "jaxpr", program)
  return inner if hasattr(inner, "eqns") else None
