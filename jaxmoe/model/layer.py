"""One transformer layer on one device: attention, then experts, each added to the residual stream."""

import dataclasses

import jax
from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.model.attention import Attention
from jaxmoe.model.balance import balance_statistics
from jaxmoe.model.dispatch import dispatch
from jaxmoe.model.experts import Experts
from jaxmoe.model.norm import RMSNorm
from jaxmoe.model.parallel import gather_tokens, sum_tokens, vary
from jaxmoe.model.router import Router


class Layer(nnx.Module):
  """L stacked layers when built; one layer's slice when called."""

  def __init__(self, deployment: Deployment, *, rngs: nnx.Rngs):
    L, D = deployment.model.num_layers, deployment.model.d_model
    self.deployment = deployment
    self.attention_norm = RMSNorm(deployment, "norm", "LD", (L, D), rngs=rngs)
    self.attention = Attention(deployment, rngs=rngs)
    self.expert_norm = RMSNorm(deployment, "norm", "LD", (L, D), rngs=rngs)
    self.router = Router(deployment, rngs=rngs)
    self.experts = Experts(deployment, rngs=rngs)

  def __call__(self, x_TD, positions_BS, cached=None, real_T=None):
    """Returns the new x_TD, the layer's new (key_BSGK, value_BSGK) and its balance statistics (2E+1,).

    Args:
      real_T: which tokens are no padding; None, all.
    """
    x_TD, entries = self._attend(x_TD, positions_BS, cached)
    y_TD, statistics = self._feed_forward(x_TD, real_T)
    return x_TD + y_TD, entries, statistics

  def _attend(self, x_TD, positions_BS, cached):
    strategy = self.deployment.strategy
    with jax.named_scope("attention"):
      all_TD = gather_tokens(self.attention_norm(x_TD), strategy.slice_axes, strategy.heads_over)
      x_BSD = all_TD.reshape(*positions_BS.shape, -1)
      out_BSD, entries = self.attention(x_BSD, positions_BS, cached)
      return x_TD + sum_tokens(out_BSD.reshape(all_TD.shape), strategy.slice_axes, strategy.heads_over), entries

  def _feed_forward(self, x_TD, real_T):
    width_axes = self.deployment.strategy.width_axes
    normed_TD = self.expert_norm(x_TD)
    with jax.named_scope("router"):
      routing = self.router(normed_TD)
      routing = routing if real_T is None else routing.only(real_T)
    with jax.named_scope("experts"):
      # Devices that share an expert's width see the same tokens; gradients of what enters here are summed over them.
      x_TD, gates_TX = vary((normed_TD, routing.gates_TX), width_axes)
      y_TD, kept_TX = dispatch(self.deployment, self.experts, x_TD, dataclasses.replace(routing, gates_TX=gates_TX))
      y_TD = sum_tokens(y_TD, (), width_axes)
    return y_TD, balance_statistics(routing, kept_TX)
