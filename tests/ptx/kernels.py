"""The kernels that are compiled and executed: every leg, tiles of every kind, every dtype."""

import dataclasses
from unittest import mock

import hopper

from jaxmoe.kernels.hopper.config import TileShape

# A leg that has the tiles of another one.
TILED_AS = {"up": "matmul", "matmuls_transposed": "matmul_transposed"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
  """A leg of `hopper.operands` with as many rows and groups, and a tile."""

  leg: str
  rows: int = 203
  groups: int = 4
  D: int
  F: int
  dtype: str = "bfloat16"
  shape: TileShape

  def arguments(self, sizes):
    """Of the leg, for groups of these sizes."""
    with self.widths():
      return hopper.operands(self.leg, self.rows, sizes, self.dtype)

  def run(self, arguments):
    """What the leg returns, as a tuple, for any tile, whether or not it serves."""
    with self.widths(), mock.patch.object(TileShape, "serves", lambda *_: True):
      return hopper.run(self.leg, arguments, shape=self.shape)

  def serves(self) -> bool:
    """Whether the leg takes the tile."""
    leg, D, F = TILED_AS.get(self.leg, self.leg), self.D, self.F
    return self.shape.serves(leg, *((F, D) if leg == "matmul_transposed" else (D, F)))

  def widths(self):
    return mock.patch.multiple(hopper, D=self.D, F=self.F)


def kernel(leg: str, **options) -> Kernel:
  """Sums of five steps of 64: more than there are stages, so that stages are filled again and tiles can lag."""
  sides = {
    "matmul_transposed": {"D": 256, "F": 320},
    "matmuls_transposed": {"D": 256, "F": 320},
    "weight_gradient": {"D": 256, "F": 256},
  }
  return Kernel(leg=leg, **{**sides.get(leg, {"D": 320, "F": 256}), "shape": TileShape(), **options})


SHAPES = {
  "whole": TileShape(),
  "lag": TileShape(lag=1),
  "halves": TileShape(depth=32, stages=8, lag=3),
  "low": TileShape(height=64, split_columns=True),
  "low with a lag": TileShape(height=64, split_columns=True, lag=1),
  "few stages": TileShape(width=128, stages=2, band=1),
  "high": TileShape(height=256, width=128),
  "narrow": TileShape(width=64, stages=8),
}
LEGS = ("matmul", "matmul_scaled", "matmul_transposed", "matmuls_transposed", "weight_gradient", "gated_up", "up")

# Every leg, every kind of tile and every dtype at least once; names are what the tests call them.
QUICK = {
  "whole matmul": kernel("matmul"),
  "whole transposed": kernel("matmul_transposed"),
  "whole scaled": kernel("matmul_scaled"),
  "lagging up": kernel("up", shape=SHAPES["lag"]),
  "lagging halves of transposed": kernel("matmuls_transposed", shape=SHAPES["halves"]),
  "low gated": kernel("gated_up", shape=SHAPES["low"]),
  "few stages of matmul": kernel("matmul", shape=SHAPES["few stages"]),
  "few stages of weights": kernel("weight_gradient", shape=SHAPES["few stages"]),
  "float16": kernel("matmul_scaled", dtype="float16", shape=SHAPES["low"]),
  "float32": kernel("matmul", dtype="float32", D=128, shape=SHAPES["halves"]),
  "float32 weights": kernel("weight_gradient", dtype="float32"),
}
# One stage is released only once the next one is filled; a step before the first never comes.
HANGING = {
  "one stage": kernel("matmul", shape=TileShape(stages=1)),
  "negative lag": kernel("matmul", shape=TileShape(lag=-1)),
}


def every_kind(leg: str) -> list[Kernel]:
  """All tiles that serve the leg, float16 and float32, and more groups than rows."""
  whole = kernel(leg)
  tiled = [dataclasses.replace(whole, shape=shape) for shape in SHAPES.values()]
  kinds = [dataclasses.replace(whole, dtype=dtype) for dtype in ("float16", "float32")]
  served = [each for each in (*tiled, *kinds) if each.serves()]
  return [*served, dataclasses.replace(whole, rows=9, groups=12)]
