"""Persistent, warp-specialised kernel over tiles of rows: out = epilogue(sum of x @ w), each row with its group's w."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels import work
from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.kernels.hopper.parts import parts, products
from jaxmoe.kernels.hopper.ring import Lag, each_turn, loop, run
from jaxmoe.kernels.hopper.staging import store
from jaxmoe.kernels.hopper.tiles import ALIGN, RowTiles, aligned, row_tiles, visit

Term = tuple[jax.Array, Sequence[jax.Array]]


@dataclasses.dataclass(frozen=True, slots=True)
class RowTurns:
  """The turns of a processor: over tiles that exist, each once for every block of columns."""

  tiles_g: RowTiles
  groups: int
  columns: int
  steps: int
  band: int

  def each(self, body):
    """The last of `step = body(turn, step)`."""
    return each_turn(self._tiles() * self.columns, body, jnp.int32(0))

  def _tiles(self):
    return self.tiles_g.before[self.groups + 1]

  def at(self, turn):
    """(tile, column, the tile's first row, steps of a sum: none for rows past the last group)."""
    tile, column = visit(turn, self._tiles(), self.columns, self.band)
    steps = jnp.where(self.tiles_g.group[tile] < self.groups, jnp.int32(self.steps), 0)
    return tile, column, pl.multiple_of(self.tiles_g.row[tile], ALIGN), steps

  def within(self, tile, begin, height: int):
    """Which rows are the group's, of the tile's `height` rows from `begin` on."""
    return tuple(jnp.clip(edge[tile] - begin, 0, height) for edge in (self.tiles_g.low, self.tiles_g.high))


def grouped_rows(
  terms: Sequence[Term],
  sizes_E,
  epilogue: Callable,
  *,
  outputs: int,
  transposed: bool,
  shape: TileShape,
  processors: int,
  name: str,
  approximate: bool = True,
):
  """`outputs` arrays of N rows: epilogue(sum_1, ...), sum_i being that of x @ w_i over the terms (x, (w_1, ...)).

  Rows past the last group are zero: their tiles have no depth to sum over, and the epilogue of zeros is zero.

  Args:
    terms: x_ND with weights EDF, or EFD if `transposed`; every x of one shape, and every weight; of one dtype.
    epilogue: float32 sums to `outputs` results; elementwise, and 0 at 0.
    approximate: whether the epilogue may use the hardware's exponential and hyperbolic tangent.
  """
  x_ND, weights = terms[0]
  (N, D), F = x_ND.shape, weights[0].shape[1 if transposed else 2]
  E, beside = weights[0].shape[0], len(weights)
  row_parts, column_parts = shape.parts
  height, width = shape.height // row_parts, shape.width // (beside * column_parts)  # of a consumer's sum
  steps, columns = D // shape.depth, F // (width * column_parts)
  split = [(parts(aligned(x)), [parts(w) for w in weights]) for x, weights in terms]
  narrow = split[0][0]
  pairs = products(len(narrow), len(narrow))
  passes = len(terms) * len(pairs)
  lag = shape.lag if steps * passes > shape.stages else 0

  def kernel(tiles_g, terms_g, *outputs_g):
    turns = RowTurns(tiles_g, E, columns, steps, shape.band)

    def copy(ring, x_s, w_s):
      def copy_tile(turn, step):
        tile, column, row, depth = turns.at(turn)
        group, rows = jnp.minimum(tiles_g.group[tile], E - 1), pl.ds(row, shape.height)
        f = pl.ds(column * width * column_parts, width * column_parts)

        def copy_term(x_g, weights_g, step):
          def copies(k, stage):
            k = pl.ds(k * shape.depth, shape.depth)
            yield x_g.at[rows, k], x_s.at[stage]
            for i, w_g in enumerate(weights_g):
              yield w_g.at[(group, f, k) if transposed else (group, k, f)], w_s.at[stage, i]

          return loop(depth, lambda k, step: ring.fill(step, lambda stage: copies(k, stage)), step)

        for x_parts, weights_parts in terms_g:
          for i, j in pairs:
            step = copy_term(x_parts[i], [w_parts[j] for w_parts in weights_parts], step)
        return step

      return turns.each(copy_tile)

    def multiply(consumer, ring, staging_s, ahead, x_s, w_s):
      lagging = Lag(lag, consumer, ahead)
      row_part, column_part = (0, consumer) if shape.split_columns else (consumer, 0)
      mine_x, mine_w = pl.ds(row_part * height, height), pl.ds(column_part * width, width)

      def multiply_tile(turn, step):
        tile, column, row, depth = turns.at(turn)
        depth = depth * passes
        low, high = turns.within(tile, row_part * height, height)

        def multiply_steps(*sums):
          def multiply_step(k, _):
            stage = ring.take(step + k)
            for i, sum_ in enumerate(sums):
              w = w_s.at[stage, i, mine_w].transpose((1, 0)) if transposed else w_s.at[stage, i, :, mine_w]
              plgpu.wgmma(sum_, x_s.at[stage, mine_x], w)
            lagging.passed(k)
            plgpu.wgmma_wait(beside)  # only this step's are under way: the stage before it has been read
            pl.when(k > 0)(lambda: ring.release(step + k - 1))

          loop(depth, multiply_step, None)
          plgpu.wgmma_wait(0)
          pl.when(depth > 0)(lambda: ring.release(step + depth - 1))
          at = row + row_part * height, (column * column_parts + column_part) * width
          store(epilogue, [sum_[...] for sum_ in sums], outputs_g, staging_s, at, low, high)

        def skip_step(k, _):
          ring.take(step + k)
          lagging.passed(k)
          ring.release(step + k)

        lagging.begin(depth)
        sums = [compat.accumulator((height, width))] * beside
        pl.when(high > low)(lambda: pl.run_scoped(multiply_steps, *sums))
        pl.when(high <= low)(lambda: loop(depth, skip_step, None))  # a consumer without rows in this tile
        return step + depth

      turns.each(multiply_tile)

    w_shape = (width * column_parts, shape.depth) if transposed else (shape.depth, width * column_parts)
    run(
      [((shape.height, shape.depth), narrow[0].dtype), ((beside, *w_shape), narrow[0].dtype)],
      stages=shape.stages,
      copies=1 + beside,
      dtype=x_ND.dtype,
      copy=copy,
      multiply=multiply,
      columns=shape.depth,
      arrivals=1,
    )

  out_type = [compat.output((N, F), x_ND)] * outputs
  row_bytes, weight_bytes, result_bytes = 2 * D, 2 * beside * E * D * F, x_ND.dtype.itemsize * outputs * N * F
  cost = pl.CostEstimate(
    flops=2 * N * D * F * beside * passes,
    bytes_accessed=passes * (N * row_bytes + weight_bytes) + result_bytes,
    transcendentals=0,
  )
  declared_bytes = work.kernel_bytes(
    N, E, row_bytes=passes * row_bytes, weight_bytes=passes * weight_bytes, result_bytes=result_bytes
  )
  call = compat.kernel(
    kernel,
    name=name,
    out_type=out_type,
    processors=processors,
    rows=N,
    cost=cost,
    declared_bytes=declared_bytes,
    approximate=approximate,
  )
  return call(row_tiles(sizes_E, N, shape.height), split)
