"""Float32 for tensor cores that multiply 16 bits: an operand is the sum of three bfloat16 parts, a product of six.

The same as XLA's `BF16_BF16_F32_X6`: of the nine products of parts, those below 2^-24 of the largest are left out.
"""

import jax
import jax.numpy as jnp
from jax import lax

PARTS = 3  # of 8 bits each: the 24 of float32


def parts(array) -> tuple[jax.Array, ...]:
  """`array` itself, or if it is float32 its bfloat16 parts, the largest first; their sum is exact.

  `reduce_precision` rounds, because the compiler may take a cast there and back for nothing. An infinite entry has no
  other parts, and what it multiplies becomes NaN where float32 might have infinity.
  """
  if array.dtype != jnp.float32:
    return (array,)
  found = []
  for _ in range(PARTS):
    part = lax.reduce_precision(array, exponent_bits=8, mantissa_bits=7)
    array = jnp.where(jnp.isfinite(part), array - part, 0)
    found.append(part.astype(jnp.bfloat16))
  return tuple(found)


def products(left: int, right: int) -> list[tuple[int, int]]:
  """Which of `left` parts to multiply by which of `right`: the least products first, so that their sum is kept."""
  least = max(left, right) - 1
  return [(i, place - i) for place in range(least, -1, -1) for i in range(place + 1) if i < left and place - i < right]
