"""What a caller may pass; errors say what was expected, what came, and what to do."""

from typing import get_args

import jax.numpy as jnp
from jax import core, lax
from jax.experimental import checkify

from jaxmoe.kernels.activations import UNARY, Activation

DTYPES = ("bfloat16", "float16", "float32", "float64")
FP8_DTYPES = ("float8_e4m3fn", "float8_e5m2")


def weight_shape(name: str, w) -> tuple[int, int, int]:
  """The three dimensions of the weights that the others must meet."""
  if w.ndim != 3 or w.shape[0] < 1:
    raise ValueError(
      f"{name} must have three dimensions and at least one expert, got shape {w.shape}; stack the experts"
    )
  return w.shape


def rows(x_ND, width: int, weight_name: str):
  """`x_ND` must be rows of width D."""
  if x_ND.ndim != 2 or x_ND.shape[1] != width:
    raise ValueError(
      f"x_ND must have shape (N, {width}) to meet {weight_name}, got {x_ND.shape}; flatten leading dimensions"
      " and sort rows by expert"
    )
  if x_ND.dtype.name not in DTYPES:
    raise ValueError(f"x_ND must be {' or '.join(DTYPES)}, got {x_ND.dtype.name}; cast it")


def activation(name: str, *, gated: bool):
  known = get_args(Activation) if gated else tuple(UNARY)
  if name not in known:
    kind = "with a gate" if gated else "without a gate"
    raise ValueError(f"activation must be {' or '.join(known)} {kind}, got {name!r}; choose one of these")


def scales(scales, *, gated: bool):
  """Either no scale, or one for every weight that there is."""
  given = [scale is not None for scale in scales]
  if given not in ([False] * 3, [gated, True, True]):
    raise ValueError(
      f"scales must be (gate, up, down) with a scale for every weight or for none, got {given}; give None for the gate"
      " of experts without one"
    )


def weight(name: str, w, shape: tuple[int, int, int], x_ND, *, scaled: bool):
  """`w` must have this shape, and the dtype of the rows, or FP8 if `scaled`."""
  if w.shape != shape:
    raise ValueError(f"{name} must have shape {shape}, got {w.shape}; the letters of its name are its dimensions")
  allowed = FP8_DTYPES if scaled else (x_ND.dtype.name,)
  if w.dtype.name not in allowed:
    remedy = "pass no scale for it" if scaled else "cast it to the dtype of x_ND, or pass scales with FP8 weights"
    raise ValueError(f"{name} must be {' or '.join(allowed)}, got {w.dtype.name}; {remedy}")


def scale(name: str, scale_EF, num_experts: int, width: int, accumulator):
  """The scales as one number for each expert and column; they may be given one for each expert."""
  if scale_EF.shape not in ((num_experts,), (num_experts, width)):
    raise ValueError(
      f"{name} must have shape ({num_experts},) or ({num_experts}, {width}), got {scale_EF.shape};"
      " give one number for each expert, or for each expert and column"
    )
  if not jnp.issubdtype(scale_EF.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating, got {scale_EF.dtype.name}; cast it to float32")
  wide = scale_EF.astype(accumulator)
  return jnp.broadcast_to(wide.reshape(num_experts, -1), (num_experts, width))


def sizes(sizes_E, num_experts: int, num_rows: int):
  """Group sizes as int32, none negative, sum at most `num_rows`.

  Known values that break this raise. Traced ones are clamped: negative sizes to 0, and groups cut off at the last row;
  under `checkify` with `user_checks` both are reported.
  """
  if sizes_E.shape != (num_experts,):
    raise ValueError(f"group_sizes_E must have shape ({num_experts},), one an expert, got {sizes_E.shape}")
  if not jnp.issubdtype(sizes_E.dtype, jnp.integer):
    raise ValueError(f"group_sizes_E must be integers, got {sizes_E.dtype.name}; cast them to int32")
  if not isinstance(sizes_E, core.Tracer):
    _known_sizes(sizes_E.tolist(), num_rows)
    return sizes_E.astype(jnp.int32)
  checkify.debug_check(jnp.all(sizes_E >= 0), "a group size is negative: {sizes}", sizes=sizes_E)
  most = jnp.array(min(num_rows + 1, jnp.iinfo(sizes_E.dtype).max), sizes_E.dtype)  # narrow integers would wrap it
  end_E = jnp.cumsum(jnp.clip(sizes_E, 0, most), dtype=jnp.uint32)  # holds the first sum that is too large
  checkify.debug_check(jnp.all(end_E <= num_rows), "group sizes sum to more than all rows: {sizes}", sizes=sizes_E)
  end_E = lax.cummax(jnp.minimum(end_E, num_rows).astype(jnp.int32))  # past that, sums may even overflow
  return jnp.diff(end_E, prepend=0)


def _known_sizes(sizes: list[int], num_rows: int):
  if min(sizes) < 0:
    raise ValueError(f"group_sizes_E must not be negative, got {min(sizes)} for expert {sizes.index(min(sizes))}")
  if sum(sizes) > num_rows:
    raise ValueError(
      f"group_sizes_E must sum to at most the {num_rows} rows of x_ND, got {sum(sizes)}; drop rows before the call"
    )
