"""Matmul of rows sorted by expert, each with its expert's weights."""

import functools

import jax
import jax.numpy as jnp

from jaxmoe.kernels import check, choose, dtypes
from jaxmoe.kernels.choose import Implementation
from jaxmoe.kernels.rows import expert_of_row, vary_alike, zero_unowned


def grouped_matmul_reference(x_ND, w_EDF, group_sizes_E, *, scale=None):
  """The same as `grouped_matmul`, by the work of every expert on every row."""
  E, N = w_EDF.shape[0], x_ND.shape[0]
  wide = dtypes.accumulator(x_ND.dtype)
  x_ND, w_EDF, dtype = zero_unowned(x_ND, group_sizes_E).astype(wide), w_EDF.astype(wide), x_ND.dtype
  if scale is not None:
    w_EDF = w_EDF * scale.astype(wide).reshape(E, 1, -1)
  y_ENF = jnp.einsum("nd,edf->enf", x_ND, w_EDF, precision="highest")
  return y_ENF[expert_of_row(group_sizes_E, N), jnp.arange(N)].astype(dtype)


def grouped_matmul(x_ND, w_EDF, group_sizes_E, *, scale=None, implementation: Implementation | None = None):
  """y_NF = x_ND w_EDF[expert of the row]; the first `group_sizes_E[0]` rows are expert 0's, and so on.

  Differentiable in rows and weights, once and in reverse mode. Products are summed in float32 or wider. Rows past the
  sum of the sizes are zero in the result and in the gradient of `x_ND`; nothing that they hold enters any other number.
  Float32 is multiplied as `jax.default_matmul_precision` says, on TPU by default in one pass of bfloat16, and at "high"
  as at "highest"; `hopper` always does it in full.

  Args:
    x_ND: rows, bfloat16, float16, float32 or float64.
    w_EDF: weights of the same dtype; or FP8, for the forward pass only, with `scale`.
    group_sizes_E: integers of any size, 0 included, together at most N. Known values that are not raise; traced ones
      are clamped, and reported under `checkify` with `user_checks`.
    scale: what the weights of an expert, E, or of a column of an expert, EF, are to be multiplied with.
    implementation: None for that of the platform: of the mesh in use, or else jax's default backend.

  Returns:
    y_NF, in the dtype of `x_ND`.

  Raises:
    ValueError: operands that do not fit.
    NotImplementedError: a request that the implementation cannot serve.
  """
  E, D, F = check.weight_shape("w_EDF", w_EDF)
  x_ND = check.rows(x_ND, D, "w_EDF")
  check.weight("w_EDF", w_EDF, (E, D, F), x_ND, scaled=scale is not None)
  sizes_E = check.sizes(group_sizes_E, E, x_ND.shape[0])
  check.whole(x_ND=x_ND, w_EDF=w_EDF, group_sizes_E=sizes_E)
  name = choose.implementation(implementation)
  sizes_E = choose.where_served(name, sizes_E)
  if scale is not None:
    scale_EF = check.scale("scale", scale, E, F, dtypes.accumulator(x_ND.dtype))
    return matmul_scaled(name, *vary_alike(x_ND, w_EDF, scale_EF, sizes_E))
  return _matmul(name, *vary_alike(x_ND, w_EDF, sizes_E))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(name: Implementation, x_ND, w_EDF, sizes_E):
  return choose.legs(name).matmul(x_ND, w_EDF, sizes_E)


def _forward(name: Implementation, x_ND, w_EDF, sizes_E):
  return _matmul(name, x_ND, w_EDF, sizes_E), (x_ND, w_EDF, sizes_E)


def _backward(name: Implementation, residuals, dy_NF):
  x_ND, w_EDF, sizes_E = residuals
  legs = choose.legs(name)
  return legs.matmul_transposed(dy_NF, w_EDF, sizes_E), legs.weight_gradient(x_ND, dy_NF, sizes_E), None


_matmul.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul_scaled(name: Implementation, x_ND, w_EDF, scale_EF, sizes_E):
  """The leg of FP8 weights; its gradient raises."""
  return choose.legs(name).matmul_scaled(x_ND, w_EDF, scale_EF, sizes_E)


def _no_gradient(*_):
  raise NotImplementedError(
    "FP8 weights serve the forward pass only, got a request for a gradient; train with weights in the dtype of x_ND"
  )


matmul_scaled.defvjp(_no_gradient, _no_gradient)
