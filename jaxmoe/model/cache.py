"""Key-value cache: one pair of entries for every layer, sequence, slot and key-value head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.config.deployment import Deployment
from jaxmoe.model.attention import write_at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values in the compute dtype, S slots a sequence: arrays, or one thing about each (its shape, its spec)."""

  key_LBSGK: Any
  value_LBSGK: Any

  def sequences(self, start, count: int) -> tuple[jax.Array, jax.Array]:
    """(key, value) of `count` sequences from `start` on."""
    key, value = (lax.dynamic_slice_in_dim(x, start, count, axis=1) for x in (self.key_LBSGK, self.value_LBSGK))
    return key, value

  def write(self, entries, start, positions_B, active) -> "Cache":
    """The cache with new (key_LbsGK, value_LbsGK) of the sequences from `start` on, at each one's position."""
    olds = self.sequences(start, entries[0].shape[1])
    layers = jax.vmap(write_at, in_axes=(0, 0, None))
    news = [jnp.where(active, layers(old, new, positions_B), old) for old, new in zip(olds, entries, strict=True)]
    return Cache(
      lax.dynamic_update_slice_in_dim(self.key_LBSGK, news[0], start, axis=1),
      lax.dynamic_update_slice_in_dim(self.value_LBSGK, news[1], start, axis=1),
    )


def cache_shape(deployment: Deployment) -> tuple[int, ...]:
  """(L, B, S, G, K) of the whole deployment."""
  m, job = deployment.model, deployment.job
  return (m.num_layers, job.batch, job.sequence_length, m.num_kv_heads, m.head_dim)


def local_cache(deployment: Deployment) -> Cache:
  """An empty cache of one device's size."""
  shape = deployment.rules.local_shape("activation", "LBSGK", cache_shape(deployment))
  dtype = jnp.dtype(deployment.job.precision.compute)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
