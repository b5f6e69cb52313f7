"""Mosaic TPU kernel over tiles of rows: out = epilogue(sums of x @ w), each row with its expert's weights.

Tiles lie at multiples of their height, so one that holds a boundary is visited once for each expert in it, and each
visit multiplies only its expert's rows, rounded outwards. Visits go through the rows in order, once for each block of
columns: every weight is copied once, and a tile's results stay in fast memory until its last visit. Of a K too deep
for that, each visit takes a part after the other, and keeps its sums.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxmoe.kernels import tpu_blocks, work
from jaxmoe.kernels.tpu_blocks import LANES, SUBLANES, Blocks, Job
from jaxmoe.kernels.tpu_chip import Chip

TAILS = (16, 32, 64, 128)  # rows of a multiplication that a chunk would pad


class Visits(NamedTuple):
  """Visit v multiplies `rows[v]` rows from `first[v]` of tile `tile[v]` with the weights of `group[v]`.

  The first `count[0]` exist. Where a tile holds no expert's rows, none are multiplied, and `source[v]` and `group[v]`
  repeat, so that nothing is copied for it.
  """

  group: jax.Array
  tile: jax.Array
  source: jax.Array
  first: jax.Array
  rows: jax.Array
  start: jax.Array
  end: jax.Array
  count: jax.Array


def grouped_rows(
  terms: Sequence[tuple[jax.Array, Sequence[jax.Array]]],
  sizes_E,
  epilogue: Callable,
  job: Job,
  blocks: Blocks,
  chip: Chip,
):
  """`job.outputs` arrays of N rows: epilogue(acc_1, ..), where acc_i sums x @ w_i over the terms (x, (w_1, ..)).

  Args:
    terms: rows of one length and width K, each with weights of one shape: EKF, or EFK if the job is transposed.
    epilogue: float32 accumulators of some rows to a tuple of results; elementwise.
  """
  rows, weights = [x for x, _ in terms], [w for _, ws in terms for w in ws]
  visits = visits_of(sizes_E, job.N, blocks.height, chip.rows)
  result = jax.ShapeDtypeStruct((job.N, job.F), rows[0].dtype, manual_axis_type=jax.typeof(rows[0]).manual_axis_type)
  result_bytes = job.outputs * job.N * job.F * job.itemsize
  flops_a_row = 2 * job.K * job.F * job.weights
  call = pl.pallas_call(
    functools.partial(_visit, job, blocks, chip, epilogue),
    grid_spec=_grid(job, blocks, visits),
    out_shape=[result] * job.outputs,
    cost_estimate=pl.CostEstimate(
      flops=flops_a_row * job.N,
      transcendentals=job.N * job.F if job.outputs > 1 else 0,
      bytes_accessed=tpu_blocks.once_bytes(job),
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
  )
  row_passes, weight_passes = tpu_blocks.passes(job, blocks)
  declared_bytes = work.kernel_bytes(
    job.N,
    job.E,
    row_bytes=job.terms * job.K * job.itemsize * row_passes,
    weight_bytes=weight_passes * sum(w.size * w.dtype.itemsize for w in weights),
    result_bytes=result_bytes,
  )
  scope = jax.named_scope(work.kernel_scope(flops_a_row, job.N, declared_bytes))
  with scope, jax.enable_x64(False):  # Mosaic has no integers of 64 bits, which jax's own would be
    return call(*visits, *rows, *weights)


def _grid(job: Job, blocks: Blocks, visits: Visits):
  height, width, depth = blocks
  parts = job.K // depth

  def part(k, v, visits: Visits):
    """Of K; where nothing is multiplied, the last one stays, so that nothing is copied."""
    return jnp.where((v < visits.count[0]) & (visits.rows[v] > 0), k, parts - 1) if parts > 1 else 0

  def at_rows(f, v, k, *refs):
    visits = Visits(*refs)
    return visits.source[v], part(k, v, visits)

  def at_weight(f, v, k, *refs):
    visits = Visits(*refs)
    place = (f, part(k, v, visits)) if job.transposed else (part(k, v, visits), f)
    return visits.group[v], *place

  def at_result(f, v, k, *refs):
    return Visits(*refs).tile[v], f

  weight = pl.BlockSpec((None, width, depth) if job.transposed else (None, depth, width), at_weight)
  kept = [pltpu.VMEM((height, width), jnp.float32)] * job.beside
  return pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=len(visits),
    grid=(pl.cdiv(job.F, width), visits.tile.shape[0], parts),
    in_specs=[pl.BlockSpec((height, depth), at_rows)] * job.terms + [weight] * job.weights,
    out_specs=[pl.BlockSpec((height, width), at_result)] * job.outputs,
    scratch_shapes=kept if parts > 1 else [],
  )


def _visit(job: Job, blocks: Blocks, chip: Chip, epilogue: Callable, *refs):
  """One step of the grid: multiplies a visit's rows with a block of columns, some rows and columns at a time."""
  count, parts = len(Visits._fields), job.K // blocks.depth
  operands, rest = refs[count : count + job.terms + job.weights], refs[count + job.terms + job.weights :]
  visits, results, kept = Visits(*refs[:count]), rest[: job.outputs], rest[job.outputs :]
  height, width, v, k = blocks.height, blocks.width, pl.program_id(1), pl.program_id(2)
  chunk, columns = min(chip.rows, height), tpu_blocks.columns(job, width, chip)
  group, tile = visits.group[v], visits.tile[v]
  inside = width if job.F % width == 0 else jnp.minimum(width, job.F - pl.program_id(0) * width)

  def multiply(turn, size):
    at = pl.multiple_of(jnp.minimum(visits.first[v] + turn * chunk, height - size), SUBLANES)
    row = tile * height + at + lax.broadcasted_iota(jnp.int32, (size, columns), 0)
    is_mine = (visits.start[group] <= row) & (row < visits.end[group])

    def one_block(block, _):
      here = pl.ds(at, size), pl.ds(pl.multiple_of(block * columns, LANES), columns)

      def finish(sums):
        for result, new in zip(results, epilogue(*sums), strict=True):
          before = result[here].astype(jnp.float32)
          result[here] = jnp.where(is_mine, new, before).astype(result.dtype)

      sums = _sums(job, blocks, operands, *here)
      if parts == 1:
        return finish(sums)
      for all_, new in zip(kept, sums, strict=True):
        all_[here] = jnp.where(k == 0, new, all_[here] + new)
      pl.when(k == parts - 1)(lambda: finish([all_[here] for all_ in kept]))

    lax.fori_loop(0, pl.cdiv(inside, columns), one_block, None)

  @pl.when((v < visits.count[0]) & (k == 0) & ((v == 0) | (visits.tile[jnp.maximum(v - 1, 0)] != tile)))
  def _():
    for result in results:
      result[...] = jnp.zeros_like(result)

  @pl.when(v < visits.count[0])
  def _():
    turns = lax.div(visits.rows[v], chunk)
    lax.fori_loop(0, turns, lambda turn, _: multiply(turn, chunk), None)
    for size in _tails(chunk)[:-1]:
      pl.when(lax.rem(visits.rows[v], chunk) == size)(functools.partial(multiply, turns, size))


def _sums(job: Job, blocks: Blocks, operands, rows: pl.Slice, columns: pl.Slice) -> list[jax.Array]:
  """Float32 sums, rows x columns, of as many products as there are weights beside each other."""
  depth, dims = tpu_blocks.depth(blocks.depth), (((1,), (1 if job.transposed else 0,)), ((), ()))
  terms, weights = operands[: job.terms], operands[job.terms :]

  def add(step, sums):
    deep = pl.ds(pl.multiple_of(step * depth, LANES), depth)
    part = (columns, deep) if job.transposed else (deep, columns)

    def dot(x, w):  # bfloat16's products are exact, whatever precision is asked of others
      precise = {"precision": lax.Precision.DEFAULT, "preferred_element_type": jnp.float32}
      return lax.dot_general(x[rows, deep], w[part], dims, **precise)

    return [functools.reduce(jnp.add, map(dot, terms, weights[j :: job.beside]), sums[j]) for j in range(job.beside)]

  return lax.fori_loop(0, blocks.depth // depth, add, [jnp.zeros((rows.size, columns.size), jnp.float32)] * job.beside)


def visits_of(sizes_E, N: int, height: int, chunk: int) -> Visits:
  """Visits in order of rows, first those of experts, then of rows that have none. Those that do not exist repeat."""
  E, chunk = sizes_E.shape[0], min(chunk, height)
  end_G = jnp.append(jnp.cumsum(sizes_E), N).astype(jnp.int32)  # the last group's rows are no expert's
  start_G = jnp.concatenate([jnp.zeros_like(end_G[:1]), end_G[:-1]])
  first_G = start_G // height
  visits_G = jnp.where(end_G > start_G, (end_G - 1) // height - first_G + 1, 0)
  past_G = jnp.cumsum(visits_G)

  def at(v):
    group = jnp.sum(v[:, None] >= past_G[None, :-1], axis=1, dtype=jnp.int32)
    return group, first_G[group] + v - (past_G - visits_G)[group]

  v = jnp.minimum(jnp.arange(math.ceil(N / height) + E, dtype=jnp.int32), past_G[-1] - 1)
  group, tile = at(v)
  held, source = at(jnp.clip(v, 0, jnp.maximum(past_G[-2] - 1, 0)))
  first = jnp.maximum(start_G[group] - tile * height, 0) // SUBLANES * SUBLANES
  needed = jnp.minimum(end_G[group] - tile * height, height) - first
  rows = jnp.where(group < E, _rounded(needed, chunk), 0)
  return Visits(jnp.minimum(held, E - 1), tile, source, first, rows, start_G, end_G, past_G[-1:])


def _rounded(rows, chunk: int):
  """Chunks and a tail that hold so many rows."""
  rest = rows % chunk
  tail = functools.reduce(lambda larger, size: jnp.where(rest <= size, size, larger), reversed(_tails(chunk)))
  return rows - rest + jnp.where(rest > 0, tail, 0)


def _tails(chunk: int) -> tuple[int, ...]:
  return (*(size for size in TAILS if size < chunk), chunk)
