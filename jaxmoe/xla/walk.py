"""Visit every instruction of a module with the number of times that one device executes it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator

from jaxmoe.xla import equal_kernels, opcodes, scopes
from jaxmoe.xla.declarations import KERNEL_FORM, undeclared_loop
from jaxmoe.xla.declared import AT_MOST, NOTHING, Declared, custom_call_flops
from jaxmoe.xla.hlo import Instruction, Module, without_collector
from jaxmoe.xla.loops import Frame, Site, trip_count
from jaxmoe.xla.unknown import UnknownOperation, UnknownTripCount


@dataclasses.dataclass(slots=True, eq=False)  # not frozen, for speed, as `Instruction`
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

  @property
  def fused(self) -> bool:
    """Inside a fusion: its operands and results need not pass through memory."""
    return self.frame.site is not None and opcodes.base(self.frame.site.instruction.opcode) == "fusion"


Weight = Callable[[Visit], float]


def walk(module: Module, declared: Declared = NOTHING, *, weight: Weight | None = None) -> Iterable[Visit]:
  """Visits in program order: entry once, loop bodies times their trip count, calls and fusions entered.

  Of a conditional with undeclared shares only the branch with the most `weight` is visited, and marked
  `bound`; without a `weight`, every branch. The scalar functions inside reduce, scatter, sort and the like
  are not entered.

  Raises:
    UnknownOperation: an opcode or custom call that no table lists.
    UnknownTripCount: a loop whose iterations are neither derivable nor declared.
    WrongDeclaration: a scope that declares what cannot be.
  """
  same = declared is AT_MOST and not module.declares
  return _chosen(_steps(module, NOTHING if same else declared), weight)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Choice:
  """A conditional with undeclared shares: what each branch would visit."""

  branches: "list[list[_Step]]"


_Step = Visit | _Choice


@functools.lru_cache(maxsize=4)  # every count of a module is made from one walk over it
def _steps(module: Module, declared: Declared) -> list[_Step]:
  with without_collector():
    walker = _Walker(module, declared)
    walker.enter(Frame(module.entry), 1.0, "", False)
  return walker.steps


def _chosen(steps: Iterable[_Step], weight: Weight | None) -> Iterator[Visit]:
  for step in steps:
    if isinstance(step, Visit):
      yield step
    elif weight is None:
      for branch in step.branches:
        yield from _chosen(branch, weight)
    else:
      branches = [list(_chosen(branch, weight)) for branch in step.branches]
      yield from max(branches, key=lambda branch: sum(map(weight, branch)))


class _Walker:
  def __init__(self, module: Module, declared: Declared):
    self._module, self._declared = module, declared
    self.steps: list[_Step] = []

  def enter(self, frame: Frame, count: float, outer: str, bound: bool) -> None:
    for instruction in frame.computation.instructions:
      opcode = opcodes.base(instruction.opcode)
      if opcode not in opcodes.KNOWN or opcode == "custom-call":
        self._require_known(instruction, frame)
      visit = Visit(instruction, frame, count, scopes.join(outer, instruction.op_name), bound)
      self.steps.append(visit)
      if opcode in opcodes.CALLS and opcodes.executes(instruction.opcode):
        self._inside(visit, opcode, outer)

  def _inside(self, visit: Visit, opcode: str, outer: str) -> None:
    called = visit.instruction.called
    if opcode == "while":
      trips = self._trips(visit)
      self._enter(visit, called["condition"], trips + 1, outer)
      self._enter(visit, called["body"], trips, outer)
    elif opcode == "conditional":
      self._branches(visit, outer)
    elif opcode == "call":
      self._enter(visit, called["to_apply"], 1, visit.op_name)
    elif opcode == "scan":  # one slice after the other; a cumulative sum on NVIDIA starts as one
      length = visit.instruction.operands[0].shape.dims[visit.instruction.dims("dimensions")[0]]
      self._enter(visit, called["to_apply"], length, visit.op_name)
    else:
      assert opcode in ("fusion", "async"), opcode
      self._enter(visit, called["calls"], 1, outer)

  def _enter(self, visit: Visit, name: str, times: float, outer: str, *, bound: bool = False) -> None:
    frame = Frame(self._module.computations[name], Site(visit.instruction, visit.frame))
    self.enter(frame, visit.count * times, outer, visit.bound or bound)

  def _trips(self, visit: Visit) -> float:
    """What the caller declares, what the program says, or what the loop's own scope declares; in this order."""
    given = self._declared.trip_counts.get(scopes.innermost_own(visit.op_name))
    trips = trip_count(self._module, visit.instruction, visit.frame) if given is None else given
    if trips is None:
      trips = self._declared.of_loop(visit.op_name, lambda: visit.frame.place(self._module, visit.instruction))
    if trips is None:
      where = visit.frame.place(self._module, visit.instruction)
      raise UnknownTripCount(undeclared_loop(visit.op_name, where))
    return trips

  def _branches(self, visit: Visit, outer: str) -> None:
    names, scope = visit.instruction.branches, scopes.innermost(visit.op_name)
    shares = self._declared.branch_shares.get(scope)
    if shares is None:
      self.steps.append(_Choice([self._branch(visit, name, outer) for name in names]))
      return
    if len(shares) != len(names) or min(shares) < 0 or not math.isclose(sum(shares), 1):
      raise ValueError(
        f"branch_shares[{scope!r}] must be {len(names)} shares of at least 0 that sum to 1, got {shares}"
      )
    for name, share in zip(names, shares, strict=True):
      self._enter(visit, name, share, outer)

  def _branch(self, visit: Visit, name: str, outer: str) -> "list[_Step]":
    """What one branch visits, apart."""
    around, self.steps = self.steps, []
    self._enter(visit, name, 1, outer, bound=True)
    branch, self.steps = self.steps, around
    return branch

  def _require_known(self, x: Instruction, frame: Frame) -> None:
    opcode = opcodes.base(x.opcode)
    if opcode in ("send", "recv") and opcodes.BETWEEN_SLICES.search(x.attributes):
      return
    if opcode not in opcodes.KNOWN:
      where = frame.place(self._module, x)
      raise UnknownOperation(f"operation {x.opcode} ({where}) is in no table of jaxmoe/xla/opcodes.py; add it there")
    if opcodes.executes(x.opcode):
      target = x.text("custom_call_target")
      if not opcodes.is_listed(target) and custom_call_flops(self._module, x, self._declared) is None:
        raise UnknownOperation(self._undeclared(target, x, frame))

  def _undeclared(self, target: str, x: Instruction, frame: Frame) -> str:
    different = equal_kernels.scopes_of_equals(self._module, x)
    return (
      f"custom call {target!r} ({frame.place(self._module, x)}) declares no work"
      + (f", and kernels equal to it declare differing work ({', '.join(sorted(different))})" if different else "")
      + f"; declare it in a jax.named_scope around it, {KERNEL_FORM}, or its matmul FLOPs with"
      " Declared(custom_call_flops=...), 0 if it does none"
    )
