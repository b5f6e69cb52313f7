"""What a program does not say about itself, and someone declares: trips of loops, shares of branches, kernels' work."""

import dataclasses
from collections.abc import Mapping

from jaxmoe.xla import opcodes, scopes
from jaxmoe.xla.declarations import Place, Work, kernel_work, loop_work
from jaxmoe.xla.equal_kernels import kernel_scope
from jaxmoe.xla.hlo import Instruction, Module
from jaxmoe.xla.loops import Frame


# Compared by identity, because walks over one module with one of these are kept.
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Declared:
  """By the innermost `jax.named_scope` around the operation, and of a loop or kernel around no other.

  Attributes:
    branch_shares: scope of a conditional -> share of its executions that takes each branch, together 1.
    trip_counts: scope of a loop -> how often its body runs.
    custom_call_flops: target or scope of a custom call -> matmul FLOPs of one execution, 0 if it does none.
    at_most: count a loop in a scope `loop[expected=..,max=..]`, whose end only the data decides, as often as it may
      run, and a kernel in a scope `kernel[expected=..,max=..,bytes=..]` at its most FLOPs; else as expected.
  """

  branch_shares: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  trip_counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
  custom_call_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
  at_most: bool = False

  def of_loop(self, op_name: str, place: Place) -> float | None:
    """Trips that the scope of the loop with this name declares; `None` if it declares none."""
    return self._one(loop_work(op_name, place))

  def of_kernel(self, scope: str, place: Place) -> float | None:
    """FLOPs that a kernel's scope declares; `None` if it declares none."""
    return self._one(kernel_work(scope, place))

  def _one(self, work: Work | None) -> float | None:
    return work and (work.most if self.at_most else work.expected)


NOTHING = Declared()
AT_MOST = Declared(at_most=True)


def custom_call_flops(module: Module, instruction: Instruction, declared: Declared) -> float | None:
  """Declared matmul FLOPs of one execution, `None` if there are none declared."""
  target = instruction.text("custom_call_target")
  for name in (target, scopes.innermost_own(instruction.op_name)):
    if name in declared.custom_call_flops:
      return declared.custom_call_flops[name]
  if instruction.op_name in opcodes.HELPER_KERNELS or opcodes.OFFLOADED.search(instruction.attributes):
    return 0.0
  return declared.of_kernel(_scope(module, instruction), _place(module, instruction))


def kernel_bytes(module: Module, instruction: Instruction) -> float | None:
  """Bytes that its scope `kernel[..,bytes=..]` expects one execution to read and write; `None` without."""
  work = kernel_work(_scope(module, instruction), _place(module, instruction))
  return work and work.bytes


def _scope(module: Module, x: Instruction) -> str:
  """The kernel's; listed calls, which the compiler may put beside a kernel into its scope, count by what they are."""
  return "" if opcodes.is_listed(x.text("custom_call_target")) else kernel_scope(module, x)


def _place(module: Module, x: Instruction) -> Place:
  return lambda: Frame(module.entry).place(module, x)
