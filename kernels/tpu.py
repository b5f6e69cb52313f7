"""Grouped matmuls on TPU: the compiler's `ragged_dot` where it copies nothing, an own kernel for what it does not fuse.

`ragged_dot` writes gate and up apart from the hidden rows, and copies all weights transposed before it multiplies with
them. The own kernel serves bfloat16 with lanes of 128 whose blocks fit; all else is `ragged`'s, at the same FLOPs.
"""

import jax.numpy as jnp

from jaxmoe.kernels import activations, ragged
from jaxmoe.kernels.activations import Activation
from jaxmoe.kernels.ragged import matmul, matmul_scaled, up
from jaxmoe.kernels.ragged import weight_gradient_masked as weight_gradient  # the TPU kernel masks both operands
from jaxmoe.kernels.tpu_rows import LANES, block_width, grouped_rows

__all__ = ["gated_up", "matmul", "matmul_scaled", "matmul_transposed", "matmuls_transposed", "up", "weight_gradient"]


def gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation: Activation):
  width = block_width(x_ND, gate_EDF.shape[2], terms=1, beside=2, outputs=3)
  if width is None or not _serves(x_ND, gate_EDF):
    return ragged.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation)
  epilogue = lambda gate, up: (activations.gated(activation, gate, up), gate, up)  # noqa: E731
  return tuple(grouped_rows([(x_ND, [gate_EDF, up_EDF])], sizes_E, epilogue, outputs=3, transposed=False, width=width))


def matmul_transposed(y_NF, w_EDF, sizes_E):
  return matmuls_transposed([y_NF], [w_EDF], sizes_E)


def matmuls_transposed(rows_NF, weights_EDF, sizes_E):
  width = block_width(rows_NF[0], weights_EDF[0].shape[1], terms=len(rows_NF), beside=1, outputs=1)
  if width is None or not _serves(rows_NF[0], weights_EDF[0]):
    return ragged.matmuls_transposed(rows_NF, weights_EDF, sizes_E)
  terms = [(y_NF, [w_EDF]) for y_NF, w_EDF in zip(rows_NF, weights_EDF, strict=True)]
  (x_ND,) = grouped_rows(terms, sizes_E, lambda sum_: (sum_,), outputs=1, transposed=True, width=width)
  return x_ND


def _serves(x_NK, w_EDF) -> bool:
  lanes = all(size % LANES == 0 for size in w_EDF.shape[1:])
  return lanes and x_NK.dtype == jnp.bfloat16 and x_NK.shape[0] > 0
