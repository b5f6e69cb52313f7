"""In which dtype sums are kept."""

import jax.numpy as jnp


def accumulator(dtype) -> jnp.dtype:
  """Of values of `dtype`: float32, or float64 for that; as `jnp.promote_types`, but where promotion is strict too."""
  return jnp.dtype(dtype if dtype == jnp.float64 else jnp.float32)
