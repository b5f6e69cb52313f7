"""Causal grouped-query attention over a device's heads."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmoe.config.deployment import Deployment
from jaxmoe.kernels.dtypes import accumulator
from jaxmoe.model.cached_attention import attend_to_cache
from jaxmoe.model.norm import RMSNorm, parameter
from jaxmoe.model.rotary import rotate

# Queries are taken in blocks, so that at most QUERY_BLOCK x S scores of a head exist at once.
QUERY_BLOCK = 512


class Attention(nnx.Module):
  """Attention of L stacked layers; called on one layer's slice with the heads of this device."""

  def __init__(self, deployment: Deployment, *, rngs: nnx.Rngs):
    m = deployment.model
    L, D, H, G, K = m.num_layers, m.d_model, m.num_heads, m.num_kv_heads, m.head_dim
    self.theta = m.rope_theta
    self.query = parameter(deployment, rngs, "attention", "LDHK", (L, D, H, K), fan_in=D)
    self.key = parameter(deployment, rngs, "attention", "LDGK", (L, D, G, K), fan_in=D)
    self.value = parameter(deployment, rngs, "attention", "LDGK", (L, D, G, K), fan_in=D)
    self.output = parameter(deployment, rngs, "attention", "LHKD", (L, H, K, D), fan_in=H * K)
    if m.query_key_norm == "projection":
      raise NotImplementedError(
        "the model normalises queries and keys over each head only; a norm over the whole projection"
        " (query_key_norm: projection) can be planned but not run"
      )
    normed = m.query_key_norm == "head"
    self.query_norm = RMSNorm(deployment, "head norm", "LK", (L, K), rngs=rngs) if normed else None
    self.key_norm = RMSNorm(deployment, "head norm", "LK", (L, K), rngs=rngs) if normed else None

  def __call__(self, x_BSD, positions_BS, cached=None):
    """Attends to this block's tokens, or to one token and a cache of those before it.

    Args:
      x_BSD: normed input.
      positions_BS: position of each token in its sequence.
      cached: None, or (key_BGKS, value_BGKS) of the tokens before `positions_BS`; then S of the input must be 1.

    Returns:
      The heads' part of the output, x_BSD, to be summed over devices, and the new (key_BSGK, value_BSGK).
    """
    query_BSHK = self._project(x_BSD, self.query, self.query_norm, positions_BS)
    key_BSGK = self._project(x_BSD, self.key, self.key_norm, positions_BS)
    value_BSGK = jnp.einsum("bsd,dgk->bsgk", x_BSD, self.value[...].astype(x_BSD.dtype))
    if cached is None:
      mixed_BSHK = causal_attention(query_BSHK, key_BSGK, value_BSGK, positions_BS)
    else:
      token = query_BSHK[:, 0], key_BSGK[:, 0], value_BSGK[:, 0]
      mixed_BSHK = attend_to_cache(*token, cached, positions_BS[:, 0])[:, None]
    out_BSD = jnp.einsum("bshk,hkd->bsd", mixed_BSHK, self.output[...].astype(x_BSD.dtype))
    return out_BSD, (key_BSGK, value_BSGK)

  def _project(self, x_BSD, weight, norm, positions_BS):
    projected = jnp.einsum("bsd,dhk->bshk", x_BSD, weight[...].astype(x_BSD.dtype))
    return rotate(projected if norm is None else norm(projected), positions_BS, self.theta)


def causal_attention(query_BSHK, key_BSGK, value_BSGK, positions_BS):
  """Attention within a block whose keys stand at positions 0, 1, ..., S-1; backward recomputes the scores."""
  blocks = query_blocks(query_BSHK.shape[1])
  attend = jax.checkpoint(_attend)
  if blocks == 1:
    return attend(query_BSHK, key_BSGK, value_BSGK, positions_BS)

  def one_block(block):
    return attend(block[0], key_BSGK, value_BSGK, block[1])

  mixed = lax.map(one_block, (_split(query_BSHK, blocks), _split(positions_BS, blocks)))
  return jnp.moveaxis(mixed, 0, 1).reshape(query_BSHK.shape)


def query_blocks(length: int) -> int:
  """Blocks that `length` queries are taken in: the fewest equal ones of at most QUERY_BLOCK."""
  return next(n for n in range(math.ceil(length / QUERY_BLOCK), length + 1) if length % n == 0)


def _attend(query_BQHK, key_BSGK, value_BSGK, positions_BQ):
  """Each query attends to keys at its position or before."""
  (B, Q, H, K), (_, S, G, _) = query_BQHK.shape, key_BSGK.shape
  wide = accumulator(query_BQHK.dtype)
  query_BQGRK = query_BQHK.reshape(B, Q, G, H // G, K)
  scores = jnp.einsum("bqgrk,bsgk->bgrqs", query_BQGRK, key_BSGK, preferred_element_type=wide) * K**-0.5
  seen_BQS = positions_BQ[:, :, None] >= jnp.arange(S)[None, None, :]
  weights = jax.nn.softmax(jnp.where(seen_BQS[:, None, None], scores, jnp.finfo(wide).min), axis=-1)
  mixed = jnp.einsum("bgrqs,bsgk->bqgrk", weights.astype(value_BSGK.dtype), value_BSGK)
  return mixed.reshape(B, Q, H, K)


def _split(x, blocks: int):
  """(B, S, ...) -> (blocks, B, S / blocks, ...)."""
  return jnp.moveaxis(x.reshape(x.shape[0], blocks, -1, *x.shape[2:]), 1, 0)
