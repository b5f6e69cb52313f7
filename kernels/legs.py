"""The legs that every implementation of grouped matmuls provides, as plain functions of its module.

Rows come sorted by expert: the first `sizes_E[0]` rows of `x_ND` belong to expert 0, the next to expert 1, and so on.
Rows past the sum belong to no expert: a leg returns zeros there, and nothing that they hold enters any other number.

The caller guarantees: sizes are int32, none is negative, their sum is at most N; rows and weights have one dtype; under
`shard_map` all operands vary over the same mesh axes. Sums are taken in float32 or wider; results have the rows' dtype.
"""

from collections.abc import Sequence
from typing import Protocol

import jax

from jaxmoe.kernels.activations import Activation


class Legs(Protocol):
  """What an implementation's module holds, and `choose.legs` returns.

  A leg that cannot serve its operands raises `NotImplementedError` with the reason.
  """

  def matmul(self, x_ND, w_EDF, sizes_E) -> jax.Array:
    """y_NF = x_ND w_EDF[expert of the row]."""
    ...

  def matmul_transposed(self, y_NF, w_EDF, sizes_E) -> jax.Array:
    """x_ND = y_NF w_EDF[expert of the row]^T, without a transposed copy of the weights: the gradient of rows."""
    ...

  def matmuls_transposed(self, rows_NF: Sequence[jax.Array], weights_EDF: Sequence[jax.Array], sizes_E) -> jax.Array:
    """The sum of `matmul_transposed` over pairs of rows and weights: the gradient of rows that all of them multiply."""
    ...

  def weight_gradient(self, x_ND, y_NF, sizes_E) -> jax.Array:
    """w_EDF = sum over the rows of each expert of x_ND^T y_NF; zero for an expert without rows."""
    ...

  def gated_up(self, x_ND, gate_EDF, up_EDF, sizes_E, activation: Activation) -> tuple[jax.Array, ...]:
    """hidden_NF, gate_NF, up_NF: two matmuls that share their rows, and the activation of both results."""
    ...

  def up(self, x_ND, up_EDF, sizes_E, activation: Activation) -> tuple[jax.Array, ...]:
    """hidden_NF, up_NF: the same for experts without a gate."""
    ...

  def matmul_scaled(self, x_ND, w_EDF, scale_EF, sizes_E) -> jax.Array:
    """`matmul` with FP8 weights: column f of expert e counts `scale_EF[e, f]` times. Scales are float32 or wider."""
    ...


LEGS = tuple(name for name in vars(Legs) if not name.startswith("_"))
