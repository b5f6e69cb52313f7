"""A ring of stages in shared memory: one warpgroup fills them by bulk copies, two multiply what they hold."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels.hopper import compat
from jaxmoe.kernels.hopper.config import CHUNK
from jaxmoe.kernels.hopper.staging import staging

CONSUMERS = 2
COPIER_REGISTERS, CONSUMER_REGISTERS = 40, 232  # a thread; 504 = 40 + 2 * 232 of the 512 that a processor has


@dataclasses.dataclass(frozen=True)
class Ring:
  """Step s uses stage s % stages. The steps of one tile follow those of the tile before without a pause."""

  stages: int
  full: Any
  free: Any

  def stage(self, step):
    return lax.rem(step, jnp.int32(self.stages))

  def fill(self, step, copies):
    """Copy each (from, to) pair of `copies(stage)`, once the stage is free. Returns the next step."""
    stage = self.stage(step)
    pl.when(step >= self.stages)(lambda: plgpu.barrier_wait(self.free.at[stage]))
    for from_g, to_s in copies(stage):
      plgpu.copy_gmem_to_smem(from_g, to_s, self.full.at[stage])
    return step + 1

  def take(self, step):
    """Wait until the stage of this step is full. Returns the stage."""
    stage = self.stage(step)
    plgpu.barrier_wait(self.full.at[stage])
    return stage

  def release(self, step):
    """Give the stage of this step back: all that was read from it has been read."""
    plgpu.barrier_arrive(self.free.at[self.stage(step)])

  def drain(self, filled):
    """Wait until everything filled has been released."""

    def wait(step, _):
      plgpu.barrier_wait(self.free.at[self.stage(step)])

    lax.fori_loop(jnp.maximum(filled - self.stages, 0), filled, wait, None)


@dataclasses.dataclass(frozen=True)
class Lag:
  """The second consumer begins each tile `steps` after the first, so that one multiplies while the other one stores.

  Tiles must have more steps than the ring has stages, or none: the first consumer can then not signal twice before the
  second one has seen it, for it would need stages that the second one has not released.
  """

  steps: int
  consumer: Any
  ahead: Any

  def begin(self, depth):
    """The second consumer waits until the first is so far into this tile of `depth` steps."""
    if self.steps:
      pl.when((self.consumer > 0) & (depth > 0))(lambda: plgpu.barrier_wait(self.ahead))

  def passed(self, k):
    """Step k of the tile is under way, or skipped."""
    if self.steps:
      pl.when((self.consumer == 0) & (k == self.steps))(lambda: plgpu.barrier_arrive(self.ahead))


def run(
  buffers,
  *,
  stages: int,
  copies: int,
  dtype,
  copy: Callable,
  multiply: Callable,
  beside=(),
  columns: int = CHUNK,
  arrivals: int = CONSUMERS,
):
  """Run `copy` in one warpgroup and `multiply` in two, over a ring whose stages hold one of each of `buffers`.

  Args:
    buffers: (shape, dtype) of what one stage holds.
    copies: how many bulk copies fill a stage.
    dtype: of results.
    copy: (ring, *buffers) -> how many steps it filled.
    multiply: (consumer's number, ring, its staging slots, a barrier between consumers, *buffers) -> None.
    beside: (shape, dtype) of shared memory that no copy fills; `multiply` gets it after the buffers.
    columns: of the tiles that lie together in shared memory, at most.
    arrivals: of consumers, that complete a phase of the barrier between them.
  """
  warpgroup = lax.axis_index(compat.WARPGROUP_AXIS)

  def by_role(full, free, together, staging_s, *memory_s):
    ring = Ring(stages, full, free)

    @pl.when(warpgroup == CONSUMERS)
    def _():
      plgpu.set_max_registers(COPIER_REGISTERS, action="decrease")
      ring.drain(copy(ring, *memory_s[: len(buffers)]))

    @pl.when(warpgroup < CONSUMERS)
    def _():
      plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
      multiply(warpgroup, ring, staging_s.at[warpgroup], together, *memory_s)
      plgpu.wait_smem_to_gmem(0)

  pl.run_scoped(
    by_role,
    plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
    plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
    plgpu.Barrier(num_arrivals=arrivals),
    staging(CONSUMERS, dtype),
    *(shared_memory((stages, *shape), dtype, columns) for shape, dtype in buffers),
    *(shared_memory(shape, dtype, columns) for shape, dtype in beside),
    collective_axes=compat.WARPGROUP_AXIS,
  )


def shared_memory(shape: tuple[int, ...], dtype, columns: int):
  """Shared memory that bulk copies and tensor cores understand."""
  return plgpu.SMEM(shape, dtype, transforms=compat.swizzled(8, dtype, columns))


def each_turn(total, body, step):
  """step = body(turn, step) for every turn of this processor: every so many-th of `total`, as there are processors."""
  first, stride = lax.axis_index(compat.PROCESSOR_AXIS), jnp.int32(lax.axis_size(compat.PROCESSOR_AXIS))
  turns = lax.div(total - first + stride - 1, stride)
  return loop(turns, lambda i, step: body(first + i * stride, step), step)


def loop(count, body, carry):
  """carry = body(i, carry) for i below `count`, in 32 bits also where jax's integers have 64."""
  return lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), body, carry)
