"""Which blocks the TPU kernel works on, and when it is worth taking at all: plain numbers, no arrays.

Both kernels' bytes follow from shapes. The compiler's are what it reports of `ragged_dot`, each operand once, though
its tiles read the rows again for each block of columns: the own kernel's are counted as they are, so it is taken late.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

LANES = 128
SUBLANES = 16  # rows of two bytes that lie in one register
TILES = (512, 256, 128)
MIB = 2**20
PIECE = 2**20  # weights of one multiplication: more of them take the compiler minutes
SPARE = 2 * MIB  # of fast memory, for what the compiler holds beside
WORTHWHILE = 0.99  # of the compiler's bytes; the rest is the table of visits
USABLE = 3 / 4  # of fast memory; the compiler keeps other arrays there
SMALLEST_MIB = 64  # of fast memory where the device is unknown
FAST_MIB = {"TPU v2": 16, "TPU v3": 16, "TPU v4": 16, "TPU v5 lite": 128, "TPU v5e": 128, "TPU v6": 128}

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
  """Rows of a tile, columns of a block of weights, and copies of that block in fast memory: two hide its copying."""

  height: int
  width: int
  buffers: int


def chunk_rows(kind: str | None) -> int:
  """Rows of one multiplication: those that the compiler's own kernel takes, as many as the matrix unit has."""
  return 256 if kind is not None and kind.startswith("TPU v6") else 128


def fast_bytes(kind: str | None) -> int:
  """Fast memory that a kernel may fill on a device of this kind."""
  mib = next((mib for name, mib in FAST_MIB.items() if (kind or "").startswith(name)), SMALLEST_MIB)
  return int(USABLE * mib * MIB)


def choose(job: Job, kind: str | None) -> Blocks | None:
  """The blocks that need the fewest bytes, if those are no more than the compiler's; else None.

  One copy of the weights' block leaves room for a wider one, but multiplying waits for it: only where two need more.
  """
  return next((blocks for blocks in _candidates(job, kind) if _worthwhile(own_bytes(job, blocks), job)), None)


def choose_apart(job: Job, kind: str | None) -> Blocks | None:
  """The same for one kernel a term, whose results are added afterwards: room for wider blocks, but more results."""
  one = job._replace(terms=1)
  added = (job.terms + job.outputs) * job.N * job.F * job.itemsize
  pairs = ((blocks, job.terms * own_bytes(one, blocks) + added) for blocks in _candidates(one, kind))
  return next((blocks for blocks, bytes_ in pairs if _worthwhile(bytes_, job)), None)


def _worthwhile(bytes_: int, job: Job) -> bool:
  return bytes_ <= WORTHWHILE * compiler_bytes(job)


def _candidates(job: Job, kind: str | None) -> Iterator[Blocks]:
  for buffers in (2, 1):
    fitting = [blocks for tile in TILES for blocks in _widest(job, tile, buffers, kind)]
    yield from sorted(fitting, key=lambda blocks: own_bytes(job, blocks))[:1]


def _widest(job: Job, tile: int, buffers: int, kind: str | None) -> list[Blocks]:
  """The widest blocks of this height that fit, if any."""
  height = min(tile, job.N // SUBLANES * SUBLANES)
  widths = [width for width in range(job.F, 0, -LANES) if job.F % width == 0]
  shared = [width for width in widths if job.F // width % 2 == 0] if kind in TWO_CORES else []
  found = [Blocks(height, width, buffers) for width in shared or widths if height]
  return [blocks for blocks in found if used_bytes(job, blocks, chunk_rows(kind)) <= fast_bytes(kind)][:1]


def piece(job: Job, width: int) -> int:
  """Columns of one multiplication."""
  most = max(LANES, min(256, PIECE // job.K))
  return max(columns for columns in range(LANES, most + 1, LANES) if width % columns == 0)


def used_bytes(job: Job, blocks: Blocks, chunk: int) -> int:
  """Fast memory: rows and results twice, weights, and one multiplication with masks and epilogue.

  Of its operands the compiler makes copies: one of the rows, two of the weights.
  """
  size, columns = min(chunk, blocks.height), piece(job, blocks.width)
  rows = (2 * job.terms * blocks.height + size) * job.K
  weights = (blocks.buffers * job.weights * blocks.width + 2 * columns) * job.K
  results = 2 * job.outputs * blocks.height * blocks.width
  sums = 4 * 2 * (job.beside + job.outputs) * size * columns
  return job.itemsize * (rows + weights + results) + sums + SPARE


def passes(job: Job, blocks: Blocks) -> int:
  """How often the rows are read: once for each block of columns, but one tile stays."""
  return 1 if blocks.height >= job.N else math.ceil(job.F / blocks.width)


def own_bytes(job: Job, blocks: Blocks) -> int:
  rows = job.terms * job.N * job.K * passes(job, blocks)
  return job.itemsize * (rows + job.weights * job.E * job.K * job.F + job.outputs * job.N * job.F)


def compiler_bytes(job: Job) -> int:
  """Of a `ragged_dot` for each weight, its transposed copy where it makes one, and the elementwise rest in one pass."""
  copies = 3 if job.transposed else 1  # read and written transposed, then read
  dot = job.N * job.K + copies * job.E * job.K * job.F + job.N * job.F
  return job.itemsize * (job.weights * dot + (job.weights + job.outputs) * job.N * job.F)
