"""Matmul FLOPs that one device executes, in all and by user scope."""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from jaxmoe.xla import opcodes, scopes
from jaxmoe.xla.declared import NOTHING, Declared, custom_call_flops
from jaxmoe.xla.hlo import Instruction, Module, without_collector
from jaxmoe.xla.loops import enter
from jaxmoe.xla.recomputed import Copies
from jaxmoe.xla.walk import Visit, walk

_MATMUL_PRIMITIVES = ("dot_general", "ragged_dot_general")
_TRANSPARENT = frozenset({"bitcast", "convert", "copy", "reshape", "transpose", "reduce", "reduce-window"})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FlopCount:
  """Matmul FLOPs of one device in one run; a multiply and an add are two.

  Attributes:
    by_scope: `layer/attention` -> FLOPs, by the user scopes around each matmul; `""` for those outside any
      scope and those whose op name the compiler dropped.
    bound: the part of `total` in conditionals with undeclared shares, counted at their heaviest branch.
    recomputed: the part of `total` that the compiler added, see `Copies`.
  """

  total: float
  by_scope: dict[str, float]
  bound: float = 0.0
  recomputed: float = 0.0

  def within(self, scope: str) -> float:
    """FLOPs of all matmuls that have `scope` anywhere around them."""
    return scopes.total_within(self.by_scope, scope)


@without_collector()
def matmul_flops(module: Module, declared: Declared = NOTHING) -> FlopCount:
  """Sum over dots, convolutions, matmul custom calls, and dots that the compiler spelt as multiply and add.

  Raises:
    UnknownOperation, UnknownTripCount: see `walk`.
  """
  counter = matmul_counter(module, declared)
  by_scope: dict[str, float] = collections.defaultdict(float)
  copies, bound = Copies(), 0.0
  for visit in walk(module, declared, weight=counter.flops):
    flops = counter.flops(visit)
    if flops:
      by_scope[scopes.joined_path(visit.op_name)] += flops
      bound += flops * visit.bound
      copies.add(visit, flops)
  return FlopCount(total=sum(by_scope.values()), by_scope=dict(by_scope), bound=bound, recomputed=copies.recomputed)


@functools.lru_cache(maxsize=4)  # as walks over a module
def matmul_counter(module: Module, declared: Declared) -> "MatmulCounter":
  return MatmulCounter(module, declared)


class MatmulCounter:
  """FLOPs of one visit.

  A dot may end as a multiply (nothing to contract), or as a multiply without a name, summed by one or several
  reduces of which the last bears the dot's name, or a convert of it does; such a chain counts once, at its end.
  """

  def __init__(self, module: Module, declared: Declared):
    self._module, self._declared = module, declared
    self._summed: dict[Instruction, Instruction] = {}  # last reduce of a dot -> what it sums
    counted: set[Instruction] = set()
    for visit in walk(module, declared):
      x = visit.instruction
      if x.opcode in ("reduce", "convert") and _is_matmul(x):
        source, passed = _source(module, visit)
        if _ends_a_sum(x, passed):
          counted |= passed | {source}
          self._summed[x] = source
    self._counted = counted

  def flops(self, visit: Visit) -> float:
    return visit.count * self._once(visit.instruction)

  def is_matmul(self, x: Instruction) -> bool:
    """Whether `x` is a matmul or a part of one: an operation that makes up a dot's multiplications and sums."""
    if x.opcode in opcodes.MATMULS or x in self._counted or x in self._summed:
      return True
    return x.opcode == "multiply" and _is_matmul(x)

  def _once(self, x: Instruction) -> float:
    if not opcodes.executes(x.opcode):
      return 0
    match opcodes.base(x.opcode):
      case "dot" | "scaled-dot":
        return 2 * x.shape.elements * _extent(x.operands[0], x.dims("lhs_contracting_dims"))
      case "ragged-dot":
        declared = custom_call_flops(self._module, x, self._declared)  # the groups may fill only some of the rows
        return 2 * x.operands[0].shape.elements * _ragged_columns(x) if declared is None else declared
      case "convolution":
        return _convolution(x)
      case "custom-call":
        return _custom_call(self._module, x, self._declared)
      case "multiply" if _is_matmul(x) and x not in self._counted:
        return 2 * x.shape.elements
      case "reduce" | "convert" if x in self._summed and x not in self._counted:
        source = self._summed[x]
        return 0 if source.opcode in opcodes.MATMULS else 2 * source.shape.elements
    return 0


def _source(module: Module, visit: Visit) -> tuple[Instruction, set[Instruction]]:
  """What a reduce sums in the end, and what lies between; followed through fusions and partial reductions."""
  x, frame, passed, index = visit.instruction.operands[0], visit.frame, set(), 0
  while True:
    if x.opcode in _TRANSPARENT:
      passed.add(x)
      x = x.operands[0]
    elif x.opcode == "get-tuple-element" and x.operands[0].opcode == "fusion":
      index, x = int(x.word("index")), x.operands[0]
    elif x.opcode in ("call", "fusion"):
      frame = enter(module, x, frame)
      x = frame.computation.root
      x, index = (x.operands[index], 0) if x.opcode == "tuple" else (x, 0)
    elif x.opcode == "parameter" and (argument := frame.argument(x)):
      x, frame = argument.instruction, argument.frame
    else:
      return x, passed


def _ends_a_sum(x: Instruction, passed: set[Instruction]) -> bool:
  """A reduce that bears the dot's name; or, where the dot rounds its sum, a named convert of a reduce without one."""
  if x.opcode == "reduce":
    return True
  return any(y.opcode == "reduce" for y in passed) and not any(_is_matmul(y) for y in passed)


def _is_matmul(x: Instruction) -> bool:
  return x.op_name.rpartition("/")[2] in _MATMUL_PRIMITIVES


def _extent(x: Instruction, dims: tuple[int, ...]) -> int:
  return math.prod(x.shape.dims[dim] for dim in dims)


def _ragged_columns(x: Instruction) -> int:
  """Columns of the right operand: each left element meets every one of them, in one group's matrix."""
  used = x.dims("rhs_contracting_dims") + x.dims("rhs_batch_dims") + x.dims("rhs_group_dims")
  return x.operands[1].shape.elements // _extent(x.operands[1], used)


def _custom_call(module: Module, x: Instruction, declared: Declared) -> float:
  flops = custom_call_flops(module, x, declared)
  if flops is not None:
    return flops
  if x.text("custom_call_target") not in opcodes.MATMUL_CUSTOM_CALLS:
    return 0
  left, right, result = x.operands[0].shape, x.operands[1].shape, x.shape
  batch = math.prod(result.dims[:-2])  # (B M K)(B K N) / (B M N) / B = K K, whichever side is transposed
  return 2 * result.elements * math.isqrt(left.elements * right.elements // (result.elements * batch))


def _convolution(x: Instruction) -> int:
  """2 x batch x output features x input features of a group x window positions on data, not on padding."""
  left, right, out = re.split("_|->", x.word("dim_labels"))
  image, kernel = x.operands[0].shape.dims, x.operands[1].shape.dims
  spatial = [label for label in out if label.isdigit()]  # `b01f`: the digits number the spatial dimensions
  positions = math.prod(
    _window_positions(image[left.index(d)], kernel[right.index(d)], x.shape.dims[out.index(d)], _window(x, int(d)))
    for d in spatial
  )
  batch, features = x.shape.dims[out.index("b")], x.shape.dims[out.index("f")]
  return 2 * batch * features * kernel[right.index("i")] * positions


def _window(x: Instruction, dim: int) -> dict[str, int]:
  """Stride, low padding and dilations of one spatial dimension."""
  window = re.search(r"window=\{([^}]*)\}", x.attributes)
  fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", window.group(1))) if window else {}

  def at(key: str, default: str) -> int:
    return int(fields[key].split("x")[dim].split("_")[0]) if key in fields else int(default)

  return {key: at(key, "0" if key == "pad" else "1") for key in ("stride", "pad", "lhs_dilate", "rhs_dilate")}


def _window_positions(image: int, kernel: int, out: int, window: dict[str, int]) -> int:
  """Pairs (output, kernel element) that meet an element of the image. A reversed kernel has as many."""
  starts = np.arange(out, dtype=np.int64) * window["stride"] - window["pad"]
  total = 0
  for element in range(kernel):
    at = starts + element * window["rhs_dilate"]
    total += int(np.sum((at >= 0) & (at <= (image - 1) * window["lhs_dilate"]) & (at % window["lhs_dilate"] == 0)))
  return total
