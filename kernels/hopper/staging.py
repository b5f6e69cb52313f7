"""A tile's way from registers through shared memory to device memory."""

import itertools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.config import CHUNK

SLOTS = 2


def staging(consumers: int, dtype):
  """Two slots a consumer, so that one fills while the other is copied out; a row of one has 128 bytes.

  Rows are tiles of their own, because a copy out starts at any row; 128 bytes wide, they lie as in 8-row tiles.
  """
  shape = (consumers, SLOTS, CHUNK, compat.swizzled_columns(dtype))
  return plgpu.SMEM(shape, dtype, transforms=compat.swizzled(1, dtype))


def store(epilogue, sums, outputs_g, staging_s, at, low, high):
  """Write rows `low` up to `high` of `epilogue(*sums)` to the outputs; `at` is where the sums' corner lies there.

  The epilogue is taken chunk by chunk, so that its results never fill the registers.
  """
  (row, column), (rows, columns) = at, sums[0].shape
  slots, chunk = itertools.cycle(range(SLOTS)), staging_s.shape[-1]
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the copies of the tile before, long done
  for r, c in itertools.product(range(0, rows, CHUNK), range(0, columns, chunk)):
    within = jnp.clip(low - r, 0, CHUNK), jnp.clip(high - r, 0, CHUNK)
    results = epilogue(*(sum_[r : r + CHUNK, c : c + chunk] for sum_ in sums))
    for result, out_g in zip(results, outputs_g, strict=True):
      slot_s = staging_s.at[next(slots)]
      plgpu.wait_smem_to_gmem(SLOTS - 1, wait_read_only=True)  # the copy from this slot has read it
      slot_s[...] = result.astype(slot_s.dtype)
      plgpu.commit_smem()
      _copy_rows(slot_s, out_g.at[:, pl.ds(column + c, chunk)], row + r, *within)


def _copy_rows(slot_s, out_g, row, low, high):
  """Copy rows `low` up to `high` of a slot: all of them in one copy, fewer in one for each bit of their count.

  The length of a copy is static, hence the bits. All copies of a slot are one group, which `store` waits for; to the
  interpreter a group without copies is none, so it is made up for by waiting at once.
  """

  def copy(low, length):
    plgpu.copy_smem_to_gmem(slot_s.at[pl.ds(low, length)], out_g.at[pl.ds(row + low, length)], commit_group=False)

  @pl.when(high - low == CHUNK)
  def _():
    copy(0, CHUNK)
    plgpu.commit_smem_to_gmem_group()

  @pl.when(high - low < CHUNK)
  def _():
    length, start = CHUNK // 2, low
    while length:
      pl.when((high - low) & length != 0)(lambda start=start, length=length: copy(start, length))
      start = start + ((high - low) & length)
      length //= 2
    plgpu.commit_smem_to_gmem_group()

    @pl.when(high <= low)
    def _():
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
