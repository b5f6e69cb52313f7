"""Persistent kernel over tiles of rows whose weights are FP8: out = (x @ w) scale, each row with its group's w.

Tensor cores multiply operands of equal width, so the consumers widen a step's weights, exactly, on their way: from the
stage through registers into one of two buffers of 16 bits, while the step before is multiplied from the other one.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels import work
from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.config import CHUNK, WIDENED, TileShape
from jaxmoe.kernels.hopper.parts import parts, products
from jaxmoe.kernels.hopper.ring import CONSUMERS, loop, run
from jaxmoe.kernels.hopper.rows import RowTurns
from jaxmoe.kernels.hopper.staging import store
from jaxmoe.kernels.hopper.tiles import aligned, row_tiles


def grouped_rows_scaled(x_ND, w_EDF, scale_EF, sizes_E, *, shape: TileShape, processors: int):
  """y_NF: `grouped_rows` of one term, whose FP8 weights' columns count `scale_EF` times. Rows past the sum are 0."""
  (N, D), (E, _, F) = x_ND.shape, w_EDF.shape
  row_parts, column_parts = shape.parts
  height, width = shape.height // row_parts, shape.width // column_parts  # of a consumer's sum
  x_parts = parts(aligned(x_ND))
  passes = products(len(x_parts), 1)

  def kernel(tiles_g, x_parts_g, w_g, scale_g, y_g):
    turns = RowTurns(tiles_g, E, F // shape.width, D // shape.depth, shape.band)

    def copy(ring, x_s, w_s):
      def copy_tile(turn, step):
        tile, column, row, depth = turns.at(turn)
        group, rows, f = tiles_g.group[tile], pl.ds(row, shape.height), pl.ds(column * shape.width, shape.width)

        def copy_part(x_g, step):
          def copies(k, stage):
            k = pl.ds(k * shape.depth, shape.depth)
            return [(x_g.at[rows, k], x_s.at[stage]), (w_g.at[group, k, f], w_s.at[stage])]

          return loop(depth, lambda k, step: ring.fill(step, lambda stage: copies(k, stage)), step)

        for i, _ in passes:
          step = copy_part(x_parts_g[i], step)
        return step

      return turns.each(copy_tile)

    def multiply(consumer, ring, staging_s, together, x_s, w_s, wide_s):
      row_part, column_part = (0, consumer) if shape.split_columns else (consumer, 0)
      mine_x, mine_w = pl.ds(row_part * height, height), pl.ds(column_part * width, width)

      def widen_step(step):
        """Both consumers' parts of a step's weights, in 16 bits. Returns the stage and the buffer."""
        stage, buffer = ring.take(step), lax.rem(step, jnp.int32(WIDENED))
        widen(w_s.at[stage], wide_s.at[buffer], consumer)
        return stage, buffer

      def meet():
        plgpu.barrier_arrive(together)
        plgpu.barrier_wait(together)

      def multiply_tile(turn, step):
        tile, column, row, depth = turns.at(turn)
        depth = depth * len(passes)
        low, high = turns.within(tile, row_part * height, height)
        at = row + row_part * height, column * shape.width + column_part * width

        def multiply_steps(sum_):
          def multiply_step(k, _):
            stage, buffer = widen_step(step + k)
            plgpu.wgmma_wait(0)  # before both meet: then the other buffer may be written again
            pl.when(k > 0)(lambda: ring.release(step + k - 1))
            meet()
            plgpu.wgmma(sum_, x_s.at[stage, mine_x], wide_s.at[buffer, :, mine_w])

          loop(depth, multiply_step, None)
          factor_F = column_scales(scale_g, tiles_g.group[tile], at[1], width)  # read while the last step is multiplied
          plgpu.wgmma_wait(0)
          pl.when(depth > 0)(lambda: ring.release(step + depth - 1))
          scaled = sum_[...] * lax.broadcast_in_dim(factor_F, (height, width), (1,))
          store(lambda sum_: (sum_,), [scaled], [y_g], staging_s, at, low, high)

        def only_widen(k, _):
          widen_step(step + k)
          meet()
          ring.release(step + k)

        pl.when(high > low)(lambda: pl.run_scoped(multiply_steps, compat.accumulator((height, width))))
        pl.when(high <= low)(lambda: loop(depth, only_widen, None))  # a consumer without rows in this tile
        return step + depth

      turns.each(multiply_tile)

    run(
      [((shape.height, shape.depth), x_parts[0].dtype), ((shape.depth, shape.width), w_EDF.dtype)],
      stages=shape.stages,
      copies=2,
      dtype=x_ND.dtype,
      copy=copy,
      multiply=multiply,
      beside=[((WIDENED, shape.depth, shape.width), x_parts[0].dtype)],
    )

  row_bytes, weight_bytes, result_bytes = 2 * D, E * (D * F + 4 * F), x_ND.dtype.itemsize * N * F
  call = compat.kernel(
    kernel,
    name="matmul_scaled",
    out_type=compat.output((N, F), x_ND),
    processors=processors,
    rows=N,
    cost=pl.CostEstimate(
      flops=2 * N * D * F * len(passes),
      bytes_accessed=len(passes) * (N * row_bytes + weight_bytes) + result_bytes,
      transcendentals=0,
    ),
    declared_bytes=work.kernel_bytes(
      N, E, row_bytes=len(passes) * row_bytes, weight_bytes=len(passes) * weight_bytes, result_bytes=result_bytes
    ),
  )
  return call(row_tiles(sizes_E, N, shape.height), x_parts, w_EDF, scale_EF)


def widen(narrow_s, wide_s, consumer):
  """Write FP8 values in 16 bits: this consumer's half of the columns. Through float32: bfloat16 has no direct way."""
  half = narrow_s.shape[1] // CONSUMERS
  for c in range(0, half, CHUNK):
    chunk = pl.ds(consumer * half + c, CHUNK)
    narrow = plgpu.load(narrow_s.at[:, chunk], layout=plgpu.Layout.WGMMA_UPCAST_4X)  # 8 values a thread side by side
    wide_s[:, chunk] = narrow.astype(jnp.float32).astype(wide_s.dtype)
  plgpu.commit_smem()


def column_scales(scale_g, group, column, width: int):
  """Scales of a tile's columns, F, and 0 for the tiles of no group, so that nothing enters there."""
  last = scale_g.shape[0] - 1
  layout = plgpu.Layout.WGMMA.reduce(0)
  factor_F = plgpu.load(scale_g.at[jnp.minimum(group, last), pl.ds(column, width)], layout=layout, optimized=False)
  return jnp.where(lax.broadcast_in_dim(group <= last, (width,), ()), factor_F, jnp.zeros_like(factor_F))
