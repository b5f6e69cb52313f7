"""The Mixture-of-Experts transformer: parameters as a Flax NNX module, and one device's forward pass over them."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import STAGE
from jaxmoe.model.cache import Cache
from jaxmoe.model.layer import Layer
from jaxmoe.model.norm import RMSNorm, parameter
from jaxmoe.model.parallel import gather_tokens, vary
from jaxmoe.model.stacked import adding_to, gradient_sums
from jaxmoe.model.support import check_runnable
from jaxmoe.model.vocabulary import embed, logits
from jaxmoe.pipeline.executor import from_last_stage, run_pipeline


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
  """What turns the last stage's output into logits, on one device."""

  norm: RMSNorm
  matrix_DV: jax.Array

  def logits(self, deployment: Deployment, x_MTD, slice_axes: tuple[str, ...]):
    """This device's columns of the logits of all its tokens, (M T, V); tokens come normed, sliced over `slice_axes`."""
    with jax.named_scope("head"):
      all_MTD = gather_tokens(x_MTD, slice_axes, deployment.strategy.vocabulary_axes)
      return logits(self.matrix_DV, all_MTD.reshape(-1, all_MTD.shape[-1]))


class Transformer(nnx.Module):
  """Embedding, L stacked layers, final norm and head. Built whole; called inside `shard_map` on one device's shards."""

  def __init__(self, deployment: Deployment, *, rngs: nnx.Rngs):
    check_runnable(deployment)
    V, D = deployment.model.vocab_size, deployment.model.d_model
    self.deployment = deployment
    self.embedding = parameter(deployment, rngs, "vocabulary", "VD", (V, D), fan_in=D)
    self.layers = Layer(deployment, rngs=rngs)
    self.final_norm = RMSNorm(deployment, "norm", "D", (D,), rngs=rngs)
    tied = deployment.model.tied_embeddings
    self.head = None if tied else parameter(deployment, rngs, "vocabulary", "DV", (D, V), fan_in=D)

  @property
  def output(self) -> Head:
    """Final norm and head."""
    return Head(self.final_norm, self.embedding[...].T if self.head is None else self.head[...])

  def hidden(self, tokens_BS, positions_BS, cache: Cache | None, last_B):
    """Runs the stages over all microbatches in serving.

    Args:
      last_B: index of the only token of each sequence whose output is wanted.

    Returns:
      x_MBD (whole sequences), normed; the cache; and balance statistics (L, 2E+1) of this device's layers and tokens.
    """
    emitted, cache, statistics = self.emitted(tokens_BS, positions_BS, cache, last_B)
    stages = self.deployment.strategy.stage
    with jax.named_scope("head"):
      return self.final_norm(from_last_stage(emitted[stages - 1 :], stages=stages)), cache, statistics

  def emitted(self, tokens_BS, positions_BS, cache: Cache | None, last_B=None):
    """What this stage emits at each of the M + stages - 1 ticks; the last stage's last M are the model's output.

    Args:
      tokens_BS, positions_BS: this device's sequences.
      cache: None, or the device's cache: filled when S > 1, read and extended when S is 1.
      last_B: None for all tokens' output, or the index of the only token of each sequence whose output is wanted.

    Returns:
      x_TD (slices of tokens) or x_BD (whole sequences), stacked; the cache; and balance statistics (L, 2E+1) of this
      device's layers and tokens.
    """
    d, strategy = self.deployment, self.deployment.strategy
    M, stages = d.job.microbatches, strategy.stage
    x_MTD = self._embedded(tokens_BS.reshape(M, -1))
    positions_MBS = positions_BS.reshape(M, -1, positions_BS.shape[1])
    last_MB = None if last_B is None else last_B.reshape(M, -1)

    def step(state, x_TD, microbatch, active):
      positions_BS = positions_MBS[microbatch]
      # All tokens are trained on, and the one of each sequence that decodes is real.
      one_each = positions_BS.shape[1] == 1
      real_T = None if last_MB is None or one_each else self._real(positions_BS, last_MB[microbatch])
      x_TD, state, statistics = self._stage(state, x_TD, positions_BS, microbatch, real_T)
      kept = x_TD if last_MB is None else self._pick(x_TD, last_MB[microbatch])
      return state, x_TD, (kept, jnp.where(active, statistics, 0))

    sums = gradient_sums(nnx.state(self.layers)) if d.job.kind == "train" else None
    (cache, _), (kept, statistics) = run_pipeline(step, (cache, sums), x_MTD, stages=stages)
    return kept, cache, statistics.sum(axis=0)

  def _embedded(self, tokens_MT):
    """One microbatch at a time: of all at once, backward would sort and copy the gradients in the weights' dtype."""
    d = self.deployment
    dtype = jnp.dtype(d.job.precision.compute)
    with jax.named_scope("embedding"):
      x_MTD = jax.lax.map(lambda tokens_T: embed(self.embedding[...], tokens_T, d.rules, dtype), tokens_MT)
      return vary(x_MTD, (STAGE, *d.strategy.token_axes))

  def _stage(self, state, x_TD, positions_BS, microbatch, real_T):
    """One microbatch through this stage's layers; a cache also takes what an idle tick computes (`run_pipeline`).

    Args:
      state: the cache or None, and `gradient_sums` or None.
      real_T: which tokens are no padding; None, all.
    """
    (cache, sums), start = state, microbatch * positions_BS.shape[0]
    decoding = cache is not None and positions_BS.shape[1] == 1
    graph, weights = nnx.split(self.layers)
    weights = weights if sums is None else jax.lax.stop_gradient(weights)

    def one_layer(state, slices):
      (x_TD, cache, sums), (layer, weights) = state, slices
      if sums is not None:
        sums, weights = adding_to(sums, weights, layer)
      cached = cache.layer(layer, start, positions_BS.shape[0]) if decoding else None
      x_TD, entries, statistics = nnx.merge(graph, weights)(x_TD, positions_BS, cached, real_T)
      if cache is not None and not decoding:
        cache = cache.fill(layer, start, entries)
      return (x_TD, cache, sums), (entries if decoding else None, statistics)

    if self.deployment.job.kind == "train" and self.deployment.job.remat == "full":
      one_layer = jax.checkpoint(one_layer)
    layers = jnp.arange(jax.tree.leaves(weights)[0].shape[0])
    (x_TD, cache, sums), (entries, statistics) = jax.lax.scan(one_layer, (x_TD, cache, sums), (layers, weights))
    if cache is not None and decoding:
      # Written once every layer has read: without that order, compilers keep the old cache in a copy.
      x_TD, entries = jax.lax.optimization_barrier((x_TD, entries))
      cache = cache.append(start, entries, positions_BS[:, 0])
    return x_TD, (cache, sums), statistics

  def _real(self, positions_BS, last_B):
    """Which of this device's slice of tokens stand at or before the last one of their prompt."""
    axes = self.deployment.strategy.slice_axes
    real_T = (positions_BS <= last_B[:, None]).reshape(-1)
    if not axes:
      return real_T
    return jax.lax.dynamic_index_in_dim(
      real_T.reshape(jax.lax.axis_size(axes), -1), jax.lax.axis_index(axes), keepdims=False
    )

  def _pick(self, x_TD, last_B):
    """The wanted token of each sequence, on every device that holds slices of them: x_BD."""
    x_TD = gather_tokens(x_TD, self.deployment.strategy.slice_axes, ())
    x_BSD = x_TD.reshape(last_B.shape[0], -1, x_TD.shape[-1])
    return jnp.take_along_axis(x_BSD, last_B[:, None, None], axis=1)[:, 0]


def with_varying_weights(model: Transformer) -> Transformer:
  """The same model with weights marked varying over all axes whose tokens, or heads, they see.

  Done once, outside every loop, so that backward sums each gradient once over those axes and not once a microbatch.
  """
  rules = model.deployment.rules

  def varying(path, w):
    of_heads = any(name in jax.tree_util.keystr(path) for name in ("query_norm", "key_norm"))
    return vary(w, rules.seen_over("head norm" if of_heads else "norm"))

  return jax.tree.map_with_path(varying, model)
