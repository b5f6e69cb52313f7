"""What a caller may pass; errors say what was expected, what came, and what to do."""

import math
import numbers
from typing import get_args

import jax
import jax.numpy as jnp
from jax import core, lax
from jax.experimental import checkify
from jax.typing import ArrayLike

from jaxmoe.kernels.activations import UNARY, Activation
from jaxmoe.kernels.rows import sum_before

DTYPES = ("bfloat16", "float16", "float32", "float64")
FP8_DTYPES = ("float8_e4m3fn", "float8_e5m2")


def array(name: str, value):
  """`value` must be an array of jax or numpy, traced or not; as functions of jax, ours take no lists."""
  if not isinstance(value, ArrayLike) or not hasattr(value, "shape"):
    raise ValueError(
      f"{name} must be an array, got {_kind(value)}; convert it with jax.numpy.asarray, or pass"
      " the shape of an array through jax.eval_shape or jax.jit(...).trace"
    )


def _kind(value) -> str:
  return "None" if value is None else type(value).__name__


def whole(**operands):
  """No operand may be split over explicit mesh axes, for jax has no rule for how the legs slice them."""
  for name, value in operands.items():
    if value is not None and any(spec := jax.typeof(value).sharding.spec):
      raise NotImplementedError(
        f"{name} must not be split over explicit mesh axes, got {spec}; call within jax.shard_map on each device's own"
        " rows, or through jax.sharding.auto_axes"
      )


def weight_shape(name: str, w) -> tuple[int, int, int]:
  """The three dimensions of the weights that the others must meet."""
  array(name, w)
  if w.ndim != 3 or w.shape[0] < 1:
    raise ValueError(
      f"{name} must have three dimensions and at least one expert, got shape {w.shape}; stack the experts"
    )
  return w.shape


def rows(x_ND, width: int, weight_name: str) -> jax.Array:
  """`x_ND`, which must be rows of width D, in the dtype that jax gives it."""
  array("x_ND", x_ND)
  if x_ND.ndim != 2 or x_ND.shape[1] != width:
    raise ValueError(
      f"x_ND must have shape (N, {width}) to meet {weight_name}, got {x_ND.shape}; flatten leading dimensions"
      " and sort rows by expert"
    )
  return _floats("x_ND", x_ND)


def buffers(x_ERD, num_experts: int, width: int) -> jax.Array:
  """`x_ERD`, which must be as many rows of width D for each expert, in the dtype that jax gives it."""
  array("x_ERD", x_ERD)
  if x_ERD.ndim != 3 or x_ERD.shape[::2] != (num_experts, width):
    raise ValueError(
      f"x_ERD must have shape ({num_experts}, R, {width}) to meet up_EDF, got {x_ERD.shape}; give one buffer an expert"
    )
  return _floats("x_ERD", x_ERD)


def _floats(name: str, x) -> jax.Array:
  if x.dtype.name not in DTYPES:
    raise ValueError(f"{name} must be {' or '.join(DTYPES)}, got {x.dtype.name}; cast it")
  return jnp.asarray(x)


def _dtype(w) -> str:
  """That jax gives it: numpy's float64 is float32 unless jax is set to 64 bits."""
  return jax.dtypes.canonicalize_dtype(w.dtype).name if w.dtype.name in DTYPES else w.dtype.name


def experts(gate_EDF, up_EDF, down_EFD, x, *, activation: str, scaled: bool):
  """The other weights must have the shapes that `up_EDF` asks for, and all of them the dtype of the rows `x`."""
  E, D, F = up_EDF.shape
  _activation(activation, gated=gate_EDF is not None)
  if gate_EDF is not None:
    weight("gate_EDF", gate_EDF, (E, D, F), x, scaled=scaled)
  weight("up_EDF", up_EDF, (E, D, F), x, scaled=scaled)
  weight("down_EFD", down_EFD, (E, F, D), x, scaled=scaled)


def _activation(name: str, *, gated: bool):
  known = get_args(Activation) if gated else tuple(UNARY)
  if name not in known:
    kind = "with a gate" if gated else "without a gate"
    raise ValueError(f"activation must be {' or '.join(known)} {kind}, got {name!r}; choose one of these")


def scales(scales, *, gated: bool):
  """Either no scale, or one for every weight that there is."""
  if not isinstance(scales, tuple | list):
    raise ValueError(
      f"scales must be a tuple (gate, up, down), got {_kind(scales)}; leave it out for weights without scales"
    )
  given = [scale is not None for scale in scales]
  if given not in ([False] * 3, [gated, True, True]):
    raise ValueError(
      f"scales must be (gate, up, down) with a scale for every weight or for none, got {given}; give None for the gate"
      " of experts without one"
    )


def weight(name: str, w, shape: tuple[int, int, int], x, *, scaled: bool):
  """`w` must have this shape, and the dtype of the rows, or FP8 if `scaled`."""
  array(name, w)
  if w.shape != shape:
    raise ValueError(f"{name} must have shape {shape}, got {w.shape}; the letters of its name are its dimensions")
  allowed = FP8_DTYPES if scaled else (x.dtype.name,)
  if _dtype(w) not in allowed:
    remedy = "pass no scale for it" if scaled else "cast it to the dtype of the rows, or pass scales with FP8 weights"
    raise ValueError(f"{name} must be {' or '.join(allowed)}, got {_dtype(w)}; {remedy}")


def scale(name: str, scale_EF, num_experts: int, width: int, accumulator):
  """The scales as one number for each expert and column; they may be given one for each expert."""
  array(name, scale_EF)
  if scale_EF.shape not in ((num_experts,), (num_experts, width)):
    raise ValueError(
      f"{name} must have shape ({num_experts},) or ({num_experts}, {width}), got {scale_EF.shape};"
      " give one number for each expert, or for each expert and column"
    )
  if not jnp.issubdtype(scale_EF.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating, got {scale_EF.dtype.name}; cast it to float32")
  whole(**{name: scale_EF})
  wide = scale_EF.astype(accumulator)
  return jnp.broadcast_to(wide.reshape(num_experts, -1), (num_experts, width))


def expected_rows(rows):
  """A positive number that tracing knows, or None."""
  number = isinstance(rows, numbers.Real) and not isinstance(rows, bool)
  if rows is not None and not (number and 0 < float(rows) < math.inf):
    raise ValueError(
      f"expected_rows must be a positive number known while tracing, or None, got {rows}; leave it out to expect as"
      " many rows as fit"
    )


def sizes(sizes_E, num_experts: int, num_rows: int):
  """Group sizes as int32, none negative, sum at most `num_rows`.

  Known values that break this raise. Traced ones are clamped: negative sizes to 0, and groups cut off at the last row;
  under `checkify` with `user_checks` both are reported.
  """
  array("group_sizes_E", sizes_E)
  if sizes_E.shape != (num_experts,):
    raise ValueError(
      f"group_sizes_E must have shape ({num_experts},), one an expert, got {sizes_E.shape}; count the rows of every"
      " expert, 0 included"
    )
  if not jnp.issubdtype(sizes_E.dtype, jnp.integer):
    raise ValueError(f"group_sizes_E must be integers, got {sizes_E.dtype.name}; cast them to int32")
  if not isinstance(sizes_E, core.Tracer):
    _known_sizes(sizes_E.tolist(), num_rows)
    return sizes_E.astype(jnp.int32)
  checkify.debug_check(jnp.all(sizes_E >= 0), "a group size is negative: {sizes}", sizes=sizes_E)
  most = jnp.array(min(num_rows + 1, jnp.iinfo(sizes_E.dtype).max), sizes_E.dtype)  # narrow integers would wrap it
  rows_E = jnp.clip(sizes_E, 0, most).astype(jnp.uint32)  # whose sums hold the first one that is too large
  end_E = sum_before(rows_E) + rows_E
  checkify.debug_check(jnp.all(end_E <= num_rows), "group sizes sum to more than all rows: {sizes}", sizes=sizes_E)
  end_E = jnp.minimum(end_E, num_rows).astype(jnp.int32)
  if num_experts * (num_rows + 1) >= 2**32:
    end_E = lax.cummax(end_E)  # past the first one that is too large, sums may even overflow
  return jnp.diff(end_E, prepend=0)


def _known_sizes(sizes: list[int], num_rows: int):
  if min(sizes) < 0:
    raise ValueError(
      f"group_sizes_E must not be negative, got {min(sizes)} for expert {sizes.index(min(sizes))}; count the rows of"
      " every expert, 0 where it has none"
    )
  if sum(sizes) > num_rows:
    raise ValueError(
      f"group_sizes_E must sum to at most the {num_rows} rows of x_ND, got {sum(sizes)}; drop rows before the call"
    )
