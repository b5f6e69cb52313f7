"""Which argument of the program an operand is, or is a mere copy of: followed through tuples, calls and loops."""

from jaxmoe.xla import opcodes
from jaxmoe.xla.hlo import Instruction, Module
from jaxmoe.xla.loops import Frame, Site, enter

# What holds the same numbers, in the same memory or another.
_SAME = frozenset({"bitcast", "convert", "copy", "opt-barrier", "reshape", "transpose"})


class Buffers:
  """Follows operands back to the parameters of the entry computation; `None` stands for anything else."""

  def __init__(self, module: Module):
    self._module = module
    self._copies: dict[str, bool] = {}
    self._handed_on: dict[tuple[Instruction, int], bool] = {}

  def argument(self, x: Instruction, frame: Frame) -> int | None:
    """Number of the argument whose numbers `x` holds."""
    while True:
      opcode = opcodes.base(x.opcode)
      if opcode == "get-tuple-element":
        return self._element(x.operands[0], int(x.word("index")), frame)
      if opcode == "parameter":
        if frame.site is None:
          return int(x.literal)
        if (site := self._passed(x, frame)) is None:
          return None
        x, frame = site.instruction, site.frame
      elif opcode in _SAME or (opcode == "fusion" and opcodes.executes(x.opcode) and self._is_copy(x)):
        x = x.operands[0]
      else:
        return None

  def _element(self, x: Instruction, index: int, frame: Frame) -> int | None:
    """The same for element `index` of the tuple `x`."""
    while True:
      if x.opcode == "tuple":
        return self.argument(x.operands[index], frame)
      if self._hands_on(x, index):
        x = x.operands[0]
      elif x.opcode == "call":
        frame = enter(self._module, x, frame)
        x = frame.computation.root
      elif x.opcode == "parameter" and (site := self._passed_tuple(x, index, frame)):
        x, frame = site.instruction, site.frame
      else:
        return None

  def _passed_tuple(self, parameter: Instruction, index: int, frame: Frame) -> Site | None:
    """What is passed for a parameter whose element `index` matters: in a loop only if every iteration hands it on."""
    if frame.site is None:
      return None
    loop = frame.site.instruction
    if loop.opcode == "while":
      return Site(loop.operands[0], frame.site.frame) if self._hands_on(loop, index) else None
    return self._passed(parameter, frame)

  def _passed(self, parameter: Instruction, frame: Frame) -> Site | None:
    """What a call, a fusion or a conditional passes for a parameter."""
    assert frame.site is not None
    call = frame.site.instruction
    if call.opcode == "conditional":
      return Site(call.operands[1 + call.branches.index(frame.computation.name)], frame.site.frame)
    return frame.argument(parameter)

  def _hands_on(self, x: Instruction, index: int) -> bool:
    """Whether element `index` comes out of a barrier or a loop as it went in."""
    if x.opcode != "while":
      return x.opcode == "opt-barrier"
    if (x, index) not in self._handed_on:
      root = self._module.computations[x.called["body"]].root
      self._handed_on[x, index] = root.opcode == "tuple" and self._origin(root.operands[index]) == index
    return self._handed_on[x, index]

  def _origin(self, x: Instruction) -> int | None:
    """Which element of its computation's parameter `x` is."""
    while x.opcode == "bitcast":
      x = x.operands[0]
    if x.opcode != "get-tuple-element":
      return None
    source, index = x.operands[0], int(x.word("index"))
    while self._hands_on(source, index):
      source = source.operands[0]
    if source.opcode == "tuple":
      return self._origin(source.operands[index])
    return index if source.opcode == "parameter" else None

  def _is_copy(self, fusion: Instruction) -> bool:
    """A fusion of one operand that only changes its layout or dtype."""
    name = fusion.called["calls"]
    if name not in self._copies:
      x = self._module.computations[name].root
      while x.opcode in _SAME:
        x = x.operands[0]
      self._copies[name] = x.opcode == "parameter" and len(fusion.operands) == 1
    return self._copies[name]
