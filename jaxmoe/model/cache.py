"""Key-value cache: keys and values of every layer, sequence, key-value head and slot, written in place.

Slots stand last, because compilers lay an array out in this order only where the last dimension fills their tiles: a
head is often narrower than the 128 lanes of a TPU, and another layout outside a loop than inside copies the cache.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxmoe.config.deployment import Deployment

CACHE_LETTERS = "LBGKS"
_IN_ORDER = Layout(major_to_minor=tuple(range(len(CACHE_LETTERS))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values in the compute dtype, S slots a sequence: arrays, or one thing about each (its shape, its spec)."""

  key_LBGKS: Any
  value_LBGKS: Any

  @jax.named_scope("attention")
  def layer(self, layer, start, count: int) -> tuple[jax.Array, jax.Array]:
    """(key_BGKS, value_BGKS) of one layer and `count` sequences from `start` on."""

    def part(x):
      return lax.dynamic_slice(x, (layer, start, 0, 0, 0), (1, count, *x.shape[2:]))[0]

    return part(self.key_LBGKS), part(self.value_LBGKS)

  @jax.named_scope("attention")
  def fill(self, layer, start, entries) -> "Cache":
    """The cache with one layer's (key_BSGK, value_BSGK) of whole prompts, sequences from `start` on."""

    def write(x, new_BSGK):
      x = lax.dynamic_update_slice(x, jnp.moveaxis(new_BSGK, 1, 3)[None], (layer, start, 0, 0, 0))
      return with_layout_constraint(x, _IN_ORDER)

    return jax.tree.map(write, self, Cache(*entries))

  @jax.named_scope("attention")
  def append(self, start, entries, positions_B) -> "Cache":
    """The cache with all layers' (key_LB1GK, value_LB1GK) of one token, sequences from `start` on, at each's position.

    One sequence after the other: a scatter would have compilers choose a layout that suits it alone.
    """
    news = jax.tree.map(lambda new: jnp.moveaxis(new, 2, 4), Cache(*entries))

    def write_one(b, cache):
      def write(x, new_LBGK1):
        one, sequence = lax.dynamic_slice_in_dim(new_LBGK1, b, 1, axis=1), start + b
        x = lax.dynamic_update_slice(x, one, (0, sequence, 0, 0, positions_B[b].astype(sequence.dtype)))
        return with_layout_constraint(x, _IN_ORDER)

      return jax.tree.map(write, cache, news)

    return lax.fori_loop(0, positions_B.shape[0], write_one, self)


def cache_shape(deployment: Deployment) -> tuple[int, ...]:
  """(L, B, G, K, S) of the whole deployment."""
  m, job = deployment.model, deployment.job
  return (m.num_layers, job.batch, m.num_kv_heads, m.head_dim, job.sequence_length)


def local_cache(deployment: Deployment) -> Cache:
  """An empty cache of one device's size."""
  shape = deployment.rules.local_shape("activation", CACHE_LETTERS, cache_shape(deployment))
  dtype = jnp.dtype(deployment.job.precision.compute)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
