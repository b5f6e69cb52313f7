"""Loops over the experts that have rows and over tiles of their rows, each declaring how often it runs.

Both loops end at a number that only the routing decides. The scope of a loop, `loop[expected=..,max=..]`, says how
often its body runs each time the loop is reached, on average over the loop around it; compiled op names keep it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.kernels import work
from jaxmoe.kernels.rows import bounds
from jaxmoe.kernels.work import Trips


class Tiles(NamedTuple):
  """The tiles of one expert's rows."""

  tile: int
  num_rows: int
  first: jax.Array
  end: jax.Array

  @property
  def count(self):
    return (self.end - self.first + self.tile - 1) // self.tile

  def at(self, t):
    """Row where tile `t` begins, and which of its rows are the expert's, T1. A tile never leaves the array."""
    wanted = self.first + t * self.tile
    begin = jnp.minimum(wanted, self.num_rows - self.tile)
    row_T1 = begin + jnp.arange(self.tile, dtype=jnp.int32)[:, None]
    return begin, (wanted <= row_T1) & (row_T1 < self.end)


def for_tiles(tile: int, num_rows: int, sizes_E, expert, init):
  """Runs `expert(e, loop, carry) -> carry` for every expert that has rows, in order.

  `loop(body, carry)` runs `body(begin, mine_T1, carry) -> carry` for the tiles of that expert.
  """
  E = sizes_E.shape[0]
  first_E, end_E = bounds(sizes_E)
  with_rows_E = jnp.argsort(sizes_E == 0, stable=True)

  def body(i, carry):
    e = with_rows_E[i]
    tiles = Tiles(tile, num_rows, first_E[e], end_E[e])

    def loop(body, carry):
      one = lambda t, carry: body(*tiles.at(t), carry)  # noqa: E731
      return _declared_loop(work.tile_trips(num_rows, E, tile), tiles.count, one, carry)

    return expert(e, loop, carry)

  return _declared_loop(work.expert_trips(num_rows, E), jnp.sum(sizes_E > 0), body, init)


def _declared_loop(trips: Trips, count, body, init):
  with jax.named_scope(f"loop[expected={trips.expected:g},max={trips.most:g}]"):
    return lax.fori_loop(0, count, body, init)
