"""Is the sharded model right? Its loss and gradients against the single-device reference, on the same batch."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.build import build_mesh
from jaxmoe.model import reference
from jaxmoe.model.sharded import shard_model
from jaxmoe.train.data import batches, standard_library_bytes
from jaxmoe.train.step import loss_and_gradient


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
  """Largest differences from the reference.

  Attributes:
    loss: relative.
    gradient: of any entry, relative to its tensor's largest entry.
    drop_rate: share of choices that both dropped.
  """

  loss: float
  gradient: float
  drop_rate: float


def agreement_with_reference(deployment: Deployment, seed: int = 0) -> Agreement:
  """Runs both on one batch; in float64 if the job's precision asks for it."""
  with jax.enable_x64(deployment.job.precision.compute == "float64"):
    return _agreement(deployment, seed)


def _agreement(d: Deployment, seed: int) -> Agreement:
  model = shard_model(d, build_mesh(d.strategy))
  parameters = model.init(seed)
  tokens_BS, targets_BS = next(batches(standard_library_bytes(), d.job.batch, d.job.sequence_length, seed))
  metrics, gradients = jax.jit(loss_and_gradient(model))(parameters, tokens_BS, targets_BS)
  plain = jax.tree.map(np.asarray, nnx.to_pure_dict(parameters))
  capacity = d.expert_capacity if d.job.transport == "capacity" else None

  def loss(parameters):
    return reference.loss(d.model, parameters, tokens_BS, targets_BS, group_tokens=d.dispatch_tokens, capacity=capacity)

  expected_loss, expected = jax.jit(jax.value_and_grad(loss))(plain)
  differences = jax.tree.map(_difference, nnx.to_pure_dict(gradients), expected)
  return Agreement(
    loss=abs(float(metrics.loss) / float(expected_loss) - 1),
    gradient=max(jax.tree.leaves(differences)),
    drop_rate=float(metrics.drop_rate),
  )


def _difference(got, expected) -> float:
  got, expected = np.asarray(got), np.asarray(expected)
  return float(np.abs(got - expected).max() / np.abs(expected).max())
