"""What a fusion reads and writes: of each operand the elements that its result needs, of its result what changes."""

from collections.abc import Iterable

from jaxmoe.xla import opcodes
from jaxmoe.xla.hlo import Instruction, Module, Shape

_RENAMES = frozenset({"bitcast", "reshape", "opt-barrier"})
_PARTS = frozenset({"slice", "dynamic-slice", "gather"})
# Any part of the result may need any part of an operand.
_MIXING = frozenset({"broadcast", "concatenate", "custom-call", "pad", "scatter", "sort"}) | opcodes.MATMULS


# Without these a fusion reads all of every operand.
_CHOOSING = _PARTS | {"dynamic-update-slice", "fusion"}


def fusion_reads(module: Module, fusion: Instruction) -> list[float]:
  """Bytes that it reads of each operand."""
  if not any(x.opcode in _CHOOSING for x in module.computations[fusion.called["calls"]].instructions):
    return [stored_bytes(operand.shapes) for operand in fusion.operands]
  needed = _needed(module, fusion, 1.0)
  return [_stored(operand, elements) for operand, elements in zip(fusion.operands, needed, strict=True)]


def fusion_written(module: Module, fusion: Instruction) -> float:
  """Bytes of its results; of one that is updated in place, of the update."""
  results, shapes = _results(module.computations[fusion.called["calls"]].root), fusion.shapes
  if fusion.opcode.endswith("-start"):  # its tuple lists the operands first, and bookkeeping last
    first = sum(len(operand.shapes) for operand in fusion.operands)
    shapes = shapes[first : first + len(results)]
  if len(results) != len(shapes):
    return stored_bytes(shapes)
  updates = [(shape, _update(result)) for shape, result in zip(shapes, results, strict=True)]
  return stored_bytes(
    tuple(shape if at is None else Shape(shape.dtype, at.operands[1].shape.dims, shape.space) for shape, at in updates)
  )


def stored_bytes(shapes: tuple[Shape, ...]) -> float:
  """Of those that lie in main memory."""
  return sum(shape.bytes for shape in shapes if shape.space == 0)


def _stored(operand: Instruction, elements: float) -> float:
  """Bytes of so many elements of an array, or of a whole tuple."""
  if len(operand.shapes) != 1:
    return stored_bytes(operand.shapes)
  return stored_bytes(operand.shapes) * elements / max(1, operand.shape.elements)


def _results(root: Instruction) -> tuple[Instruction, ...]:
  return root.operands if root.opcode == "tuple" else (root,)


def _update(result: Instruction) -> Instruction | None:
  """The update of a parameter in place that becomes this result; `None` if the result is all new."""
  result = _renamed(result)
  in_place = result.opcode == "dynamic-update-slice" and _renamed(result.operands[0]).opcode == "parameter"
  return result if in_place else None


def _renamed(x: Instruction) -> Instruction:
  while x.opcode in _RENAMES:
    x = x.operands[0]
  return x


def _needed(module: Module, fusion: Instruction, share: float) -> list[float]:
  """Elements needed of each operand if this share of the results is."""
  body = module.computations[fusion.called["calls"]]
  demand = _Demand(module, body.root, share)
  for x in reversed(body.instructions):
    demand.visit(x)
  parameters = {int(x.literal): demand.elements(x) for x in body.instructions if x.opcode == "parameter"}
  return [parameters[number] for number in range(len(fusion.operands))]


class _Demand:
  """Elements of each instruction that others need, found from the root backwards.

  Operations that go through the same places share what they read; each slice is a place of its own.
  """

  def __init__(self, module: Module, root: Instruction, share: float):
    self._module = module
    self._shared: dict[Instruction, float] = {}
    self._apart: dict[Instruction, float] = {}
    self._in_place = {update for result in _results(root) if (update := _update(result))}
    for result in _results(root):
      self._share(result, share)

  def elements(self, x: Instruction) -> float:
    return min(x.shape.elements, self._shared.get(x, 0.0) + self._apart.get(x, 0.0))

  def visit(self, x: Instruction) -> None:
    """Passes on what is needed of `x` to its operands; all that need `x` have been visited."""
    needed = self.elements(x)
    if not needed or x.opcode == "tuple":
      return
    share = needed / x.shape.elements
    if x.opcode in _PARTS:
      source, *indices = x.operands
      self._apart[source] = self._apart.get(source, 0.0) + needed
      self._share_all(indices, 1.0 if x.opcode == "dynamic-slice" else share)
    elif x in self._in_place:
      self._share_all(x.operands[1:], 1.0)
    elif x.opcode == "fusion":
      for operand, elements in zip(x.operands, _needed(self._module, x, share), strict=True):
        self._share(operand, elements / max(1, operand.shape.elements))
    else:
      self._share_all(x.operands, 1.0 if x.opcode in _MIXING else share)

  def _share_all(self, operands: Iterable[Instruction], share: float) -> None:
    for operand in operands:
      self._share(operand, share)

  def _share(self, x: Instruction, share: float) -> None:
    self._shared[x] = max(self._shared.get(x, 0.0), share * x.shape.elements)
