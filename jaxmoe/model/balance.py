"""Load balance: sums that add up over devices and microbatches, and the loss and drop rate made of them."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import STAGE
from jaxmoe.model.router import Routing


def balance_statistics(routing: Routing, kept_TX) -> jax.Array:
  """Sums over tokens that can be added across devices and microbatches: (2E+1,) in the routing's dtype.

  First E: router probability of each expert; next E: choices that fell on it; last: choices that were dropped. Padding
  chooses no expert.
  """
  E = routing.probabilities_TE.shape[-1]
  dtype = routing.probabilities_TE.dtype
  chosen_E = jnp.zeros(E, dtype).at[routing.choices_TX.reshape(-1)].add(1, mode="drop")
  dropped = jnp.sum(~kept_TX & (routing.choices_TX < E)).astype(dtype)
  return jnp.concatenate([routing.probabilities_TE.sum(axis=0), chosen_E, dropped[None]])


def balance_loss(statistics_LX, tokens: int, experts_per_token: int):
  """E sum_e f_e p_e, for each layer, (L,) (Switch Transformer, arXiv 2101.03961, eq. 4, over the global batch).

  f_e is the share of choices that fell on expert e (no gradient), p_e its mean probability; 1.0 is balanced.
  """
  E = (statistics_LX.shape[-1] - 1) // 2
  mean_probability_LE = statistics_LX[:, :E] / tokens
  share_LE = jax.lax.stop_gradient(statistics_LX[:, E : 2 * E]) / (tokens * experts_per_token)
  return E * jnp.sum(share_LE * mean_probability_LE, axis=-1)


def balance_metrics(deployment: Deployment, statistics_LX, tokens: int):
  """(mean balance loss over layers, share of choices dropped) over the global batch, equal on every device."""
  m, E = deployment.model, deployment.model.num_experts
  total_LX = lax.psum(statistics_LX, deployment.strategy.token_axes)
  balance = balance_loss(total_LX, tokens, m.experts_per_token).sum()
  dropped = jnp.sum(total_LX[:, -1] / jnp.maximum(total_LX[:, E : 2 * E].sum(axis=1), 1))
  balance, drop_rate = lax.psum(jnp.stack([balance, dropped]), STAGE) / m.num_layers
  return balance, drop_rate
