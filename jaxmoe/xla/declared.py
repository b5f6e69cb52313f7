"""What a program does not say about itself, and someone declares: trips of loops, shares of branches, kernels' work."""

import dataclasses
import re
from collections.abc import Mapping

from jaxmoe.xla import opcodes, scopes
from jaxmoe.xla.equal_kernels import kernel_scope
from jaxmoe.xla.hlo import Instruction, Module

_NUMBER = r"[\d.e+-]+"
_DECLARATION = re.compile(
  rf"(?P<what>loop|kernel)\[expected=(?P<expected>{_NUMBER}),max=(?P<max>{_NUMBER})(?:,bytes=(?P<bytes>{_NUMBER}))?\]"
)


# Compared by identity, because walks over one module with one of these are kept.
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Declared:
  """By the innermost `jax.named_scope` around the operation.

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

  def scope_says(self, what: str, scope: str) -> float | None:
    """Trips that a scope `loop[..]` declares, or FLOPs that a `kernel[..]` does; `None` if it is no such scope."""
    said = _DECLARATION.fullmatch(scope)
    return float(said["max" if self.at_most else "expected"]) if said and said["what"] == what else None


NOTHING = Declared()
AT_MOST = Declared(at_most=True)


def custom_call_flops(module: Module, instruction: Instruction, declared: Declared) -> float | None:
  """Declared matmul FLOPs of one execution, `None` if there are none declared."""
  for name in (instruction.text("custom_call_target"), scopes.innermost(instruction.op_name)):
    if name in declared.custom_call_flops:
      return declared.custom_call_flops[name]
  if instruction.op_name in opcodes.HELPER_KERNELS or opcodes.OFFLOADED.search(instruction.attributes):
    return 0.0
  return declared.scope_says("kernel", kernel_scope(module, instruction))


def kernel_bytes(module: Module, instruction: Instruction) -> float | None:
  """Bytes that the innermost scope `kernel[..,bytes=..]` expects one execution to read and write; `None` without."""
  said = _DECLARATION.fullmatch(kernel_scope(module, instruction))
  return float(said["bytes"]) if said and said["bytes"] is not None else None
