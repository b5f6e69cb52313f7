"""What the compiler does on each generation of TPU: multiplications, fast memory, and the tiles of its `ragged_dot`.

Found with libtpu 0.0.50.1, by what it compiles and what it refuses: `python benchmarks/tpu_compiler.py`.
"""

from typing import NamedTuple

import jax

MIB = 2**20
FEWEST_ROWS = 8  # of the compiler's tiles: where these would leave a rest, it multiplies all rows with all weights


class Chip(NamedTuple):
  """One generation.

  Attributes:
    rows: of a multiplication, as many as the matrix unit has; the compiler's tiles have no more.
    cores: that share a kernel by its blocks of columns.
    fast_bytes: of fast memory, set aside for every operation that asks for none.
    tile_bytes: of those, what the tiles of `ragged_dot` stay below.
  """

  rows: int
  cores: int
  fast_bytes: int
  tile_bytes: int


class Tile(NamedTuple):
  rows: int
  depth: int
  columns: int


def chip_of(kind: str | None) -> Chip:
  """By jax's name of the device; where that is unknown, the chip with less memory."""
  if (kind or "").startswith(("TPU v6", "TPU7")):
    return Chip(256, 1, 32 * MIB, 24 * MIB)
  return Chip(128, 2 if kind in ("TPU v4", "TPU v5") else 1, 16 * MIB, 8 * MIB)  # "TPU v5" is v5p


def chip_in_use() -> Chip:
  """Of the mesh's devices, or of jax's default backend if that is a TPU."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return chip_of(jax.devices()[0].device_kind if jax.default_backend() == "tpu" else None)
  return chip_of(device.device_kind if device.platform == "tpu" else None)


def tile_rows(chip: Chip, N: int) -> int:
  """Height of the tiles that N rows are padded to: the least power of two that holds them, within limits."""
  return min(chip.rows, max(FEWEST_ROWS, 1 << (N - 1).bit_length()))


def compiler_tile(chip: Chip, rows: int, K: int, F: int) -> Tile:
  """Of a `ragged_dot` of tiles of so many rows: the most columns that fit, and where none do, less than all of K.

  Fitting are two copies of each operand's block in two bytes, and three of the results' in four.
  """

  def fits(depth, columns):
    return 4 * depth * (rows + columns) + 12 * rows * columns < chip.tile_bytes

  if wide := [width for width in (*range(chip.rows, F, chip.rows), F) if fits(K, width)]:
    return Tile(rows, K, max(wide))
  return Tile(rows, max(depth for depth in range(chip.rows, K, chip.rows) if fits(depth, chip.rows)), chip.rows)
