"""One training step: loss and gradient on every device's shard, then the optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.config.deployment import Deployment
from jaxmoe.model.balance import balance_metrics
from jaxmoe.model.sharded import ShardedModel
from jaxmoe.model.transformer import with_varying_weights
from jaxmoe.train.loss import mean_cross_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
  """Scalars of one step over the global batch; `loss` is cross entropy (nats a token) plus weighted balance loss."""

  loss: jax.Array
  cross_entropy: jax.Array
  balance: jax.Array
  drop_rate: jax.Array


def make_optimizer(learning_rate: float = 3e-3) -> optax.GradientTransformation:
  """AdamW with a constant rate."""
  return optax.adamw(learning_rate, weight_decay=1e-4)


def init_optimizer(optimizer: optax.GradientTransformation, deployment: Deployment, parameters):
  """Zero moments in the job's optimizer dtype, sharded like their parameters."""
  return optimizer.init(_cast(parameters, deployment.job.precision.optimizer))


def loss_and_gradient(model: ShardedModel):
  """A function (parameters, tokens_BS, targets_BS) -> (Metrics, gradients like the parameters), on global arrays."""
  batch_spec = model.spec("activation", "BS")

  def on_device(parameters, tokens_BS, targets_BS):
    def loss(parameters):
      metrics = _local_loss(model.deployment, model.merge(parameters), tokens_BS, targets_BS)
      return metrics.loss, metrics

    gradients, metrics = jax.grad(loss, has_aux=True)(parameters)
    return metrics, gradients

  return jax.shard_map(
    on_device,
    mesh=model.mesh,
    in_specs=(model.specs, batch_spec, batch_spec),
    out_specs=(PartitionSpec(), model.specs),
  )


def make_train_step(model: ShardedModel, optimizer: optax.GradientTransformation):
  """The jitted step (parameters, optimizer state, tokens_BS, targets_BS) -> (parameters, state, Metrics).

  Parameters and optimizer state are donated: they are updated in place.
  """
  differentiate = loss_and_gradient(model)
  dtype = model.deployment.job.precision.optimizer

  def train_step(parameters, optimizer_state, tokens_BS, targets_BS):
    metrics, gradients = differentiate(parameters, tokens_BS, targets_BS)
    with jax.named_scope("optimizer"):
      updates, optimizer_state = optimizer.update(_cast(gradients, dtype), optimizer_state, _cast(parameters, dtype))
      return optax.apply_updates(parameters, updates), optimizer_state, metrics

  state = jax.tree.map(lambda x: x.sharding, abstract_optimizer(model, optimizer))
  batch = model.sharding("activation", "BS")
  return jax.jit(
    train_step,
    in_shardings=(model.shardings, state, batch, batch),
    out_shardings=(model.shardings, state, NamedSharding(model.mesh, PartitionSpec())),
    donate_argnums=(0, 1),
    keep_unused=True,
  )


def abstract_optimizer(model: ShardedModel, optimizer: optax.GradientTransformation):
  """Shape, dtype and sharding of the optimizer state: a moment lies where its parameter lies, all else everywhere.

  So do sums over a parameter's rows or columns, which its sharding does not fit; a masked parameter has no moment.
  """
  state = jax.eval_shape(lambda p: init_optimizer(optimizer, model.deployment, p), model.abstract)
  everywhere = NamedSharding(model.mesh, PartitionSpec())

  def placed(x, sharding=everywhere):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  def moment(x, parameter):
    if isinstance(x, optax.MaskedNode):
      return x
    return placed(x, parameter.sharding) if x.shape == parameter.shape else placed(x)

  return optax.tree.map_params(
    optimizer,
    moment,
    state,
    model.abstract,
    transform_non_params=placed,
    is_leaf=lambda x: isinstance(x, optax.MaskedNode),
  )


def _local_loss(deployment: Deployment, model, tokens_BS, targets_BS) -> Metrics:
  """Loss of the global batch, from this device's shard of model and tokens; every device returns the same numbers."""
  d = deployment
  model = with_varying_weights(model)
  positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1])[None], tokens_BS.shape)
  emitted_TD, _, statistics_LX = model.emitted(tokens_BS, positions_BS, None)
  entropy = mean_cross_entropy(d, model.output, emitted_TD, targets_BS.reshape(d.job.microbatches, -1))
  with jax.named_scope("loss"):
    entropy = lax.psum(entropy, d.strategy.batch_axes)
  tokens = d.job.batch * d.job.sequence_length
  balance, drop_rate = balance_metrics(d, statistics_LX, tokens)
  return Metrics(entropy + d.model.aux_loss_coef * balance, entropy, balance, drop_rate)


def _cast(tree, dtype: str):
  return jax.tree.map(lambda x: x.astype(dtype), tree)
