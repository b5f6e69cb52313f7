"""Memory traffic that one device executes: bytes that operations read from and write to its main memory.

What XLA's own cost analysis calls bytes accessed, with two differences: loops count as often as they run, and what lies
in memory on the chip counts as nothing. An operation reads each operand and writes its result, once; a fusion is one
operation. Of an array that is only sliced or gathered from, the slice is read; of one that is updated in place, the
update is written. Caches between main memory and the compute units are not modelled.
"""

import collections
import dataclasses

from jaxmoe.xla import opcodes, scopes
from jaxmoe.xla.buffers import Buffers
from jaxmoe.xla.declared import NOTHING, Declared, kernel_bytes
from jaxmoe.xla.fusion import fusion_reads, fusion_written, stored_bytes
from jaxmoe.xla.hlo import Instruction, Module, Shape, without_collector
from jaxmoe.xla.walk import Visit, walk


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
  """Bytes of one device in one run.

  Attributes:
    by_scope: read and written, by the user scopes around each operation, as `FlopCount.by_scope`.
    of_arguments: number of an argument -> bytes of `read_bytes` that come from it, or from a copy of it that differs in
      layout or dtype only.
    bound: the part of the total in conditionals with undeclared shares, counted at their heaviest branch.
  """

  read_bytes: float
  written_bytes: float
  by_scope: dict[str, float]
  of_arguments: dict[int, float]
  bound: float = 0.0

  @property
  def total(self) -> float:
    return self.read_bytes + self.written_bytes

  def within(self, scope: str) -> float:
    """Bytes of all operations that have `scope` anywhere around them."""
    return scopes.total_within(self.by_scope, scope)


@without_collector()
def memory_traffic(module: Module, declared: Declared = NOTHING) -> Traffic:
  """Sum over the operations that are not inside a fusion.

  Raises:
    UnknownOperation, UnknownTripCount: see `walk`.
  """
  moved, buffers = Moved(module), Buffers(module)
  read = written = bound = 0.0
  by_scope: dict[str, float] = collections.defaultdict(float)
  of_arguments: dict[int, float] = collections.defaultdict(float)
  for visit in walk(module, declared, weight=moved.total):
    reads, writes = moved.once(visit)
    total = visit.count * (sum(reads) + writes)
    if not total:
      continue
    read, written = read + visit.count * sum(reads), written + visit.count * writes
    bound += total * visit.bound
    by_scope[scopes.joined_path(visit.op_name)] += total
    for operand, size in zip(visit.instruction.operands, reads, strict=False):
      argument = buffers.argument(operand, visit.frame) if size else None
      if argument is not None:
        of_arguments[argument] += visit.count * size
  return Traffic(
    read_bytes=read, written_bytes=written, by_scope=dict(by_scope), of_arguments=dict(of_arguments), bound=bound
  )


class Moved:
  """Bytes of one execution: read, operand by operand, and written; each instruction is looked at once."""

  def __init__(self, module: Module):
    self._module = module
    self._known: dict[Instruction, tuple[list[float], float]] = {}

  def total(self, visit: Visit) -> float:
    reads, writes = self.once(visit)
    return visit.count * (sum(reads) + writes)

  def once(self, visit: Visit) -> tuple[list[float], float]:
    if visit.fused:
      return [], 0.0
    x = visit.instruction
    if x not in self._known:
      self._known[x] = ([], 0.0) if _is_free(x) else self._bytes(x)
    return self._known[x]

  def _bytes(self, x: Instruction) -> tuple[list[float], float]:
    whole, result = [stored_bytes(y.shapes) for y in x.operands], stored_bytes(_results(x))
    declared = kernel_bytes(self._module, x) if x.opcode in _KERNELS else None
    if declared is not None:
      share = max(0.0, declared - result) / max(1.0, sum(whole))
      return [share * size for size in whole], min(declared, result)
    match opcodes.base(x.opcode):
      case "fusion":
        return fusion_reads(self._module, x), fusion_written(self._module, x)
      case "slice" | "dynamic-slice" | "gather":
        return [min(whole[0], _as(x.shape, x.operands[0])), *whole[1:]], result
      case "dynamic-update-slice":
        return [0.0, *whole[1:]], _as(x.operands[1].shape, x)
      case "scatter":
        updated = (len(whole) - 1) // 2  # arrays, one for indices, as many for updates
        return [*whole[updated + 1 :], *whole[updated:]], sum(whole[updated + 1 :])
    return whole, result


# A kernel that was declared may be spelt as a custom call or, before the backend's passes, as a ragged dot.
_KERNELS = ("custom-call", "custom-call-start", "ragged-dot")


def _is_free(x: Instruction) -> bool:
  if not opcodes.executes(x.opcode) or opcodes.base(x.opcode) in opcodes.FREE:
    return True
  if x.opcode == "custom-call":
    return x.text("custom_call_target") in opcodes.FREE_CUSTOM_CALLS
  return opcodes.base(x.opcode) in opcodes.CALLS - {"fusion"}  # what they call is visited


def _results(x: Instruction) -> tuple[Shape, ...]:
  """What is written; the tuple of an asynchronous start may list operands, results and its own bookkeeping."""
  operands = [shape for y in x.operands for shape in y.shapes]
  if not x.opcode.endswith("-start"):
    return x.shapes
  if x.opcode == "copy-start":
    return x.shapes[:1]
  return x.shapes[len(operands) : 2 * len(operands)] or x.shapes


def _as(shape: Shape, where: Instruction) -> float:
  """Bytes of so many elements, as they are stored in another array."""
  return shape.bytes if where.shape.space == 0 else 0.0
