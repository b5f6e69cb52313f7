"""The legs of `jaxmoe.kernels.legs` on NVIDIA Hopper; `device` and `shape` replace what is found out otherwise."""

import jax.numpy as jnp

from jaxmoe.kernels import work
from jaxmoe.kernels.activations import Activation, gated, hidden
from jaxmoe.kernels.hopper import config
from jaxmoe.kernels.hopper.config import Leg, TileShape
from jaxmoe.kernels.hopper.device import Device, check_dtypes, current
from jaxmoe.kernels.hopper.rows import grouped_rows
from jaxmoe.kernels.hopper.scaled import grouped_rows_scaled
from jaxmoe.kernels.hopper.weights import grouped_weights


def matmul(x_ND, w_EDF, sizes_E, *, device: Device | None = None, shape: TileShape | None = None):
  """y_NF = x_ND w_EDF[expert of the row]."""
  return _rows("matmul", [(x_ND, [w_EDF])], sizes_E, _unchanged, 1, device, shape)[0]


def matmul_transposed(y_NF, w_EDF, sizes_E, *, device: Device | None = None, shape: TileShape | None = None):
  """x_ND = y_NF w_EDF[expert of the row]^T; a tile of weights is transposed as it is read from shared memory."""
  return _rows("matmul_transposed", [(y_NF, [w_EDF])], sizes_E, _unchanged, 1, device, shape)[0]


def matmuls_transposed(rows_NF, weights_EDF, sizes_E, *, device: Device | None = None, shape: TileShape | None = None):
  """The sum of `matmul_transposed` over pairs of rows and weights, in one pass: the gradient of rows they share."""
  terms = [(y_NF, [w_EDF]) for y_NF, w_EDF in zip(rows_NF, weights_EDF, strict=True)]
  return _rows("matmul_transposed", terms, sizes_E, _unchanged, 1, device, shape)[0]


def gated_up(
  x_ND,
  gate_EDF,
  up_EDF,
  sizes_E,
  activation: Activation,
  *,
  device: Device | None = None,
  shape: TileShape | None = None,
):
  """hidden_NF, gate_NF, up_NF: two matmuls that share their rows, and the activation of their float32 sums."""
  epilogue = lambda gate, up: (gated(activation, gate, up), gate, up)  # noqa: E731
  return _rows("gated_up", [(x_ND, [gate_EDF, up_EDF])], sizes_E, epilogue, 3, device, shape, _approximate(activation))


def up(x_ND, up_EDF, sizes_E, activation: Activation, *, device: Device | None = None, shape: TileShape | None = None):
  """hidden_NF, up_NF: the same for experts without a gate."""
  epilogue = lambda up: (hidden(activation, (up,)), up)  # noqa: E731
  return _rows("matmul", [(x_ND, [up_EDF])], sizes_E, epilogue, 2, device, shape, _approximate(activation))


def weight_gradient(x_ND, y_NF, sizes_E, *, device: Device | None = None, shape: TileShape | None = None):
  """w_EDF = sum over the rows of each expert of x_ND^T y_NF; zero for an expert without rows."""
  check_dtypes(x_ND, y_NF)
  device = device or current()
  N, D, F, E = *x_ND.shape, y_NF.shape[1], sizes_E.shape[0]
  if N == 0:
    return jnp.zeros_like(x_ND, shape=(E, D, F))
  shape = _shape(shape, "weight_gradient", D, F, N, E, device)
  return grouped_weights(x_ND, y_NF, sizes_E, shape=shape, processors=device.processors)


def matmul_scaled(x_ND, w_EDF, scale_EF, sizes_E, *, device: Device | None = None, shape: TileShape | None = None):
  """`matmul` with FP8 weights, whose column f of expert e counts `scale_EF[e, f]` times."""
  check_dtypes(x_ND)
  device = device or current()
  (N, D), (E, _, F) = x_ND.shape, w_EDF.shape
  if N == 0:
    return jnp.zeros_like(x_ND, shape=(N, F))
  shape = _shape(shape, "matmul_scaled", D, F, N, E, device)
  return grouped_rows_scaled(x_ND, w_EDF, scale_EF, sizes_E, shape=shape, processors=device.processors)


def _unchanged(sum_):
  return (sum_,)


def _approximate(activation: Activation) -> bool:
  """The hardware's exponential errs by two units in the last place of float32, its hyperbolic tangent by 5e-4."""
  return activation != "gelu"


def _rows(
  leg: Leg, terms, sizes_E, epilogue, outputs: int, device: Device | None, shape: TileShape | None, approximate=True
):
  arrays = [array for x, weights in terms for array in (x, *weights)]
  check_dtypes(*arrays)
  device = device or current()
  transposed = leg == "matmul_transposed"
  (N, D), (E, *widths) = arrays[0].shape, arrays[1].shape
  F = widths[0 if transposed else 1]
  if N == 0:
    return [jnp.zeros_like(arrays[0], shape=(N, F))] * outputs
  shape = _shape(shape, leg, D, F, N, E, device)
  return grouped_rows(
    terms,
    sizes_E,
    epilogue,
    outputs=outputs,
    transposed=transposed,
    shape=shape,
    processors=device.processors,
    name=leg,
    approximate=approximate,
  )


def _shape(given: TileShape | None, leg: Leg, D: int, F: int, rows: int, groups: int, device: Device) -> TileShape:
  if given is None:
    rows = max(1, round(work.expected_rows(rows)))
    return config.tile_shape(leg, D, F, rows=rows, groups=groups, device=device.kind, processors=device.processors)
  if not given.serves(leg, D, F):
    raise ValueError(f"{given} does not divide {leg} of {D} and {F}, or does not fit; leave it to the table")
  return given
