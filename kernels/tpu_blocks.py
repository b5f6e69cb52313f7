"""Which blocks the TPU kernel works on, and when it is worth taking at all: plain numbers, no arrays.

It is taken where it moves no more bytes than `ragged_dot` does with its own tiles, and needs no more fast memory than
the compiler sets aside for every operation, `ragged_dot` included: then it takes nothing from the rest of a program.
"""

import math
from typing import NamedTuple

from jaxmoe.kernels.tpu_chip import MIB, Chip, compiler_tile, tile_rows

LANES = 128
SUBLANES = 16  # rows of two bytes that lie in one register
HEIGHTS = (512, 256, 128)
PART_HEIGHTS, PART_DEPTHS = (1024, *HEIGHTS), (1024, 512, 256)  # where K is taken in parts
COLUMNS = 256  # of one multiplication, and of its sums
DEPTH = 1024  # of one multiplication: of much deeper operands the compiler makes copies, and takes minutes
SPARE = MIB // 4  # of fast memory, for what the compiler holds beside
WORTHWHILE = 0.99  # of the compiler's bytes; the rest is the table of visits
WORTH_PARTS = 0.75  # of the bytes with all of K at once: each visit then copies its operands, and adds to its sums


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
  """Rows of a tile, columns of a block of weights, and how much of K of both lies in fast memory: all, or a part."""

  height: int
  width: int
  depth: int


class Choice(NamedTuple):
  """Blocks of one kernel for all terms, or of one for each, whose results are added afterwards."""

  blocks: Blocks
  apart: bool
  bytes: int


def choose(job: Job, chip: Chip) -> Choice | None:
  """What needs the fewest bytes, if those are fewer than the compiler's; else None.

  One kernel a term leaves room for wider blocks, but makes more results.
  """
  found = []
  if blocks := _fewest_bytes(job, chip):
    found.append(Choice(blocks, False, own_bytes(job, blocks)))
  if job.terms > 1 and (blocks := _fewest_bytes(job._replace(terms=1), chip)):
    found.append(Choice(blocks, True, _apart_bytes(job, blocks)))
  best = min(found, key=lambda choice: choice.bytes, default=None)
  return best if best and best.bytes <= WORTHWHILE * compiler_bytes(job, chip) else None


def _fewest_bytes(job: Job, chip: Chip) -> Blocks | None:
  def best(heights, depths):
    fitting = [blocks for depth in depths for tile in heights for blocks in _widest(job, tile, depth, chip)]
    return min(fitting, key=lambda blocks: own_bytes(job, blocks), default=None)

  whole = best(HEIGHTS, [job.K])
  parts = best(PART_HEIGHTS, [depth for depth in PART_DEPTHS if job.K % depth == 0 and depth < job.K])
  if whole and parts and own_bytes(job, parts) > WORTH_PARTS * own_bytes(job, whole):
    return whole
  return parts or whole


def _widest(job: Job, tile: int, depth: int, chip: Chip) -> list[Blocks]:
  """The widest blocks of this height and depth that fit, if any."""
  height = min(tile, job.N // SUBLANES * SUBLANES)
  found = (Blocks(height, width, depth) for width in _widths(job.F, chip) if height)
  return [blocks for blocks in found if used_bytes(job, blocks, chip) <= chip.fast_bytes][:1]


def _widths(F: int, chip: Chip) -> list[int]:
  """Widest first, multiples of what fills the matrix unit. Blocks as even as can be; as many on each core, if possible.

  The last one may reach beyond F.
  """
  most = math.ceil(F / chip.rows)
  widths = [math.ceil(most / blocks) * chip.rows for blocks in range(1, most + 1)]
  return [width for width in widths if math.ceil(F / width) % chip.cores == 0] or widths


def columns(job: Job, width: int, chip: Chip) -> int:
  """Of one multiplication with a block of this width: more than fill the matrix unit only where none lie beyond F."""
  return COLUMNS if width % COLUMNS == 0 and job.F % COLUMNS == 0 else chip.rows


def depth(K: int) -> int:
  """Of one multiplication."""
  return next(depth for depth in range(DEPTH, 0, -LANES) if K % depth == 0)


def used_bytes(job: Job, blocks: Blocks, chip: Chip) -> int:
  """Fast memory: rows, weights and results twice, so that copies hide; sums of one multiplication, masks, epilogue.

  Where K is taken in parts, also the sums of a whole tile.
  """
  height, width, depth = blocks
  held = (job.terms * height + job.weights * width) * depth + job.outputs * height * width
  sums = (job.beside + job.outputs) * min(chip.rows, height) * columns(job, width, chip)
  kept = job.beside * height * width if depth < job.K else 0
  return job.itemsize * 2 * held + 4 * (2 * sums + kept) + SPARE


def passes(job: Job, blocks: Blocks) -> tuple[float, float]:
  """How often rows and weights are read, on average.

  Rows once for each block of columns; a single tile is copied once and stays. Weights once. Where K is taken in parts,
  both are copied for each visit, of which there is one more for each expert but the first.
  """
  wide = math.ceil(job.F / blocks.width)
  if blocks.depth == job.K:
    return 1 if blocks.height >= job.N else wide, 1
  visits = math.ceil(job.N / blocks.height) + min(job.E, job.N) - 1
  return wide * visits * blocks.height / job.N, max(1, visits / job.E)


def own_bytes(job: Job, blocks: Blocks) -> int:
  rows, weights = passes(job, blocks)
  again = job.terms * job.N * job.K * (rows - 1) + job.weights * job.E * job.K * job.F * (weights - 1)
  return once_bytes(job) + round(job.itemsize * again)


def _apart_bytes(job: Job, blocks: Blocks) -> int:
  """Of one kernel a term, and of adding their results."""
  added = (job.terms + job.outputs) * job.N * job.F * job.itemsize
  return job.terms * own_bytes(job._replace(terms=1), blocks) + added


def once_bytes(job: Job) -> int:
  """Each operand and result once, as the compiler counts all its operations."""
  weights = job.weights * job.E * job.K * job.F
  return job.itemsize * (job.terms * job.N * job.K + weights + job.outputs * job.N * job.F)


def compiler_bytes(job: Job, chip: Chip) -> int:
  """Of a `ragged_dot` for each weight in its tiles, a transposed copy where it makes one, and the rest in one pass.

  Rows are read for each block of columns. Weights are read once, but in parts of their depth for each tile of rows.
  """
  tile = compiler_tile(chip, tile_rows(chip, job.N), job.K, job.F)
  rows = job.N * job.K * (1 if tile.rows >= job.N else math.ceil(job.F / tile.columns))
  reads = job.E if tile.depth == job.K else max(job.E, math.ceil(job.N / tile.rows))
  copies = 2 * job.E if job.transposed else 0  # read and written transposed
  dot = rows + (copies + reads) * job.K * job.F + job.N * job.F
  return job.itemsize * (job.weights * dot + (job.weights + job.outputs) * job.N * job.F)
