"""Feed-forward networks of experts, on rows sorted by expert."""

import functools

import jax
import jax.numpy as jnp

from jaxmoe.kernels import activations, check, choose, dtypes, work
from jaxmoe.kernels.activations import Activation
from jaxmoe.kernels.choose import Implementation
from jaxmoe.kernels.grouped_matmul import grouped_matmul_reference, matmul_scaled
from jaxmoe.kernels.legs import Legs
from jaxmoe.kernels.rows import vary_alike


def expert_ffn_reference(
  x_ND, gate_EDF, up_EDF, down_EFD, group_sizes_E, *, activation: Activation, scales=(None, None, None)
):
  """The same as `expert_ffn`, by the work of every expert on every row."""
  wide_ND = x_ND.astype(dtypes.accumulator(x_ND.dtype))
  weights = [(up_EDF, scales[1])] if gate_EDF is None else [(gate_EDF, scales[0]), (up_EDF, scales[1])]
  pre = [grouped_matmul_reference(wide_ND, w_EDF, group_sizes_E, scale=scale) for w_EDF, scale in weights]
  hidden_NF = activations.hidden(activation, pre)
  return grouped_matmul_reference(hidden_NF, down_EFD, group_sizes_E, scale=scales[2]).astype(x_ND.dtype)


def expert_ffn(
  x_ND,
  gate_EDF,
  up_EDF,
  down_EFD,
  group_sizes_E,
  *,
  activation: Activation,
  scales=(None, None, None),
  implementation: Implementation | None = None,
  expected_rows: float | None = None,
  even: bool = False,
):
  """down(act(x gate) * (x up)) with the weights of each row's expert; down(act(x up)) where `gate_EDF` is None.

  Differentiable in rows and weights, once and in reverse mode; kept for that are only rows, pre-activations and sizes,
  2D + 4F bytes a row in bfloat16 with a gate. Rows, sizes, dtypes and errors are as in `grouped_matmul`.

  Args:
    x_ND: rows.
    gate_EDF, up_EDF, down_EFD: weights; F may be one device's share of the width, then the result is that share's part
      of the sum.
    activation: "silu", "gelu" (tanh approximation), or, with a gate only, "clamped": g sigmoid(1.702 g) (u + 1) of
      g = min(x gate, 7) and u = clip(x up, -7, 7).
    expected_rows: rows that the routing is expected to fill, where N has room for the worst, a positive number that
      tracing knows; it decides tiles and the work that loops declare, never results.
    even: whether every expert has N / E rows; it decides what loops declare.
    scales: of FP8 gate, up and down, each E or one an output column; for the forward pass only.

  Returns:
    y_ND, in the dtype of `x_ND`.
  """
  E, D, _ = check.weight_shape("up_EDF", up_EDF)
  x_ND = check.rows(x_ND, D, "up_EDF")
  check.scales(scales, gated=gate_EDF is not None)
  scaled = scales[1] is not None
  check.experts(gate_EDF, up_EDF, down_EFD, x_ND, activation=activation, scaled=scaled)
  check.expected_rows(expected_rows)
  sizes_E = check.sizes(group_sizes_E, E, x_ND.shape[0])
  check.whole(x_ND=x_ND, gate_EDF=gate_EDF, up_EDF=up_EDF, down_EFD=down_EFD, group_sizes_E=sizes_E)
  name = choose.implementation(implementation)
  sizes_E = choose.where_served(name, sizes_E)
  if scaled:
    with work.expecting(expected_rows, even=even):
      return _ffn_scaled(name, activation, x_ND, (gate_EDF, up_EDF, down_EFD), scales, sizes_E)
  expected = work.Expectation(expected_rows, even)
  return _ffn(name, activation, expected, *vary_alike(x_ND, gate_EDF, up_EDF, down_EFD, sizes_E))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ffn(
  name: Implementation, activation: Activation, expected: work.Expectation, x_ND, gate_EDF, up_EDF, down_EFD, sizes_E
):
  return _forward(name, activation, expected, x_ND, gate_EDF, up_EDF, down_EFD, sizes_E)[0]


def _forward(name: Implementation, activation: Activation, expected: work.Expectation, *operands):
  with work.expecting(expected.rows, even=expected.even):
    return _forward_legs(choose.legs(name), activation, *operands)


def _forward_legs(legs: Legs, activation: Activation, x_ND, gate_EDF, up_EDF, down_EFD, sizes_E):
  if gate_EDF is None:
    hidden_NF, *pre = legs.up(x_ND, up_EDF, sizes_E, activation)
  else:
    hidden_NF, *pre = legs.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation)
  return legs.matmul(hidden_NF, down_EFD, sizes_E), (x_ND, pre, gate_EDF, up_EDF, down_EFD, sizes_E)


def _backward(name: Implementation, activation: Activation, expected: work.Expectation, residuals, dy_ND):
  with work.expecting(expected.rows, even=expected.even):
    return _backward_legs(choose.legs(name), activation, residuals, dy_ND)


def _backward_legs(legs: Legs, activation: Activation, residuals, dy_ND):
  x_ND, pre, gate_EDF, up_EDF, down_EFD, sizes_E = residuals
  d_hidden_NF = legs.matmul_transposed(dy_ND, down_EFD, sizes_E)
  hidden_NF, d_pre = _activate_again(activation, pre, d_hidden_NF)
  d_down_EFD = legs.weight_gradient(hidden_NF, dy_ND, sizes_E)
  weights = [w_EDF for w_EDF in (gate_EDF, up_EDF) if w_EDF is not None]
  dx_ND = legs.matmuls_transposed(d_pre, weights, sizes_E)
  *d_gate_EDF, d_up_EDF = (legs.weight_gradient(x_ND, d_NF, sizes_E) for d_NF in d_pre)
  return dx_ND, *(d_gate_EDF or [None]), d_up_EDF, d_down_EFD, None


_ffn.defvjp(_forward, _backward)


def _activate_again(activation: Activation, pre, d_hidden_NF):
  """Hidden rows and the gradients of the pre-activations, in the dtype of `d_hidden_NF`, computed in float32."""
  dtype = d_hidden_NF.dtype

  def widen(rows):
    return rows.astype(dtypes.accumulator(dtype))

  sums = [widen(rows) for rows in pre]
  if dtype == jnp.float16:  # stored as infinite, a sum was finite when it was activated; of infinity NaN would come
    greatest = float(jnp.finfo(dtype).max)
    sums = [jnp.clip(rows, -greatest, greatest) for rows in sums]
  hidden_NF, pull = jax.vjp(functools.partial(activations.hidden, activation), sums)
  (d_pre,) = pull(widen(d_hidden_NF))
  return hidden_NF.astype(dtype), [rows.astype(dtype) for rows in d_pre]


def _ffn_scaled(name: Implementation, activation: Activation, x_ND, weights, scales, sizes_E):
  wide = dtypes.accumulator(x_ND.dtype)

  def matmul(rows, i, label):
    scale = check.scale(label, scales[i], weights[i].shape[0], weights[i].shape[2], wide)
    return matmul_scaled(name, *vary_alike(rows, weights[i], scale, sizes_E))

  pre = [matmul(x_ND, i, f"scales[{i}]").astype(wide) for i in (0, 1) if weights[i] is not None]
  return matmul(activations.hidden(activation, pre).astype(x_ND.dtype), 2, "scales[2]")
