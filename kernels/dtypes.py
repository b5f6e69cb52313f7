"""In which dtype sums are made."""

import jax.numpy as jnp


def wide(dtype):
  """Float32, or float64 for that; as `jnp.promote_types`, but also where jax's promotion is strict."""
  return jnp.dtype(dtype if dtype == jnp.float64 else jnp.float32)
