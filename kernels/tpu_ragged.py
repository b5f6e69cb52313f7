"""`ragged`'s legs on TPU, with rows and a precision that the compiler has a kernel for.

Its tiles have a height that divides the number of rows, and where that cannot be eight or more, it makes a `ragged_dot`
into the work of every expert on every row, as on CPU. So rows are added, which no expert owns. It does the same at the
precision "high", and fails at "highest" in bfloat16, whose products are exact anyway.
"""

import jax
import jax.numpy as jnp

from jaxmoe.kernels import ragged, work
from jaxmoe.kernels.activations import Activation
from jaxmoe.kernels.tpu_chip import chip_in_use, tile_rows


def matmul(x_ND, w_EDF, sizes_E):
  return _cut(lambda x_ND: ragged.matmul(x_ND, w_EDF, sizes_E), x_ND)


def matmul_scaled(x_ND, w_EDF, scale_EF, sizes_E):
  return _cut(lambda x_ND: ragged.matmul_scaled(x_ND, w_EDF, scale_EF, sizes_E), x_ND)


def matmuls_transposed(rows_NF, weights_EDF, sizes_E):
  return _cut(lambda *rows_NF: ragged.matmuls_transposed(rows_NF, weights_EDF, sizes_E), *rows_NF)


def gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation: Activation):
  return _cut(lambda x_ND: ragged.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation), x_ND)


def up(x_ND, up_EDF, sizes_E, activation: Activation):
  return _cut(lambda x_ND: ragged.up(x_ND, up_EDF, sizes_E, activation), x_ND)


def weight_gradient(x_ND, y_NF, sizes_E):
  # The TPU kernel masks both operands.
  return _in_whole_tiles(lambda x_ND, y_NF: ragged.weight_gradient_masked(x_ND, y_NF, sizes_E), x_ND, y_NF)


def _cut(leg, *rows):
  """`leg` in whole tiles, its results without the rows that were added."""
  return jax.tree.map(lambda y: y[: rows[0].shape[0]], _in_whole_tiles(leg, *rows))


def _in_whole_tiles(leg, *rows):
  """Raises NotImplementedError for float64."""
  N, dtype = rows[0].shape[0], rows[0].dtype
  if dtype == jnp.float64:
    raise NotImplementedError("expected bfloat16, float16 or float32 on TPU, got float64; cast rows and weights")
  more = -N % tile_rows(chip_in_use(), N)
  expected = work.expecting(work.expected_rows(N), even=work.is_even())  # added rows are no expert's
  with expected, jax.default_matmul_precision(_precision(dtype)):
    return leg(*(jnp.pad(x, ((0, more), (0, 0))) for x in rows))


def _precision(dtype) -> str:
  """One pass over bfloat16; whatever is asked of float32 beyond that, and all of float16's digits, need several."""
  asked = jax.config.jax_default_matmul_precision
  one_pass = dtype == jnp.bfloat16 or (dtype == jnp.float32 and asked in (None, "default", "bfloat16"))
  return "default" if one_pass else "highest"
