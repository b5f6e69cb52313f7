"""One warpgroup: its registers, its place in the program, and its asynchronous work in groups."""

import collections
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx import floats, integers, lanes
from ptx.lanes import COUNT, LANE, Lanes
from ptx.objection import Objection, Unmodelled
from ptx.program import Address, Instruction, Operand
from ptx.shared_memory import BASE

ARGUMENT = 40  # bits of an address in device memory below the number of the argument
MAPS = 1 << 60  # address of the tensor maps, among the parameters
TABLES = (integers, floats)  # imported for what they add to the table of `lanes`
EXECUTED: dict[str, tuple[Callable, bool]] = {}


def executes(opcodes: str, *, partly: bool = False):
  """Registers a function of a warpgroup, its active threads, an opcode's variable parts, and the operands.

  It may return a condition to wait for. `partly`: also if only some threads are active.
  """

  def register(function):
    EXECUTED[opcodes] = function, partly
    return function

  return register


@functools.cache
def execution(opcode: str) -> tuple[Callable, bool, tuple]:
  for opcodes, (function, partly) in EXECUTED.items():
    if found := re.fullmatch(opcodes, opcode):
      return function, partly, found.groups()
  raise Unmodelled(f"the instruction {opcode}")


class Groups:
  """Asynchronous work in the order in which it is done; a committed group is kept until a wait covers it."""

  def __init__(self, finish: Callable[[Any], None], early: bool):
    self.finish, self.early = finish, early
    self.open, self.committed, self.undone = [], collections.deque(), collections.deque()

  def commit(self) -> None:
    self.committed.append(self.open)
    self.undone.extend(self.open)
    self.open = []
    while self.early and self.undone:
      self.step()

  def step(self) -> None:
    self.finish(self.undone.popleft())

  def wait(self, kept: int) -> None:
    """Until at most the last `kept` groups are under way."""
    while len(self.committed) > kept:
      for work in self.committed.popleft():
        if self.undone and self.undone[0] is work:
          self.step()

  def under_way(self) -> list:
    return [work for group in (*self.committed, self.open) for work in group]


class Warpgroup:
  """Runs until an instruction that others may see, or that waits."""

  def __init__(self, number: int, block):
    self.number, self.block, self.at = number, block, 0
    self.doing = ""
    self.values: dict[str, Lanes] = {
      "%tid.x": (LANE + COUNT * number).astype(np.uint64),
      "%ctaid.x": lanes.everywhere(block.number),
      "__dynamic_shmem__0": lanes.everywhere(BASE),
    }
    for i, argument in enumerate(block.launch.parameters):
      address = MAPS if argument is None else argument + 1 << ARGUMENT
      self.values[f"{block.program.name}_param_{i}"] = lanes.everywhere(address)
    early = block.timing == "early"
    self.multiplications = Groups(lambda work: work.finish(block.shared, self.values), early)
    self.stores = Groups(lambda work: work.finish(), early)
    self.in_flight: frozenset[str] = frozenset()
    self.unfenced: set[str] = set()  # registers written since the last `wgmma.fence`
    self.registers = 0

  def run(self):
    """Yields after each instruction that others may see: what it waits for, or None."""
    instructions = self.block.program.instructions
    while self.at < len(instructions):
      instruction = instructions[self.at]
      self.at += 1
      try:
        if compute := lanes.computation(instruction.opcode):
          self._compute(instruction, compute)
        else:
          self.doing = instruction.text
          yield self._execute(instruction)
      except (Objection, Unmodelled) as error:
        error.add_note(f"warpgroup {self.number} of block {self.block.number}, at: {instruction.text[:200]}")
        raise

  def _compute(self, instruction: Instruction, compute: Callable[..., Lanes]) -> None:
    if instruction.guard:
      raise Unmodelled("arithmetic under a predicate")
    target, *sources = instruction.operands
    self.write(target, compute(*[self.read(source) for source in sources]))

  def _execute(self, instruction: Instruction):
    active = np.ones(COUNT, bool)
    if instruction.guard:
      active = self.read(instruction.guard) != instruction.skipped_if
    function, partly, parts = execution(instruction.opcode)
    if not active.any():
      return None
    if not active.all() and not partly:
      raise Unmodelled("threads of a warpgroup part ways")
    return function(self, active, *parts, *instruction.operands)

  def read(self, operand: Operand) -> Lanes:
    """A number, a register, or the place that an address gives."""
    if isinstance(operand, int):
      return lanes.everywhere(operand)
    if isinstance(operand, Address):
      return self.read(operand.base) + lanes.everywhere(operand.offset)
    if operand in self.in_flight:
      raise Objection(f"{operand} is read while it is multiplied")
    if operand not in self.values:
      raise Objection(f"{operand} is read and was never written")
    return self.values[operand]

  def write(self, register: Operand, value: Lanes) -> None:
    if not isinstance(register, str):
      raise Unmodelled(f"a result to {register}")
    if register in self.in_flight:
      raise Objection(f"{register} is written while it is multiplied")
    self.values[register] = value
    self.unfenced.add(register)

  def uniform(self, operand: Operand) -> int:
    if (value := lanes.uniform(self.read(operand))) is None:
      raise Unmodelled(f"{operand} differs among the threads of a warpgroup")
    return value

  def of_one(self, active: np.ndarray, operand: Operand, kind: str = "u64") -> int:
    """The operand of the one thread that is active."""
    if active.sum() != 1:
      raise Objection(f"{active.sum()} threads do what one must do")
    return int(lanes.number(self.read(operand), kind)[active][0])
