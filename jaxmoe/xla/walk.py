"""Visit every instruction of a module with the number of times that one device executes it."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping

from jaxmoe.xla import opcodes, scopes
from jaxmoe.xla.hlo import Instruction, Module
from jaxmoe.xla.loops import Frame, Site, trip_count

_DECLARATION = re.compile(r"(?P<what>loop|kernel)\[expected=(?P<expected>[\d.e+-]+),max=(?P<max>[\d.e+-]+)\]")


class UnknownOperation(NotImplementedError):
  """An operation that the walk does not know: it might hide work, so it is never counted as zero."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
  """What the program does not say about itself, by the innermost `jax.named_scope` around the operation.

  Attributes:
    branch_shares: scope of a conditional -> share of its executions that takes each branch, together 1.
    trip_counts: scope of a loop -> how often its body runs.
    custom_call_flops: target or scope of a custom call -> matmul FLOPs of one execution, 0 if it does none.
    at_most: count a loop in a scope `loop[expected=..,max=..]`, whose end only the data decides, as often as it may
      run, and a kernel in a scope `kernel[expected=..,max=..]` at its most FLOPs; else as expected.
  """

  branch_shares: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  trip_counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
  custom_call_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
  at_most: bool = False

  def scope_says(self, what: str, scope: str) -> float | None:
    """Trips that a scope `loop[..]` declares, or FLOPs that a `kernel[..]` does; `None` if it is no such scope."""
    said = _DECLARATION.fullmatch(scope)
    return float(said["max" if self.at_most else "expected"]) if said and said["what"] == what else None


NOTHING = Declared()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Visit:
  """One instruction as called from one place.

  Attributes:
    count: executions by one device in one run of the program.
    op_name: in full, with the scopes of the calls around it.
    bound: true inside a conditional whose shares are not declared: the count is an upper bound.
  """

  instruction: Instruction
  frame: Frame
  count: float
  op_name: str
  bound: bool


Weight = Callable[[Visit], float]


def walk(module: Module, declared: Declared = NOTHING, *, weight: Weight | None = None) -> Iterator[Visit]:
  """Visits in program order: entry once, loop bodies times their trip count, calls and fusions entered.

  Of a conditional with undeclared shares only the branch with the most `weight` is visited, and marked
  `bound`; without a `weight`, every branch. The scalar functions inside reduce, scatter, sort and the like
  are not entered.

  Raises:
    UnknownOperation: an opcode or custom call that no table lists.
    UnknownTripCount: a loop whose iterations are neither derivable nor declared.
  """
  walker = _Walker(module, declared, weight)
  return walker.visits(Frame(module.entry), 1.0, "", False)


class _Walker:
  def __init__(self, module: Module, declared: Declared, weight: Weight | None):
    self._module, self._declared, self._weight = module, declared, weight

  def visits(self, frame: Frame, count: float, outer: str, bound: bool) -> Iterator[Visit]:
    for instruction in frame.computation.instructions:
      self._require_known(instruction)
      visit = Visit(instruction, frame, count, scopes.join(outer, instruction.op_name), bound)
      yield visit
      if opcodes.executes(instruction.opcode):
        yield from self._inside(visit, outer)

  def _inside(self, visit: Visit, outer: str) -> Iterator[Visit]:
    instruction, called = visit.instruction, visit.instruction.called
    opcode = opcodes.base(instruction.opcode)
    if opcode == "while":
      trips = self._trips(visit)
      yield from self._enter(visit, called["condition"], trips + 1, outer)
      yield from self._enter(visit, called["body"], trips, outer)
    elif opcode == "conditional":
      yield from self._branches(visit, outer)
    elif opcode == "call":
      yield from self._enter(visit, called["to_apply"], 1, visit.op_name)
    elif opcode in ("fusion", "async"):
      yield from self._enter(visit, called["calls"], 1, outer)
    else:
      assert opcode not in opcodes.CALLS, instruction.opcode

  def _enter(self, visit: Visit, name: str, times: float, outer: str, *, bound: bool = False) -> Iterator[Visit]:
    frame = Frame(self._module.computations[name], Site(visit.instruction, visit.frame))
    return self.visits(frame, visit.count * times, outer, visit.bound or bound)

  def _trips(self, visit: Visit) -> float:
    """What the caller declares, what the loop's own scope declares, or what the program says; in this order."""
    for declared in (self._declared.trip_counts.get(_scope(visit)), self._declared.scope_says("loop", _scope(visit))):
      if declared is not None:
        return declared
    return trip_count(self._module, visit.instruction, visit.frame)

  def _branches(self, visit: Visit, outer: str) -> Iterator[Visit]:
    names = visit.instruction.branches
    shares = self._declared.branch_shares.get(_scope(visit))
    weight = self._weight
    if shares is None:
      branches = [list(self._enter(visit, name, 1, outer, bound=True)) for name in names]
      if weight is None:
        yield from itertools.chain(*branches)
      else:
        yield from max(branches, key=lambda branch: sum(weight(visit) for visit in branch))
      return
    if len(shares) != len(names) or min(shares) < 0 or not math.isclose(sum(shares), 1):
      raise ValueError(
        f"branch_shares[{_scope(visit)!r}] must be {len(names)} shares of at least 0 that sum to 1, got {shares}"
      )
    for name, share in zip(names, shares, strict=True):
      yield from self._enter(visit, name, share, outer)

  def _require_known(self, instruction: Instruction) -> None:
    opcode = opcodes.base(instruction.opcode)
    where = f" ({instruction.op_name})" if instruction.op_name else ""
    if opcode not in opcodes.KNOWN:
      raise UnknownOperation(f"operation {instruction.opcode} of {instruction.name}{where} is not in opcodes.py")
    if opcode == "custom-call" and opcodes.executes(instruction.opcode):
      target = instruction.text("custom_call_target")
      listed = opcodes.MATMUL_CUSTOM_CALLS | opcodes.OTHER_CUSTOM_CALLS
      if target not in listed and custom_call_flops(instruction, self._declared) is None:
        raise UnknownOperation(
          f"custom call {target!r} of {instruction.name}{where} is not declared;"
          " give its matmul FLOPs with Declared(custom_call_flops=...), 0 if it does none"
        )


def custom_call_flops(instruction: Instruction, declared: Declared) -> float | None:
  """Declared matmul FLOPs of one execution, `None` if there are none declared."""
  scope = _innermost(instruction.op_name)
  for name in (instruction.text("custom_call_target"), scope):
    if name in declared.custom_call_flops:
      return declared.custom_call_flops[name]
  if instruction.op_name in opcodes.HELPER_KERNELS or opcodes.OFFLOADED.search(instruction.attributes):
    return 0.0
  said = (declared.scope_says("kernel", scope) for scope in reversed(scopes.path(instruction.op_name)))
  return next((flops for flops in said if flops is not None), None)


def _scope(visit: Visit) -> str:
  return _innermost(visit.op_name)


def _innermost(op_name: str) -> str:
  path = scopes.path(op_name)
  return path[-1] if path else ""
