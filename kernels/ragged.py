"""Grouped matmuls by `jax.lax.ragged_dot`, which does the work of the rows on TPU, if their number is a multiple of 8.

Else, on CPU and, as compiled without cuDNN, on CUDA, XLA makes it the work of every expert on every row, with zeros for
rows that are not the expert's. There a NaN or an infinity in the weights or scales of one expert, even of one without
rows, makes the results of all rows NaN, because masking them would cost a pass over all weights; `cpu_tiles` reads
the weights of an expert for its own rows only.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.kernels import activations, dtypes, work
from jaxmoe.kernels.activations import Activation
from jaxmoe.kernels.rows import zero_unowned


def matmul(x_ND, w_EDF, sizes_E):
  return _sums(x_ND, w_EDF, sizes_E).astype(x_ND.dtype)


def matmul_scaled(x_ND, w_EDF, scale_EF, sizes_E):
  # The compiler's kernel takes no scales, so the weights are widened first.
  return matmul(x_ND, (w_EDF.astype(scale_EF.dtype) * scale_EF[:, None, :]).astype(x_ND.dtype), sizes_E)


def matmul_transposed(y_NF, w_EDF, sizes_E):
  # Spelt as a matmul of a transpose, which the TPU compiler makes of it anyway: where it does so itself, the kernel
  # loses its name, and with it the scope that declares its work.
  return matmul(y_NF, jnp.swapaxes(w_EDF, 1, 2), sizes_E)


def matmuls_transposed(rows_NF, weights_EDF, sizes_E):
  pairs = zip(rows_NF, weights_EDF, strict=True)
  return functools.reduce(jnp.add, (matmul_transposed(y_NF, w_EDF, sizes_E) for y_NF, w_EDF in pairs))


def weight_gradient(x_ND, y_NF, sizes_E):
  # Nothing promises that a row of no expert, times a masked one, is left out where it holds NaN.
  return weight_gradient_masked(zero_unowned(x_ND, sizes_E), zero_unowned(y_NF, sizes_E), sizes_E)


def weight_gradient_masked(x_ND, y_NF, sizes_E):
  """`weight_gradient` where rows of no expert hold zeros, or the compiler masks both operands."""
  return _ragged_dot(x_ND, y_NF, sizes_E, _dims(0, 0, rhs_group=[])).astype(x_ND.dtype)


def gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation: Activation):
  return _up(x_ND, [gate_EDF, up_EDF], sizes_E, activation)


def up(x_ND, up_EDF, sizes_E, activation: Activation):
  return _up(x_ND, [up_EDF], sizes_E, activation)


def _up(x_ND, weights_EDF, sizes_E, activation: Activation):
  wide = [_sums(x_ND, w_EDF, sizes_E).astype(dtypes.accumulator(x_ND.dtype)) for w_EDF in weights_EDF]
  hidden_NF, *pre = (rows_NF.astype(x_ND.dtype) for rows_NF in (activations.hidden(activation, wide), *wide))
  return hidden_NF, *pre


def _sums(x_ND, w_EDF, sizes_E):
  return zero_unowned(_ragged_dot(x_ND, w_EDF, sizes_E, _dims(1, 1, rhs_group=[0])), sizes_E)


def _ragged_dot(left, right, sizes_E, dims):
  # The TPU kernel sums products in float32 and rounds once: asked for float32, it only writes more bytes. But it cannot
  # store float16, which also holds less than it sums.
  stored = jnp.float32 if left.dtype == jnp.float16 else left.dtype
  with jax.named_scope(_declared(left, right, sizes_E.shape[0])):
    return lax.ragged_dot_general(left, right, sizes_E, dims, preferred_element_type=stored)


def _declared(left, right, num_experts: int) -> str:
  """Each element of a row meets the columns of one expert's matrix, or of the row beside it."""
  (num_rows, width), item = left.shape, left.dtype.itemsize
  if right.ndim == 2:
    columns, weight_bytes = right.shape[1], 0
    row_bytes, result_bytes = item * (width + columns), item * num_experts * width * columns
  else:
    columns, weight_bytes = right.shape[2], right.size * right.dtype.itemsize
    row_bytes, result_bytes = item * width, item * num_rows * columns
  bytes_ = work.kernel_bytes(
    num_rows, num_experts, row_bytes=row_bytes, weight_bytes=weight_bytes, result_bytes=result_bytes
  )
  return work.kernel_scope(2 * width * columns, num_rows, bytes_)


def _dims(left: int, right: int, *, rhs_group: list[int]):
  """Sum over dimension `left` of the first operand and `right` of the second."""
  return lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(([left], [right]), ([], [])),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=rhs_group,
  )
