"""Attention of one new token a sequence to the tokens before it, which are in a cache, and to itself."""

import jax.numpy as jnp

from jaxmoe.kernels.dtypes import accumulator


def attend_to_cache(query_BHK, key_BGK, value_BGK, cached, positions_B):
  """Attends to the slots before each token's position and to its own key and value, which no slot need hold yet.

  So the cache is only read here, and all layers' new entries can be written at once, in place. Softmax is divided out
  last (arXiv 2205.14135, section 3.1).

  Args:
    cached: (key_BGKS, value_BGKS).

  Returns:
    mixed_BHK.
  """
  (key_BGKS, value_BGKS), (B, H, K), G = cached, query_BHK.shape, key_BGK.shape[1]
  wide = accumulator(query_BHK.dtype)
  query_BGRK = query_BHK.reshape(B, G, H // G, K)
  scores_BGRS = jnp.einsum("bgrk,bgks->bgrs", query_BGRK, key_BGKS, preferred_element_type=wide) * K**-0.5
  before_BS = jnp.arange(key_BGKS.shape[-1])[None] < positions_B[:, None]
  scores_BGRS = jnp.where(before_BS[:, None, None], scores_BGRS, jnp.finfo(wide).min)
  own_BGR = (query_BGRK.astype(wide) * key_BGK[:, :, None].astype(wide)).sum(-1) * K**-0.5
  max_BGR = jnp.maximum(scores_BGRS.max(-1), own_BGR)
  weights_BGRS, weight_BGR = jnp.exp(scores_BGRS - max_BGR[..., None]), jnp.exp(own_BGR - max_BGR)
  mixed_BGRK = jnp.einsum(
    "bgrs,bgks->bgrk", weights_BGRS.astype(value_BGKS.dtype), value_BGKS, preferred_element_type=wide
  )
  mixed_BGRK += weight_BGR[..., None] * value_BGK[:, :, None]
  total_BGR = weights_BGRS.sum(-1) + weight_BGR
  return (mixed_BGRK / total_BGR[..., None]).astype(query_BHK.dtype).reshape(B, H, K)
