"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face models."""

import jax.numpy as jnp

from jaxmoe.kernels.dtypes import accumulator


def rotate(x_BSHK, positions_BS, theta: float):
  """Turns each pair (i, i + K/2) of a head by the angle position / theta^(2i/K); same shape and dtype."""
  half = x_BSHK.shape[-1] // 2
  wide = accumulator(x_BSHK.dtype)
  frequency_K = theta ** (-jnp.arange(half, dtype=wide) / half)
  angle_BS1K = positions_BS[:, :, None, None].astype(wide) * frequency_K[None, None, None, :]
  cos, sin = jnp.cos(angle_BS1K), jnp.sin(angle_BS1K)
  first, second = x_BSHK[..., :half].astype(wide), x_BSHK[..., half:].astype(wide)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BSHK.dtype)
