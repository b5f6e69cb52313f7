"""Top-k routing."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.kernels.dtypes import accumulator
from jaxmoe.model.norm import parameter


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
  """Where tokens go: X = experts_per_token choices for each of T tokens, best first; E, which is none, of padding."""

  gates_TX: jax.Array
  choices_TX: jax.Array
  probabilities_TE: jax.Array

  def only(self, real_T) -> "Routing":
    """The same without what is no real token: it takes no room at any expert, whatever stands there."""
    E = self.probabilities_TE.shape[-1]
    return dataclasses.replace(self, choices_TX=jnp.where(real_T[:, None], self.choices_TX, E))


class Router(nnx.Module):
  """softmax(x W) in at least float32, then the best experts of each token."""

  def __init__(self, deployment: Deployment, *, rngs: nnx.Rngs):
    m = deployment.model
    self.experts_per_token, self.norm_topk_prob = m.experts_per_token, m.norm_topk_prob
    shape = (m.num_layers, m.d_model, m.num_experts)
    self.weight = parameter(deployment, rngs, "router", "LDE", shape, fan_in=m.d_model)

  def __call__(self, x_TD) -> Routing:
    wide = accumulator(x_TD.dtype)
    logits_TE = jnp.einsum("td,de->te", x_TD.astype(wide), self.weight[...].astype(wide))
    probabilities_TE = jax.nn.softmax(logits_TE, axis=-1)
    gates_TX, choices_TX = jax.lax.top_k(probabilities_TE, self.experts_per_token)
    if self.norm_topk_prob:
      gates_TX = gates_TX / gates_TX.sum(axis=-1, keepdims=True)
    return Routing(gates_TX, choices_TX, probabilities_TE)
