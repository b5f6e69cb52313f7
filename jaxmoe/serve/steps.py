"""Prefill and decode over a sharded key-value cache."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.model.balance import balance_metrics
from jaxmoe.model.cache import CACHE_LETTERS, Cache, cache_shape, local_cache
from jaxmoe.model.parallel import vary
from jaxmoe.model.sharded import ShardedModel


def make_prefill(model: ShardedModel):
  """The jitted (parameters, tokens_BS, lengths_B) -> (logits_BV of each prompt's next token, Cache, drop rate).

  Prompts fill the first `lengths_B` places of `tokens_BS`; what stands behind them is never read, and takes no room at
  any expert.
  """
  d = model.deployment

  def on_device(parameters, tokens_BS, lengths_B):
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1])[None], tokens_BS.shape)
    cache = vary(local_cache(d), used_axes(model.spec("activation", CACHE_LETTERS)))
    return _next_token(model, parameters, tokens_BS, positions_BS, cache, lengths_B - 1)

  return _jit(model, on_device, cache_given=False)


def make_decode(model: ShardedModel):
  """The jitted (parameters, Cache, tokens_B1, lengths_B) -> (logits_BV, Cache, drop rate); the cache is donated.

  Each sequence's new token stands at position `lengths_B`, the number of tokens already in its cache.
  """

  def on_device(parameters, cache, tokens_BS, lengths_B):
    return _next_token(model, parameters, tokens_BS, lengths_B[:, None], cache, jnp.zeros_like(lengths_B))

  return _jit(model, on_device, cache_given=True)


def abstract_cache(model: ShardedModel) -> Cache:
  """Shape, dtype and sharding of the cache."""
  dtype = jnp.dtype(model.deployment.job.precision.compute)
  entries = jax.ShapeDtypeStruct(
    cache_shape(model.deployment), dtype, sharding=model.sharding("activation", CACHE_LETTERS)
  )
  return Cache(entries, entries)


def _next_token(model: ShardedModel, parameters, tokens_BS, positions_BS, cache, last_B):
  d = model.deployment
  transformer = model.merge(parameters)
  x_MBD, cache, statistics_LX = transformer.hidden(tokens_BS, positions_BS, cache, last_B)
  _, drop_rate = balance_metrics(d, statistics_LX, d.job.batch * d.job.query_length)
  return transformer.output.logits(d, x_MBD, ()), cache, drop_rate


def used_axes(spec: PartitionSpec) -> tuple[str, ...]:
  """All mesh axes that a PartitionSpec names."""
  return tuple(axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry))


def _jit(model: ShardedModel, on_device, *, cache_given: bool):
  strategy = model.deployment.strategy
  tokens, lengths = model.spec("activation", "BS"), model.spec("activation", "B")
  cache = Cache(*[model.spec("activation", CACHE_LETTERS)] * 2)
  logits = PartitionSpec(strategy.batch_axes, strategy.vocabulary_axes)
  in_specs = (model.specs, cache, tokens, lengths) if cache_given else (model.specs, tokens, lengths)
  out_specs = (logits, cache, PartitionSpec())

  def shardings(specs):
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda s: NamedSharding(model.mesh, s), specs, is_leaf=is_spec)

  step = jax.shard_map(on_device, mesh=model.mesh, in_specs=in_specs, out_specs=out_specs)
  return jax.jit(
    step,
    in_shardings=shardings(in_specs),
    out_shardings=shardings(out_specs),
    donate_argnums=(1,) if cache_given else (),
    keep_unused=True,
  )
