"""Multiplications of tensor cores: operands in shared memory by descriptor, sums in registers."""

import functools

import ml_dtypes
import numpy as np

from ptx import floats
from ptx.lanes import COUNT, LANE, Lanes
from ptx.objection import Objection, Unmodelled
from ptx.shared_memory import SharedMemory, swizzled

ROWS, DEPTH = 64, 16  # of one multiplication of 16-bit numbers
SWIZZLES = {1: 128, 2: 64, 3: 32}
TYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


@functools.cache
def places(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
  """Addresses of an operand's numbers, (rows, DEPTH), as the instruction set defines descriptors.

  Bits 0 to 13 are its start in units of 16 bytes, 16 to 29 and 32 to 45 the leading and the stride byte offset, 62 and
  63 the swizzle. Numbers lie in blocks of 8 lines, each as wide as the swizzle. Lines go along the depth, and blocks of
  rows are a stride apart. Transposed, lines go along the rows, blocks of rows are a leading offset apart and blocks of
  the depth a stride.
  """
  start, leading, stride = ((descriptor >> low & 0x3FFF) << 4 for low in (0, 16, 32))
  if descriptor >> 62 not in SWIZZLES or descriptor >> 46 & 0xFFFF or descriptor >> 30 & 3 or descriptor >> 14 & 3:
    raise Unmodelled(f"descriptor {descriptor:#x}")
  width = SWIZZLES[descriptor >> 62]
  if start % (8 * width) >= width:
    raise Objection(f"an operand starts at {start:#x}, below the first line of a block")
  row, depth = np.indices((rows, DEPTH))
  line = width // 2  # numbers
  if transposed:
    offsets = row // line * leading + row % line * 2 + depth // 8 * stride + depth % 8 * width
  else:
    offsets = row // 8 * stride + row % 8 * width + depth * 2
  return swizzled(start + offsets, width)


# Where thread and register lie in the 64 rows and the columns that they hold sums of.
ROW = (LANE // 32 * 16 + LANE % 32 // 4)[None, :]
COLUMN = (LANE % 4 * 2)[None, :]


@functools.cache
def layout(registers: int) -> tuple[np.ndarray, np.ndarray]:
  number = np.arange(registers)[:, None]
  return ROW + number // 2 % 2 * 8, COLUMN + number // 4 * 8 + number % 2


class Multiplication:
  """sums += left @ right, read when it is done."""

  def __init__(self, kind: tuple[str, str, str], registers: tuple[str, ...], left: int, right: int, flags: tuple):
    columns, left_type, right_type = kind
    accumulates, left_sign, right_sign, *transposed = flags
    if not accumulates or (left_sign, right_sign) != (1, 1) or left_type != right_type:
      raise Unmodelled(f"a multiplication that does not add, or of other signs or types: {kind}, {flags}")
    if len(registers) * COUNT != ROWS * int(columns):
      raise Objection(f"{len(registers)} registers for {columns} columns")
    self.registers, self.type = registers, TYPES[left_type]
    sides = ((left, ROWS), (right, int(columns)))
    self.places = [places(*side, bool(turned)) for side, turned in zip(sides, transposed, strict=True)]

  def finish(self, shared: SharedMemory, values: dict[str, Lanes]) -> None:
    left, right = (self._read(shared, addresses) for addresses in self.places)
    at = layout(len(self.registers))
    sums = np.empty((ROWS, right.shape[0]), np.float32)
    sums[at] = floats.read(np.stack([values[register] for register in self.registers]))
    with np.errstate(all="ignore"):
      sums += left @ right.T
    values.update(zip(self.registers, floats.written(sums[at]), strict=True))

  def _read(self, shared: SharedMemory, addresses: np.ndarray) -> np.ndarray:
    shared.check_visible(addresses, "a multiplication")
    return shared.bytes.view(np.uint16)[addresses >> 1].view(self.type).astype(np.float32)
