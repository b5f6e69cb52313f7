"""Which blocks the TPU kernel works on, and when it is worth taking at all: plain numbers, no arrays.

It is taken where it moves no more bytes than `ragged_dot` does with its own tiles, and needs no more fast memory than
the compiler sets aside for every operation, `ragged_dot` included: then it takes nothing from the rest of a program.
"""

import math
from typing import NamedTuple

LANES = 128
SUBLANES = 16  # rows of two bytes that lie in one register
TILES = (512, 256, 128)
MIB = 2**20
COLUMNS = 256  # of one multiplication, and of its sums
DEPTH = 1024  # of one multiplication: of much deeper operands the compiler makes copies, and takes minutes
SPARE = MIB // 4  # of fast memory, for what the compiler holds beside
WORTHWHILE = 0.99  # of the compiler's bytes; the rest is the table of visits

TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")  # that share a kernel by its blocks of columns


class Job(NamedTuple):
  """Sums of N rows times an expert's K x F weights: `terms` arrays of rows, each with `beside` weights."""

  N: int
  E: int
  K: int
  F: int
  terms: int
  beside: int
  outputs: int
  transposed: bool
  itemsize: int

  @property
  def weights(self) -> int:
    return self.terms * self.beside


class Blocks(NamedTuple):
  """Rows of a tile, and columns of a block of weights."""

  height: int
  width: int


class Chip(NamedTuple):
  """What the compiler does for one generation; found with libtpu 0.0.50.1, by what it compiles and what it refuses.

  Attributes:
    rows: of one of its multiplications, as many as the matrix unit has.
    reserved: fast memory that it sets aside for an operation that asks for none, bytes.
    tiles: of that, what the tiles of `ragged_dot` stay below.
  """

  rows: int
  reserved: int
  tiles: int


def chip_of(kind: str | None) -> Chip:
  """By jax's name of the device; where that is unknown, the chip with less memory."""
  return Chip(256, 32 * MIB, 24 * MIB) if (kind or "").startswith(("TPU v6", "TPU7")) else Chip(128, 16 * MIB, 8 * MIB)


class Choice(NamedTuple):
  """Blocks of one kernel for all terms, or of one for each, whose results are added afterwards."""

  blocks: Blocks
  apart: bool
  bytes: int


def choose(job: Job, kind: str | None) -> Choice | None:
  """What needs the fewest bytes, if those are no more than the compiler's; else None.

  One kernel a term leaves room for wider blocks, but makes more results.
  """
  found = []
  if blocks := _fewest_bytes(job, kind):
    found.append(Choice(blocks, False, own_bytes(job, blocks)))
  if job.terms > 1 and (blocks := _fewest_bytes(job._replace(terms=1), kind)):
    found.append(Choice(blocks, True, _apart_bytes(job, blocks)))
  best = min(found, key=lambda choice: choice.bytes, default=None)
  return best if best and best.bytes <= WORTHWHILE * compiler_bytes(job, kind) else None


def _fewest_bytes(job: Job, kind: str | None) -> Blocks | None:
  fitting = [blocks for tile in TILES for blocks in _widest(job, tile, kind)]
  return min(fitting, key=lambda blocks: own_bytes(job, blocks), default=None)


def _widest(job: Job, tile: int, kind: str | None) -> list[Blocks]:
  """The widest blocks of this height that fit, if any."""
  height, chip = min(tile, job.N // SUBLANES * SUBLANES), chip_of(kind)
  widths = [width for width in range(job.F, 0, -LANES) if job.F % width == 0]
  shared = [width for width in widths if job.F // width % 2 == 0] if kind in TWO_CORES else []
  found = [Blocks(height, width) for width in shared or widths if height]
  return [blocks for blocks in found if used_bytes(job, blocks, chip.rows) <= chip.reserved][:1]


def columns(width: int) -> int:
  """Of one multiplication with a block of this width."""
  return next(columns for columns in range(COLUMNS, 0, -LANES) if width % columns == 0)


def depth(K: int) -> int:
  """Of one multiplication."""
  return next(depth for depth in range(DEPTH, 0, -LANES) if K % depth == 0)


def used_bytes(job: Job, blocks: Blocks, chunk: int) -> int:
  """Fast memory: rows, weights and results twice, so that copies hide; sums of one multiplication, masks, epilogue."""
  height, width = blocks
  held = (job.terms * height + job.weights * width) * job.K + job.outputs * height * width
  sums = (job.beside + job.outputs) * min(chunk, height) * columns(width)
  return job.itemsize * 2 * held + 4 * 2 * sums + SPARE


def passes(job: Job, blocks: Blocks) -> int:
  """How often the rows are read: once for each block of columns, but one tile stays."""
  return 1 if blocks.height >= job.N else math.ceil(job.F / blocks.width)


def own_bytes(job: Job, blocks: Blocks) -> int:
  rows = job.terms * job.N * job.K * passes(job, blocks)
  return job.itemsize * (rows + job.weights * job.E * job.K * job.F + job.outputs * job.N * job.F)


def _apart_bytes(job: Job, blocks: Blocks) -> int:
  """Of one kernel a term, and of adding their results."""
  added = (job.terms + job.outputs) * job.N * job.F * job.itemsize
  return job.terms * own_bytes(job._replace(terms=1), blocks) + added


def once_bytes(job: Job) -> int:
  """Each operand and result once, as the compiler counts all its operations."""
  weights = job.weights * job.E * job.K * job.F
  return job.itemsize * (job.terms * job.N * job.K + weights + job.outputs * job.N * job.F)


def compiler_tile(job: Job, kind: str | None) -> tuple[int, int, int]:
  """Rows, depth and columns of `ragged_dot`'s tiles: the most columns that fit, and where none do, less than all of K.

  Fitting are two copies of each block in two bytes, and three times its results in four.
  """
  rows, _, most = chip_of(kind)

  def fits(depth, columns):
    return 4 * depth * (rows + columns) + 12 * rows * columns < most

  widths = [*range(rows, job.F, rows), job.F]
  if wide := [width for width in widths if fits(job.K, width)]:
    return rows, job.K, max(wide)
  return rows, max(depth for depth in range(rows, job.K, rows) if fits(depth, rows)), rows


def compiler_bytes(job: Job, kind: str | None) -> int:
  """Of a `ragged_dot` for each weight in its tiles, a transposed copy where it makes one, and the rest in one pass.

  Rows are read for each block of columns. Weights are read once, but in parts of their depth for each tile of rows.
  """
  height, depth, width = compiler_tile(job, kind)
  rows = job.N * job.K * (1 if height >= job.N else math.ceil(job.F / width))
  reads = job.E if depth == job.K else max(job.E, math.ceil(job.N / height))
  copies = 2 * job.E if job.transposed else 0  # read and written transposed
  dot = rows + (copies + reads) * job.K * job.F + job.N * job.F
  return job.itemsize * (job.weights * dot + (job.weights + job.outputs) * job.N * job.F)
