"""Which rows each tile of a grouped matmul covers, computed by XLA before the kernel starts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.kernels.rows import sum_before

ALIGN = 8  # a bulk copy may start at any multiple of 8 rows: the height of a swizzled tile in shared memory


def aligned(x_ND):
  """The rows with as many zeros below as make them a multiple of 8: bulk copies cannot describe others."""
  missing = -x_ND.shape[0] % ALIGN
  return jnp.pad(x_ND, ((0, missing), (0, 0))) if missing else x_ND


class RowTiles(NamedTuple):
  """Tile t is rows `row[t] + low[t]` up to `row[t] + high[t]`, of group `group[t]`.

  The groups before g have `before[g]` tiles, and all groups as many as `before` ends with: no others exist.
  """

  group: jax.Array
  row: jax.Array
  low: jax.Array
  high: jax.Array
  before: jax.Array


def row_tiles(sizes_E, rows: int, height: int) -> RowTiles:
  """Tiles of `height` rows that together cover each of `rows` rows exactly once, no tile across two groups.

  A group's first tile starts at the multiple of 8 at or below its first row, so a boundary between groups costs at most
  one tile, not one tile and a realignment of everything after it. Rows past the last group form one more group, E.
  """
  start_G, end_G = _bounds(sizes_E, rows)
  first_G = start_G & -ALIGN
  tiles_G = jnp.where(end_G > start_G, lax.div(end_G - first_G + (height - 1), jnp.int32(height)), 0)
  before = sum_before(jnp.append(tiles_G, 0))
  tile_T = jnp.arange(most_tiles(rows, sizes_E.shape[0] + 1, height), dtype=jnp.int32)
  group = jnp.sum(tile_T[:, None] >= before[None, 1:-1], axis=1, dtype=jnp.int32)
  row = first_G[group] + (tile_T - before[group]) * height
  low = jnp.maximum(start_G[group] - row, 0)
  high = jnp.clip(end_G[group] - row, 0, height)
  return RowTiles(group, row, low, high, before)


def most_tiles(rows: int, groups: int, height: int) -> int:
  """The most tiles that any sizes need: each group may waste one row less than a tile, and the alignment before it."""
  return max(1, (rows + groups * (height + ALIGN - 2)) // height)


class GroupRows(NamedTuple):
  """Group e holds rows `start[e]` up to `end[e]`; `order` lists the groups, the largest first.

  Past them stand bounds of the rest of the rows: cut off, they would make a slice that XLA fuses with the kernel.
  """

  order: jax.Array
  start: jax.Array
  end: jax.Array


def group_rows(sizes_E, rows: int) -> GroupRows:
  """Bounds of every group. Largest first, because processors take turns: the last turns are then the shortest."""
  start_G, end_G = _bounds(sizes_E, rows)
  return GroupRows(jnp.argsort((start_G - end_G)[:-1]).astype(jnp.int32), start_G, end_G)


def _bounds(sizes_E, rows: int):
  """First row and past-last row of every group, and of the rest of the rows as one group more."""
  sizes_G = jnp.append(sizes_E, rows).astype(jnp.int32)
  start_G = jnp.minimum(sum_before(sizes_G), rows)
  return start_G, start_G + jnp.minimum(sizes_G, rows - start_G)


def visit(turn, tiles, columns: int, band: int):
  """(tile, column) of one turn: bands of `band` tiles, down a band's tiles first, then along its columns.

  Turns that run together thus share a few tiles' rows and a few columns' weights, which then come from the L2 cache.
  """
  first = lax.div(turn, jnp.int32(band * columns)) * band
  height = jnp.minimum(band, tiles - first)
  within = turn - first * columns
  return first + lax.rem(within, height), lax.div(within, height)
