"""Persistent, warp-specialised kernel over tiles of weights: each group's x, transposed, times its y."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels import work
from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.config import CHUNK, TileShape
from jaxmoe.kernels.hopper.parts import parts, products
from jaxmoe.kernels.hopper.ring import CONSUMERS, each_turn, loop, run
from jaxmoe.kernels.hopper.staging import store
from jaxmoe.kernels.hopper.tiles import ALIGN, aligned, group_rows, visit


def grouped_weights(x_ND, y_NF, sizes_E, *, shape: TileShape, processors: int):
  """w_EDF. One processor sums all rows of a tile in order, so the result never depends on timing.

  A group's first and last block of rows may hold rows of others. They are zeroed in shared memory, in both operands, so
  that nothing they hold enters; no other block is touched.
  """
  (N, D), F, E = x_ND.shape, y_NF.shape[1], sizes_E.shape[0]
  height_parts, width_parts = shape.parts
  height, width = shape.height // height_parts, shape.width // width_parts  # of a consumer's sum
  tiles, columns = D // shape.height, F // shape.width
  x_parts, y_parts = parts(aligned(x_ND)), parts(aligned(y_NF))
  pairs, dtype = products(len(x_parts), len(y_parts)), x_parts[0].dtype

  def kernel(groups_g, x_parts_g, y_parts_g, w_g):
    def tile_of(turn):
      """(group, tile, column, first row, blocks of rows: none for an empty group)."""
      place, within = (divide(turn, jnp.int32(tiles * columns)) for divide in (lax.div, lax.rem))
      group = groups_g.order[place]
      start, end = groups_g.start[group], groups_g.end[group]
      row = start - lax.rem(start, jnp.int32(ALIGN))
      blocks = jnp.where(end > start, lax.div(end - row + shape.depth - 1, jnp.int32(shape.depth)), 0)
      return group, *visit(within, tiles, columns, shape.band), row, blocks

    def copy(ring, x_s, y_s):
      def copy_tile(turn, step):
        _, tile, column, row, blocks = tile_of(turn)
        d, f = pl.ds(tile * shape.height, shape.height), pl.ds(column * shape.width, shape.width)

        def copy_pair(x_g, y_g, step):
          def copies(k, stage):
            rows = pl.ds(pl.multiple_of(row + k * shape.depth, ALIGN), shape.depth)
            return [(x_g.at[rows, d], x_s.at[stage]), (y_g.at[rows, f], y_s.at[stage])]

          return loop(blocks, lambda k, step: ring.fill(step, lambda stage: copies(k, stage)), step)

        for i, j in pairs:
          step = copy_pair(x_parts_g[i], y_parts_g[j], step)
        return step

      return every_turn(copy_tile)

    def multiply(consumer, ring, staging_s, together, x_s, y_s):
      height_part, width_part = (0, consumer) if shape.split_columns else (consumer, 0)
      mine_x, mine_y = pl.ds(height_part * height, height), pl.ds(width_part * width, width)

      def multiply_tile(turn, step):
        group, tile, column, row, blocks = tile_of(turn)
        start, end = groups_g.start[group], groups_g.end[group]
        depth = blocks * len(pairs)

        def multiply_blocks(sum_):
          def multiply_block(k, _):
            stage = ring.take(step + k)
            begin = row + (lax.rem(k, blocks) if len(pairs) > 1 else k) * shape.depth
            low, high = start - begin, end - begin

            @pl.when((low > 0) | (high < shape.depth))
            def _():
              zero_outside([x_s.at[stage], y_s.at[stage]], low, high, consumer)
              plgpu.barrier_arrive(together)
              plgpu.barrier_wait(together)

            plgpu.wgmma(sum_, x_s.at[stage, :, mine_x].transpose((1, 0)), y_s.at[stage, :, mine_y])
            plgpu.wgmma_wait(1)  # only this block's is under way: the block before it has been read
            pl.when(k > 0)(lambda: ring.release(step + k - 1))

          loop(depth, multiply_block, None)
          plgpu.wgmma_wait(0)
          pl.when(depth > 0)(lambda: ring.release(step + depth - 1))
          at = tile * shape.height + height_part * height, column * shape.width + width_part * width
          store(lambda sum_: (sum_,), [sum_[...]], [w_g.at[group]], staging_s, at, 0, height)

        pl.run_scoped(multiply_blocks, compat.accumulator((height, width)))
        return step + depth

      every_turn(multiply_tile)

    def every_turn(body):
      return each_turn(E * tiles * columns, body, jnp.int32(0))

    run(
      [((shape.depth, shape.height), dtype), ((shape.depth, shape.width), dtype)],
      stages=shape.stages,
      copies=2,
      dtype=x_ND.dtype,
      copy=copy,
      multiply=multiply,
    )

  out_type = compat.output((E, D, F), x_ND)
  row_bytes, result_bytes = 2 * len(pairs) * (D + F), x_ND.dtype.itemsize * E * D * F
  cost = pl.CostEstimate(
    flops=2 * N * D * F * len(pairs), bytes_accessed=N * row_bytes + result_bytes, transcendentals=0
  )
  declared_bytes = work.kernel_bytes(N, E, row_bytes=row_bytes, weight_bytes=0, result_bytes=result_bytes)
  call = compat.kernel(
    kernel,
    name="weight_gradient",
    out_type=out_type,
    processors=processors,
    rows=N,
    cost=cost,
    declared_bytes=declared_bytes,
  )
  return call(group_rows(sizes_E, N), x_parts, y_parts)


def zero_outside(blocks_s, low, high, consumer):
  """Zero the rows of blocks in shared memory below `low` and from `high` on; the consumers take turns at chunks."""
  chunks = [block_s.at[:, pl.ds(c, CHUNK)] for block_s in blocks_s for c in range(0, block_s.shape[1], CHUNK)]
  for i, chunk_s in enumerate(chunks):

    @pl.when(i % CONSUMERS == consumer)
    def _(chunk_s=chunk_s):
      row = plgpu.layout_cast(lax.broadcasted_iota(jnp.int32, chunk_s.shape, 0), plgpu.Layout.WGMMA)
      chunk = chunk_s[...]
      chunk_s[...] = jnp.where((row >= low) & (row < high), chunk, jnp.zeros_like(chunk))

  plgpu.commit_smem()
