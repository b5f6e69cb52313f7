"""Feed-forward of experts whose tokens already lie in equal-sized buffers, one buffer an expert."""

import jax.numpy as jnp

from jaxmoe.kernels.activations import UNARY


def buffer_ffn(x_ERD, gate_EDF, up_EDF, down_EFD, *, activation: str):
  """down(act(x gate) * (x up)), or down(act(x up)) where `gate_EDF` is None.

  Args:
    x_ERD: R rows for each of E experts, of width D.
    gate_EDF, up_EDF, down_EFD: weights of the same dtype as `x_ERD`; F may be one device's share of the width, then
      the result is that share's part of the sum.
    activation: a name in `UNARY`.

  Returns:
    y_ERD, in the dtype of `x_ERD`; each matmul accumulates in at least float32.
  """
  act = UNARY[activation]
  up_ERF = _matmul("erd,edf->erf", x_ERD, up_EDF)
  hidden_ERF = act(up_ERF) if gate_EDF is None else act(_matmul("erd,edf->erf", x_ERD, gate_EDF)) * up_ERF
  return _matmul("erf,efd->erd", hidden_ERF, down_EFD)


def _matmul(letters: str, x, w):
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.einsum(letters, x, w, preferred_element_type=accumulator).astype(x.dtype)
