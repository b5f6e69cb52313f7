"""What a collective's buffer holds of the program, where the compiler pads it or packs it into 32-bit words."""

from jaxmoe.xla.hlo import Instruction, Module, Shape, item_bytes
from jaxmoe.xla.loops import Frame, enter

_FILLS = "ZeroCrop"  # a custom call of TPUs: the array with the rest of its last tiles, set to zero


def program_shape(module: Module, x: Instruction, frame: Frame) -> Shape:
  """Shape, in the program, of the array whose bytes `x` is; `x`'s own if it is neither padded nor reinterpreted.

  A pad adds elements. A TPU's bitcast may show an array as it is stored, tiles that are not full included, and words of
  32 bits for several elements of 16 or 8.
  """
  found = x.shape
  while True:
    if x.opcode in ("bitcast", "pad") or x.text("custom_call_target") == _FILLS:
      x = x.operands[0]
      if x.shape.dtype != found.dtype and not _packs(found, x.shape):
        return found
      if x.shape.dtype != found.dtype or x.shape.elements < found.elements:
        found = x.shape
      continue
    following = _produced(module, x, frame)
    if following is None:
      return found
    x, frame = following


def _packs(words: Shape, inside: Shape) -> bool:
  return words.dtype == "u32" and item_bytes(inside.dtype) < item_bytes(words.dtype)


def _produced(module: Module, x: Instruction, frame: Frame) -> tuple[Instruction, Frame] | None:
  """An array of the same form, nearer to where it is made: inside a fusion or outside, or before a sum over devices.

  `None` if it is made here.
  """
  index = 0
  if x.opcode == "get-tuple-element" and x.operands[0].opcode in ("fusion", "all-reduce"):
    index, x = int(x.word("index")), x.operands[0]
  if x.opcode == "all-reduce":
    return x.operands[index], frame
  if x.opcode == "fusion":
    inner = enter(module, x, frame)
    root = inner.computation.root
    return (root.operands[index] if root.opcode == "tuple" else root), inner
  argument = frame.argument(x) if x.opcode == "parameter" else None
  return (argument.instruction, argument.frame) if argument else None


def is_halo(module: Module, x: Instruction) -> bool:
  """Whether a permute's operand is a slice of the shares that a padded reduce-scatter left.

  Equal shares of the padded array are larger than those of the program's, so that rows of one device's share belong to
  its neighbour.
  """
  source = x.operands[0]
  while source.opcode in ("slice", "bitcast", "copy", "get-tuple-element"):
    source = source.operands[0]
  if source.opcode != "fusion":
    return False
  inside = module.computations[source.called["calls"]].instructions
  return any(y.opcode == "all-reduce" and any(z.opcode == "pad" for z in y.operands) for y in inside)
