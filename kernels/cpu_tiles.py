"""Grouped matmuls as XLA loops: over the experts that have rows, and over tiles of each expert's rows.

Work is that of the rows, rounded up to tiles, whatever the number of experts. The weights of an expert are copied once,
before its tiles; results are written in place, into rows of the whole result.
"""

import jax.numpy as jnp
from jax import lax

from jaxmoe.kernels import activations, dtypes, tiling, work
from jaxmoe.kernels.activations import Activation


def matmul(x_ND, w_EDF, sizes_E):
  (y_NF,) = _map_tiles(lambda x_TD, w_DF: (_dot(x_TD, w_DF),), [x_ND], [w_EDF], sizes_E, [w_EDF.shape[2]])
  return y_NF


def matmul_scaled(x_ND, w_EDF, scale_EF, sizes_E):
  def tile(x_TD, w_DF, scale_F):
    return (_dot(x_TD, w_DF.astype(x_TD.dtype)) * scale_F[None, :],)

  (y_NF,) = _map_tiles(tile, [x_ND], [w_EDF, scale_EF], sizes_E, [w_EDF.shape[2]])
  return y_NF


def matmul_transposed(y_NF, w_EDF, sizes_E):
  return matmuls_transposed([y_NF], [w_EDF], sizes_E)


def matmuls_transposed(rows_NF, weights_EDF, sizes_E):
  def tile(*operands):
    rows_TF, weights_DF = operands[: len(rows_NF)], operands[len(rows_NF) :]
    return (sum(_dot(y_TF, w_DF, 1, 1) for y_TF, w_DF in zip(rows_TF, weights_DF, strict=True)),)

  (x_ND,) = _map_tiles(tile, rows_NF, weights_EDF, sizes_E, [weights_EDF[0].shape[1]])
  return x_ND


def gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation: Activation):
  return _up(x_ND, [gate_EDF, up_EDF], sizes_E, activation)


def up(x_ND, up_EDF, sizes_E, activation: Activation):
  return _up(x_ND, [up_EDF], sizes_E, activation)


def _up(x_ND, weights_EDF, sizes_E, activation: Activation):
  def tile(x_TD, *weights_DF):
    pre = [_dot(x_TD, w_DF) for w_DF in weights_DF]
    return activations.hidden(activation, pre), *pre

  widths = [w_EDF.shape[2] for w_EDF in weights_EDF]
  return _map_tiles(tile, [x_ND], weights_EDF, sizes_E, [widths[0], *widths])


def weight_gradient(x_ND, y_NF, sizes_E):
  (N, D), F, E = x_ND.shape, y_NF.shape[1], sizes_E.shape[0]
  w_EDF = jnp.zeros_like(x_ND, shape=(E, D, F))
  if N == 0:
    return w_EDF
  tile = work.tile_rows(N, E)

  def expert(e, loop, w_EDF):
    def add(begin, mine_T1, w_DF):
      x_TD, y_TF = (jnp.where(mine_T1, lax.dynamic_slice_in_dim(rows, begin, tile), 0) for rows in (x_ND, y_NF))
      return w_DF + _dot(x_TD, y_TF, 0, 0)

    w_DF = loop(add, jnp.zeros_like(x_ND, shape=(D, F), dtype=dtypes.accumulator(x_ND.dtype)))
    return lax.dynamic_update_index_in_dim(w_EDF, w_DF.astype(w_EDF.dtype), e, 0)

  return tiling.for_tiles(tile, N, sizes_E, expert, w_EDF)


def _map_tiles(function, rows, weights, sizes_E, widths):
  """Arrays of N rows and the given widths: of each tile, the results of `function(*rows, *the expert's weights)`."""
  N, E = rows[0].shape[0], sizes_E.shape[0]
  results = tuple(jnp.zeros_like(rows[0], shape=(N, width)) for width in widths)
  if N == 0:
    return results
  tile = work.tile_rows(N, E)

  def expert(e, loop, results):
    held = [lax.dynamic_index_in_dim(w, e, keepdims=False) for w in weights]

    def write(begin, mine_T1, results):
      new = function(*(lax.dynamic_slice_in_dim(x, begin, tile) for x in rows), *held)
      return tuple(_write(result, part, begin, mine_T1) for result, part in zip(results, new, strict=True))

    return loop(write, results)

  return tiling.for_tiles(tile, N, sizes_E, expert, results)


def _write(result, rows, begin, mine_T1):
  """`result` with the rows at `begin` replaced where they are `mine_T1`; no other row is read into them."""
  before = lax.dynamic_slice_in_dim(result, begin, rows.shape[0])
  return lax.dynamic_update_slice_in_dim(result, jnp.where(mine_T1, rows.astype(result.dtype), before), begin, 0)


def _dot(left, right, left_dim: int = 1, right_dim: int = 0):
  """Product summed over one dimension of each, in float32 or wider."""
  dims = (((left_dim,), (right_dim,)), ((), ()))
  return lax.dot_general(left, right, dims, preferred_element_type=dtypes.accumulator(left.dtype))
