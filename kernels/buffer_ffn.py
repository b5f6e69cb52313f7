"""Feed-forward of experts whose tokens already lie in equal-sized buffers, one buffer an expert."""

from typing import Literal

import jax.numpy as jnp

from jaxmoe.kernels import activations, check, choose, dtypes
from jaxmoe.kernels.activations import Activation
from jaxmoe.kernels.choose import Implementation
from jaxmoe.kernels.expert_ffn import expert_ffn

# Equal groups are a batched matmul, which the compilers of these platforms do at full speed.
EINSUM_PLATFORMS = ("cpu", "tpu")


def buffer_ffn_reference(x_ERD, gate_EDF, up_EDF, down_EFD, *, activation: Activation):
  """The same as `buffer_ffn`, as batched matmuls that accumulate in at least float32."""
  kept = jnp.float32 if x_ERD.dtype == jnp.float16 else x_ERD.dtype  # of an infinite pre-activation NaN would come
  pre = [_matmul("erd,edf->erf", x_ERD, w_EDF, kept) for w_EDF in (gate_EDF, up_EDF) if w_EDF is not None]
  return _matmul("erf,efd->erd", activations.hidden(activation, pre).astype(x_ERD.dtype), down_EFD, x_ERD.dtype)


def buffer_ffn(
  x_ERD,
  gate_EDF,
  up_EDF,
  down_EFD,
  *,
  activation: Activation,
  implementation: Implementation | Literal["einsum"] | None = None,
):
  """down(act(x gate) * (x up)), or down(act(x up)) where `gate_EDF` is None.

  Args:
    x_ERD: R rows for each of E experts, of width D.
    gate_EDF, up_EDF, down_EFD: weights of the same dtype as `x_ERD`; F may be one device's share of the width, then
      the result is that share's part of the sum.
    implementation: `einsum` (batched matmuls), one of `choose.MODULES`, or None for the platform's.

  Returns:
    y_ERD, in the dtype of `x_ERD`.

  Raises:
    ValueError, NotImplementedError: as `expert_ffn`.
  """
  E, D, _ = check.weight_shape("up_EDF", up_EDF)
  x_ERD = check.buffers(x_ERD, E, D)
  check.experts(gate_EDF, up_EDF, down_EFD, x_ERD, activation=activation, scaled=False)
  choose.check_name(implementation, ("einsum", *choose.MODULES))
  if implementation is None and choose.platform() in EINSUM_PLATFORMS:
    implementation = "einsum"
  if implementation == "einsum":
    return buffer_ffn_reference(x_ERD, gate_EDF, up_EDF, down_EFD, activation=activation)
  R = x_ERD.shape[1]
  sizes_E = jnp.full(E, R, jnp.int32)
  x_ND = x_ERD.reshape(E * R, D)
  options = {"activation": activation, "implementation": implementation, "even": True}
  y_ND = expert_ffn(x_ND, gate_EDF, up_EDF, down_EFD, sizes_E, **options)
  return y_ND.reshape(E, R, D)


def _matmul(letters: str, x, w, dtype):
  return jnp.einsum(letters, x, w, preferred_element_type=dtypes.accumulator(x.dtype)).astype(dtype)
