"""Work beside matmuls: FLOPs of elementwise operations and reductions, and transcendental functions.

As XLA's cost analysis defines them: an elementwise operation is one FLOP, or one transcendental, an element of its
result, whatever the dtype; a reduction applies its function to all elements but as many as remain. Loops count as often
as they run. Operations that stand for a dot belong to its matmul FLOPs and are left out, and so are the sums inside
collectives.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxmoe.xla import opcodes, scopes
from jaxmoe.xla.declared import NOTHING, Declared
from jaxmoe.xla.flops import matmul_counter
from jaxmoe.xla.hlo import Instruction, Module, without_collector
from jaxmoe.xla.walk import Visit, walk


class Work(NamedTuple):
  """FLOPs, and evaluations of transcendental functions."""

  flops: float
  transcendentals: float

  def times(self, count: float) -> "Work":
    return Work(self.flops * count, self.transcendentals * count)


_NONE = Work(0.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ElementwiseCount:
  """Of one device in one run.

  Attributes:
    by_scope: as `FlopCount.by_scope`.
  """

  flops: float
  transcendentals: float
  by_scope: dict[str, Work]


@without_collector()
def elementwise_work(module: Module, declared: Declared = NOTHING) -> ElementwiseCount:
  """Sum over all operations, fused or not, that are no part of a matmul.

  Raises:
    UnknownOperation, UnknownTripCount: see `walk`.
  """
  counter = _Counter(module, declared)
  flops: dict[str, float] = collections.defaultdict(float)
  transcendentals: dict[str, float] = collections.defaultdict(float)
  for visit in walk(module, declared, weight=counter.weight):
    work = counter.once(visit.instruction)
    if work is not _NONE:
      path = scopes.joined_path(visit.op_name)
      flops[path] += visit.count * work.flops
      transcendentals[path] += visit.count * work.transcendentals
  return ElementwiseCount(
    flops=sum(flops.values()),
    transcendentals=sum(transcendentals.values()),
    by_scope={path: Work(flops[path], transcendentals[path]) for path in flops},
  )


class _Counter:
  """Work of one execution; each instruction and each scalar function is looked at once."""

  def __init__(self, module: Module, declared: Declared):
    self._module = module
    self._is_matmul = matmul_counter(module, declared).is_matmul
    self._known: dict[Instruction, Work] = {}
    self._functions: dict[str, Work] = {}

  def weight(self, visit: Visit) -> float:
    return visit.count * sum(self.once(visit.instruction))

  def once(self, x: Instruction) -> Work:
    if x not in self._known:
      self._known[x] = self._work(x) if not self._is_matmul(x) else _NONE
    return self._known[x]

  def _work(self, x: Instruction) -> Work:
    if x.opcode in opcodes.ARITHMETIC:
      return Work(x.shape.elements, 0.0)
    if x.opcode in opcodes.TRANSCENDENTALS:
      return Work(0.0, sum(shape.elements for shape in x.shapes))
    return _APPLYING[x.opcode](x, self._function) if x.opcode in _APPLYING else _NONE

  def _function(self, name: str) -> Work:
    """One evaluation of a function of scalars."""
    if name not in self._functions:
      works = [self._work(x) for x in self._module.computations[name].instructions]
      self._functions[name] = Work(sum(w.flops for w in works), sum(w.transcendentals for w in works))
    return self._functions[name]


Function = Callable[[str], Work]


def _map(x: Instruction, function: Function) -> Work:
  return function(x.called["to_apply"]).times(x.shape.elements)


def _reduce(x: Instruction, function: Function) -> Work:
  return function(x.called["to_apply"]).times(x.operands[0].shape.elements - x.shape.elements)


def _reduce_window(x: Instruction, function: Function) -> Work:
  return function(x.called["to_apply"]).times((_window_elements(x) - 1) * x.shape.elements)


def _select_and_scatter(x: Instruction, function: Function) -> Work:
  """Of each window one element is selected, and added to what the source says."""
  source, called = x.operands[1].shape.elements, x.called
  select, scatter = function(called["select"]), function(called["scatter"])
  selected, scattered = select.times(source * (_window_elements(x) - 1)), scatter.times(source)
  return Work(selected.flops + scattered.flops, selected.transcendentals + scattered.transcendentals)


def _scatter(x: Instruction, function: Function) -> Work:
  return function(x.called["to_apply"]).times(x.operands[-1].shape.elements)


def _sort(x: Instruction, function: Function) -> Work:
  """As many comparisons as sorting all elements takes; XLA takes no account of the sorted dimension alone."""
  elements = x.operands[0].shape.elements
  return Work(elements * math.ceil(math.log2(max(1, elements))), 0.0)


_APPLYING = {
  "map": _map,
  "reduce": _reduce,
  "reduce-window": _reduce_window,
  "scatter": _scatter,
  "select-and-scatter": _select_and_scatter,
  "sort": _sort,
  "topk": _sort,
}
assert _APPLYING.keys() == opcodes.APPLYING


def _window_elements(x: Instruction) -> int:
  found = re.search(r"window=\{size=([\dx]+)", x.attributes)
  return math.prod(int(size) for size in found.group(1).split("x")) if found else 1
