"""Tile shapes of the kernels: from the committed table for a device and shape that it holds, else by rule."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Literal, get_args

CHUNK = 64  # rows or columns: the least that a consumer multiplies, and what one store writes
SHARED_BYTES = 227 * 1024  # of one block of threads
RESERVED_BYTES = 2048 + 1024  # kept by the compiler for reductions; barriers
WIDENED = 2  # steps of FP8 weights that are kept in 16 bits: one is multiplied while the next one is written
STAGING_BYTES = 2 * 2 * CHUNK * CHUNK * 2  # two slots for each of two consumers
SUM_VALUES = 64 * 256  # of one consumer: 128 registers of each of its threads

TABLE = pathlib.Path(__file__).with_name("tuned.json")

Leg = Literal["gated_up", "matmul", "matmul_scaled", "matmul_transposed", "weight_gradient"]
LEGS = get_args(Leg)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TileShape:
  """`height` x `width` results of a processor; for `gated_up`, `width` counts the columns of both weights.

  `depth` is summed over at a time, `stages` of those are in flight. The two consumers split the height, or the width if
  `split_columns`, as they must where 64 rows are to be enough. `band` tiles are visited together, one below the other.
  The second consumer begins a tile `lag` steps after the first.
  """

  height: int = 128
  width: int = 256
  depth: int = 64
  stages: int = 4
  split_columns: bool = False
  band: int = 8
  lag: int = 0

  @property
  def parts(self) -> tuple[int, int]:
    """Into how many parts the consumers split height and width."""
    return (1, 2) if self.split_columns else (2, 1)

  def shared_bytes(self, leg: Leg) -> int:
    """Of all stages, and of what lies beside them: with FP8 weights also two stages' worth of them, widened."""
    rows, weights = 2 * self.stages * self.height, 2 * self.stages * self.width
    if leg == "matmul_scaled":
      weights = self.stages * self.width + 2 * WIDENED * self.width
    return self.depth * (rows + weights) + STAGING_BYTES + RESERVED_BYTES

  def serves(self, leg: Leg, D: int, F: int) -> bool:
    """Whether the tile fits a processor and divides the leg: a sum over D to F columns, or a D x F gradient."""
    beside = 2 if leg == "gated_up" else 1
    row_parts, column_parts = self.parts
    fits = self.shared_bytes(leg) <= SHARED_BYTES and self.height * self.width // 2 <= SUM_VALUES
    shares = 2 if leg == "matmul_scaled" else column_parts  # each consumer widens half of the columns
    whole = self.height % (row_parts * CHUNK) == self.width % (beside * shares * CHUNK) == 0
    divides = F % (self.width // beside) == 0 and D % (self.height if leg == "weight_gradient" else self.depth) == 0
    return fits and whole and divides and self._moves_on(leg)

  def _moves_on(self, leg: Leg) -> bool:
    """Whether stages go round: one is given back only when the next one is taken, and `lag` more lie in between.

    In two legs consumers meet within a tile, over whole chunks.
    """
    if leg in ("matmul_scaled", "weight_gradient"):
      return self.stages > 1 and self.lag == 0 and self.depth == CHUNK
    return self.stages > 1 and 0 <= self.lag <= self.stages - 2 and self.depth in (CHUNK // 2, CHUNK)


def tile_shape(leg: Leg, D: int, F: int, *, rows: int, groups: int, device: str, processors: int) -> TileShape:
  """The table's tile, else the rule's.

  Raises:
    NotImplementedError: no tile divides the shape.
  """
  known = _table().get((device, leg, groups, D, F, bucket(rows, groups)))
  return known or by_rule(leg, D, F, rows=rows, groups=groups, processors=processors)


def by_rule(leg: Leg, D: int, F: int, *, rows: int, groups: int, processors: int) -> TileShape:
  """The widest tile that still gives every processor one, else the one of which there are most.

  Of 64 rows where groups have no more on average, if such a tile serves.
  """
  low = leg != "weight_gradient" and rows <= CHUNK * groups
  preferred = sorted(candidates(), key=lambda shape: (shape.split_columns != low, -shape.width))
  serving = [shape for shape in preferred if shape.height <= 128 and shape.serves(leg, D, F)]
  if not serving or not D or not F:
    raise NotImplementedError(
      f"{leg} on Hopper needs {_needed_widths(leg)}, got {D} and {F}; pad the weights, or name another implementation"
    )
  if leg == "weight_gradient":
    return serving[0]
  if low:
    serving = [shape for shape in serving if shape.split_columns] or serving
  columns = 2 * F if leg == "gated_up" else F

  def tiles(shape: TileShape) -> int:
    return (rows // shape.height + min(groups, rows)) * (columns // shape.width)

  return next((shape for shape in serving if tiles(shape) >= processors), max(serving, key=tiles))


def _needed_widths(leg: Leg) -> str:
  if leg == "matmul_scaled":
    return f"sums over a multiple of {CHUNK}, to columns that are a multiple of 128"
  return f"widths that are multiples of {CHUNK}" + (", one of them of 128" if leg == "weight_gradient" else "")


def candidates() -> list[TileShape]:
  """Every tile worth timing, each with as many stages as fit."""
  sides = [(128, 256, False), (128, 192, False), (128, 128, False), (128, 64, False)]
  sides += [(256, 128, False), (64, 256, True), (64, 128, True)]
  shapes = [TileShape(height=height, width=width, stages=1, split_columns=split) for height, width, split in sides]
  room = [SHARED_BYTES - shape.shared_bytes("matmul") for shape in shapes]
  return [
    dataclasses.replace(shape, stages=1 + left // (2 * shape.depth * (shape.height + shape.width)))
    for shape, left in zip(shapes, room, strict=True)
  ]


def lagging(shape: TileShape) -> list[TileShape]:
  """The same tile with one consumer behind the other, in stages as they are and in stages of half the depth.

  Of two steps that a consumer has under way and `lag` more between the two, stages must be left to fill.
  """
  halves = dataclasses.replace(shape, depth=shape.depth // 2, stages=2 * shape.stages, lag=3)
  return [dataclasses.replace(shape, lag=1), halves]


def bucket(rows: int, groups: int) -> int:
  """Mean rows a group, as the nearest power of two: shapes of one bucket share an entry of the table."""
  return 1 << max(0, round(math.log2(max(1, rows) / groups)))


@functools.cache
def _table() -> dict[tuple, TileShape]:
  entries = json.loads(TABLE.read_text())["entries"]
  keys = ("device", "leg", "groups", "D", "F", "rows_per_group")
  return {tuple(entry[key] for key in keys): TileShape(**entry["shape"]) for entry in entries}
