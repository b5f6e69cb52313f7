"""Mosaic TPU kernel over tiles of rows: out = epilogue(sums of x @ w), each row with its expert's weights.

Tiles lie at multiples of their height, so one that holds a boundary is visited once for each expert in it. Visits go
through the rows in order, once for each block of columns: every weight is copied once, and a tile's results stay in
fast memory until its last visit.
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

from jaxmoe.kernels import work

TILE_ROWS = 128
LANES = 128
VMEM_BYTES = 12 * 2**20  # of the 16 MiB that a kernel gets on the smallest device served


class Visits(NamedTuple):
  """Visit v multiplies tile `tile[v]` with the weights of `group[v]`; the first `count[0]` exist. E is no expert."""

  group: jax.Array
  tile: jax.Array
  start: jax.Array
  end: jax.Array
  count: jax.Array


def grouped_rows(
  terms: Sequence[tuple[jax.Array, Sequence[jax.Array]]],
  sizes_E,
  epilogue: Callable,
  *,
  outputs: int,
  transposed: bool,
  width: int,
):
  """`outputs` arrays of N rows: epilogue(acc_1, acc_2, ...), where acc_i sums x @ w_i over the terms (x, (w_1, ...)).

  Args:
    terms: rows of one length and width K, each with weights of one shape: EKF, or EFK if `transposed`.
    epilogue: float32 accumulators of one tile to a tuple of `outputs` tiles; elementwise.
    width: columns of a block, from `block_width`.
  """
  rows, weights = [x for x, _ in terms], [w for _, ws in terms for w in ws]
  (N, K), E, F = rows[0].shape, weights[0].shape[0], weights[0].shape[1 if transposed else 2]
  height = min(TILE_ROWS, N)
  visits = _visits(sizes_E, N, height)
  at_tile = lambda f, v, group, tile, *_: (tile[v], 0)  # noqa: E731
  at_block = lambda f, v, group, tile, *_: (tile[v], f)  # noqa: E731

  def at_weight(f, v, group, *_):
    e = jnp.minimum(group[v], E - 1)
    return (e, f, 0) if transposed else (e, 0, f)

  weight_block = (None, width, K) if transposed else (None, K, width)
  beside = len(terms[0][1])
  call = pl.pallas_call(
    functools.partial(_visit, len(rows), beside, epilogue, E, height, 1 if transposed else 0),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(visits),
      grid=(F // width, visits.tile.shape[0]),
      in_specs=[
        *(pl.BlockSpec((height, K), at_tile) for _ in rows),
        *(pl.BlockSpec(weight_block, at_weight) for _ in weights),
      ],
      out_specs=[pl.BlockSpec((height, width), at_block)] * outputs,
    ),
    out_shape=[jax.ShapeDtypeStruct((N, F), rows[0].dtype, manual_axis_type=jax.typeof(rows[0]).manual_axis_type)]
    * outputs,
    cost_estimate=pl.CostEstimate(
      flops=2 * N * K * F * len(weights),
      transcendentals=N * F if outputs > 1 else 0,
      bytes_accessed=_bytes(rows) * (F // width) + _bytes(weights) + outputs * N * F * rows[0].dtype.itemsize,
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
  )
  declared_bytes = work.kernel_bytes(
    N,
    E,
    row_bytes=_bytes(rows) / N * (F // width),  # once for each block of columns
    weight_bytes=_bytes(weights),
    result_bytes=outputs * N * F * rows[0].dtype.itemsize,
  )
  with jax.named_scope(work.kernel_scope(2 * K * F * len(weights), N, declared_bytes)):
    return call(*visits, *rows, *weights)


def _visit(
  terms: int, beside: int, epilogue, E: int, height: int, contracted: int, group, tile, start, end, count, *refs
):
  rows, weights, results = refs[:terms], refs[terms : terms + terms * beside], refs[terms + terms * beside :]
  v = pl.program_id(1)

  @pl.when(v < count[0])
  def _():
    dims = (((1,), (contracted,)), ((), ()))
    multiply = lambda x, w: lax.dot_general(x[...], w[...], dims, preferred_element_type=jnp.float32)  # noqa: E731
    sums = [functools.reduce(jnp.add, map(multiply, rows, weights[j::beside])) for j in range(beside)]
    e, t = group[v], tile[v]
    is_first = (v == 0) | (tile[jnp.maximum(v - 1, 0)] != t)
    row = t * height + lax.broadcasted_iota(jnp.int32, results[0].shape, 0)
    is_mine = (start[e] <= row) & (row < end[e]) & (e < E)
    for result, new in zip(results, epilogue(*sums), strict=True):
      before = jnp.where(is_first, 0.0, result[...].astype(jnp.float32))
      result[...] = jnp.where(is_mine, new, before).astype(result.dtype)


def _visits(sizes_E, N: int, height: int) -> Visits:
  """Visits in order of rows; the rows of no expert count as expert E's. Visits that do not exist repeat the last."""
  E = sizes_E.shape[0]
  end_G = jnp.append(jnp.cumsum(sizes_E), N).astype(jnp.int32)
  start_G = jnp.concatenate([jnp.zeros_like(end_G[:1]), end_G[:-1]])
  first_G = start_G // height
  visits_G = jnp.where(end_G > start_G, (end_G - 1) // height - first_G + 1, 0)
  past_G = jnp.cumsum(visits_G)
  v = jnp.minimum(jnp.arange(math.ceil(N / height) + E, dtype=jnp.int32), past_G[-1] - 1)
  group = jnp.sum(v[:, None] >= past_G[None, :-1], axis=1, dtype=jnp.int32)
  tile = first_G[group] + v - (past_G - visits_G)[group]
  return Visits(group, tile, start_G, end_G, past_G[-1:])


def block_width(x_NK, columns: int, *, terms: int, beside: int, outputs: int) -> int | None:
  """The most columns of a block that divide all `columns` and fit into fast memory twice; None if none do."""
  K, size = x_NK.shape[1], x_NK.dtype.itemsize
  for width in range(columns, 0, -LANES):
    blocks = terms * TILE_ROWS * K + terms * beside * K * width + outputs * TILE_ROWS * width
    if columns % width == 0 and 2 * size * blocks + 4 * beside * TILE_ROWS * width <= VMEM_BYTES:
      return width
  return None


def _bytes(arrays) -> int:
  return sum(x.size * x.dtype.itemsize for x in arrays)
