"""The training loop: batches in, metrics out."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.build import build_mesh
from jaxmoe.model.sharded import shard_model
from jaxmoe.train.data import batches, standard_library_bytes
from jaxmoe.train.step import abstract_optimizer, init_optimizer, make_optimizer, make_train_step


def train(deployment: Deployment, steps: int, progress: Callable[[str], None], seed: int = 0) -> list[dict[str, float]]:
  """Trains from scratch on the standard library's bytes; returns each step's metrics.

  Raises:
    MissingError: this process has fewer devices than the strategy needs.
  """
  model = shard_model(deployment, build_mesh(deployment.strategy))
  optimizer = make_optimizer()
  step = make_train_step(model, optimizer)
  parameters = model.init(seed)
  shardings = jax.tree.map(lambda x: x.sharding, abstract_optimizer(model, optimizer))
  state = jax.jit(functools.partial(init_optimizer, optimizer, deployment), out_shardings=shardings)(parameters)
  data = batches(standard_library_bytes(), deployment.job.batch, deployment.job.sequence_length, seed)
  history = []
  for index, (tokens_BS, targets_BS) in zip(range(steps), data, strict=False):
    parameters, state, metrics = step(parameters, state, tokens_BS, targets_BS)
    history.append({name: float(np.asarray(value)) for name, value in vars(metrics).items()})
    progress(f"step {index + 1} of {steps}: loss {history[-1]['loss']:.3f}, dropped {history[-1]['drop_rate']:.1%}")
  return history
