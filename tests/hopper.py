"""Operands of a Hopper leg, its result from the float64 oracle, and a small device for the interpreter."""

import contextlib

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np

from jaxmoe.kernels.hopper import legs
from jaxmoe.kernels.hopper.device import Device

SMALL = Device("NVIDIA H200", 3)  # three processors, so that each takes several turns
D, F = 128, 192


def columns(leg: str) -> int:
  """Width of an expert: FP8 weights need a multiple of 128."""
  return 256 if leg == "matmul_scaled" else F


def operands(leg: str, rows: int, sizes, dtype):
  """Arguments of a leg; rows past the sum are NaN, which nothing may see."""
  E, F = len(sizes), columns(leg)
  x_ND, y_NF, gate_EDF, up_EDF = oracle.draw(0, dtype, (rows, D), (rows, F), (E, D, F), (E, D, F))
  owned = jnp.arange(rows)[:, None] < sum(sizes)
  x_ND, y_NF = (jnp.where(owned, array, jnp.nan) for array in (x_ND, y_NF))
  gate_EDF, up_EDF, sizes_E = gate_EDF / 8, up_EDF / 8, jnp.array(sizes, jnp.int32)
  scale_EF = jnp.exp(oracle.draw(1, "float32", (E, F))[0])
  return {
    "matmul": (x_ND, gate_EDF, sizes_E),
    "matmul_transposed": (y_NF, gate_EDF, sizes_E),
    "matmuls_transposed": ((y_NF, 2 * y_NF), (gate_EDF, up_EDF), sizes_E),
    "weight_gradient": (x_ND, y_NF, sizes_E),
    "gated_up": (x_ND, gate_EDF, up_EDF, sizes_E),
    "up": (x_ND, up_EDF, sizes_E),
    "matmul_scaled": (x_ND, gate_EDF.astype("float8_e4m3fn"), scale_EF, sizes_E),
  }[leg]


def wanted(leg: str, arguments, activation="silu"):
  """What the leg must return, as a tuple, by a loop over groups in float64."""
  *arrays, sizes_E = arguments
  sizes = sizes_E.tolist()
  if leg in ("gated_up", "up"):
    pre = tuple(oracle.grouped_matmul(arrays[0], w, sizes) for w in arrays[1:])
    return oracle.hidden(activation, *(pre if leg == "gated_up" else (None, *pre))), *pre
  if leg == "weight_gradient":
    x_ND, y_NF = arrays
    weights = jnp.zeros((len(sizes), x_ND.shape[1], y_NF.shape[1]))
    return (oracle.grouped_matmul_gradients(x_ND, weights, sizes, y_NF)[1],)
  if leg == "matmul_scaled":
    x_ND, w_EDF, scale_EF = (np.asarray(array).astype(np.float64) for array in arrays)
    return (oracle.grouped_matmul(x_ND, w_EDF * scale_EF[:, None, :], sizes),)
  if leg == "matmul":
    return (oracle.grouped_matmul(*arrays, sizes),)
  pairs = [arrays] if leg == "matmul_transposed" else zip(*arrays, strict=True)
  return (sum(oracle.grouped_matmul(y_NF, w_EDF.swapaxes(1, 2), sizes) for y_NF, w_EDF in pairs),)


def run(leg: str, arguments, activation="silu", **options):
  """What the leg returns, as a tuple."""
  more = (activation,) if leg in ("gated_up", "up") else ()
  result = getattr(legs, leg)(*arguments, *more, **{"device": SMALL, **options})
  return tuple(result) if isinstance(result, tuple | list) else (result,)


def check(leg: str, rows: int, sizes, dtype="bfloat16", activation="silu", **options):
  """Run a leg and compare."""
  arguments = operands(leg, rows, sizes, dtype)
  got = jax.block_until_ready(run(leg, arguments, activation, **options))
  for mine, want in zip(got, wanted(leg, arguments, activation), strict=True):
    assert mine.dtype == jnp.dtype(dtype)
    oracle.assert_close(mine, want, dtype)


@contextlib.contextmanager
def target(processors=132):
  """Trace for an H200 that is not there."""
  device = jax.sharding.AbstractDevice("NVIDIA H200", processors, "gpu")
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
    yield
