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
    gradient: of any entry, relative to its tensor's largest entry; NaN if one is.
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
  return Agreement(
    loss=abs(float(metrics.loss) / float(expected_loss) - 1),
    gradient=gradient_difference(nnx.to_pure_dict(gradients), expected),
    drop_rate=float(metrics.drop_rate),
  )


def gradient_difference(got, expected) -> float:
  """The greatest of any tensor; one that is zero but for rounding is taken relative to the largest entry of all."""
  pairs = list(zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (got, expected)), strict=True))
  largest = max(np.abs(wanted).max() for _, wanted in pairs)
  rounding = 1000 * np.finfo(largest.dtype).eps * largest

  def difference(mine, wanted):
    own = np.abs(wanted).max()
    return np.abs(mine - wanted).max() / (own if own > rounding else largest)

  return float(np.max([difference(*pair) for pair in pairs]))  # unlike Python's, numpy's is NaN if one is
