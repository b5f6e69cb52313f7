"""How often a while loop runs: XLA's own answer, or derived from its condition.

A value inside a loop is followed as `slope * i + offset` of the induction variable i, through calls, fusions,
tuples and enclosing loops that pass it on unchanged. What cannot be followed is unknown, never guessed.
"""

import dataclasses
import re
from typing import NamedTuple

from jaxmoe.xla.hlo import Computation, Instruction, Module

_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TRANSPARENT = frozenset({"bitcast", "broadcast", "convert", "copy", "reshape", "opt-barrier"})


@dataclasses.dataclass(slots=True, eq=False)
class Frame:
  """A computation as called from one place: the call stack of the walk."""

  computation: Computation
  site: "Site | None" = None

  def argument(self, parameter: Instruction) -> "Site | None":
    """What a call or fusion passes for a parameter; `None` in the entry, loops and branches."""
    if self.site is None or self.site.instruction.opcode not in ("call", "fusion"):
      return None
    return Site(self.site.instruction.operands[int(parameter.literal)], self.site.frame)

  def place(self, module: Module, x: Instruction) -> str:
    """Where `x`, which stands here, comes from: its name, jax's name for it, and the line; around it if it has none."""
    site, parts = Site(x, self), [x.name, "", ""]
    while site and not all(parts):
      parts[1] = parts[1] or site.instruction.op_name
      parts[2] = parts[2] or module.source(site.instruction)
      site = site.frame.site
    return ", ".join(filter(None, parts))


@dataclasses.dataclass(slots=True, eq=False)
class Site:
  """An instruction and the frame that it stands in."""

  instruction: Instruction
  frame: Frame


class Affine(NamedTuple):
  """slope * i + offset."""

  slope: int
  offset: int


class _Symbol(NamedTuple):
  """Element `index` of the tuple that `loop` carries stands for i."""

  loop: Instruction
  index: int


def enter(module: Module, call: Instruction, frame: Frame) -> Frame:
  """Inside of a call or fusion that stands in `frame`."""
  called = call.called
  return Frame(module.computations[called.get("calls") or called["to_apply"]], Site(call, frame))


def trip_count(module: Module, loop: Instruction, frame: Frame) -> int | None:
  """Times that the body of `loop`, found in `frame`, runs.

  `None` if XLA does not say, and the condition is not `i < constant` (or <=, >, >=, !=) over an i that starts at a
  constant and moves by a constant.
  """
  known = _KNOWN_TRIP_COUNT.search(loop.attributes)
  if known:
    return int(known.group(1))
  return _Evaluator(module).trips(loop, frame)


class _Evaluator:
  """Follows integers through one module; `None` stands for unknown."""

  def __init__(self, module: Module):
    self._module, self._computations = module, module.computations

  def trips(self, loop: Instruction, frame: Frame) -> int | None:
    condition = Frame(self._computations[loop.called["condition"]], Site(loop, frame))
    compare, inner = self._through_calls(condition.computation.root, condition)
    if compare.opcode != "compare":
      return None
    for index in range(len(loop.shapes)):
      symbol = _Symbol(loop, index)
      left, right = (self._value(side, inner, (symbol,)) for side in compare.operands)
      if left is None or right is None or left.slope == right.slope:
        continue
      start, step = self._element(loop.operands[0], index, frame, ()), self._step(symbol, frame, ())
      if start is not None and step is not None and start.slope == 0:
        gap = Affine(left.slope - right.slope, left.offset - right.offset)
        at_start = gap.slope * start.offset + gap.offset
        return _iterations(compare.word("direction"), gap.slope * step, at_start)
    return None

  def _through_calls(self, instruction: Instruction, frame: Frame) -> tuple[Instruction, Frame]:
    while instruction.opcode in ("call", "fusion"):
      frame = enter(self._module, instruction, frame)
      instruction = frame.computation.root
    return instruction, frame

  def _step(self, symbol: _Symbol, frame: Frame, symbols: tuple[_Symbol, ...]) -> int | None:
    """What one iteration adds to the symbol's element."""
    body = Frame(self._computations[symbol.loop.called["body"]], Site(symbol.loop, frame))
    after = self._element(body.computation.root, symbol.index, body, (*symbols, symbol))
    return after.offset if after is not None and after.slope == 1 else None

  def _value(self, x: Instruction, frame: Frame, symbols: tuple[_Symbol, ...]) -> Affine | None:
    if x.opcode == "constant":
      return Affine(0, int(x.literal)) if re.fullmatch(r"-?\d+", x.literal) else None
    if x.opcode in _TRANSPARENT:
      return self._value(x.operands[0], frame, symbols)
    if x.opcode in ("add", "subtract", "multiply"):
      return _arithmetic(x.opcode, *(self._value(side, frame, symbols) for side in x.operands))
    if x.opcode in ("call", "fusion"):
      inner = enter(self._module, x, frame)
      return self._value(inner.computation.root, inner, symbols)
    if x.opcode == "get-tuple-element":
      return self._element(x.operands[0], int(x.word("index")), frame, symbols)
    argument = frame.argument(x) if x.opcode == "parameter" else None
    return self._value(argument.instruction, argument.frame, symbols) if argument else None

  def _element(self, x: Instruction, index: int, frame: Frame, symbols: tuple[_Symbol, ...]) -> Affine | None:
    """Element `index` of the tuple `x`."""
    if x.opcode == "tuple":
      return self._value(x.operands[index], frame, symbols)
    if x.opcode in ("copy", "opt-barrier"):
      return self._element(x.operands[0], index, frame, symbols)
    if x.opcode in ("call", "fusion"):
      inner = enter(self._module, x, frame)
      return self._element(inner.computation.root, index, inner, symbols)
    if x.opcode == "while":
      return self._carried(_Symbol(x, index), frame, symbols)
    return self._parameter_element(x, index, frame, symbols) if x.opcode == "parameter" else None

  def _parameter_element(self, x: Instruction, index: int, frame: Frame, symbols: tuple[_Symbol, ...]) -> Affine | None:
    if argument := frame.argument(x):
      return self._element(argument.instruction, index, argument.frame, symbols)
    if frame.site is None or frame.site.instruction.opcode != "while":
      return None
    symbol = _Symbol(frame.site.instruction, index)
    return Affine(1, 0) if symbols[-1:] == (symbol,) else self._carried(symbol, frame.site.frame, symbols)

  def _carried(self, symbol: _Symbol, frame: Frame, symbols: tuple[_Symbol, ...]) -> Affine | None:
    """The element's value before the loop, if the loop passes it on unchanged."""
    if symbol in symbols or self._step(symbol, frame, symbols) != 0:
      return None
    return self._element(symbol.loop.operands[0], symbol.index, frame, symbols)


def _arithmetic(opcode: str, left: Affine | None, right: Affine | None) -> Affine | None:
  if left is None or right is None:
    return None
  if opcode == "multiply":
    if left.slope and right.slope:
      return None
    return Affine(left.slope * right.offset + right.slope * left.offset, left.offset * right.offset)
  sign = 1 if opcode == "add" else -1
  return Affine(left.slope + sign * right.slope, left.offset + sign * right.offset)


def _iterations(direction: str, step: int, start: int) -> int | None:
  """Smallest k >= 0 at which `start + k * step <direction> 0` is false; `None` if it never is."""
  if direction in ("GT", "GE"):
    return _iterations({"GT": "LT", "GE": "LE"}[direction], -step, -start)
  if direction == "LE":
    return _iterations("LT", step, start - 1)
  if direction == "LT":
    if start >= 0:
      return 0
    return -(start // step) if step > 0 else None
  if direction == "NE":
    return -start // step if step and start % step == 0 and -start // step >= 0 else None
  return None
