"""A small copy of a deployment: the same axes, foldings, transport and schedule, at sizes that a laptop trains."""

import dataclasses
import math

from jaxmoe.config.assumptions import NOTHING_HIDDEN
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

BYTE_VOCABULARY = 256
SEQUENCE_LENGTH = 64
SEQUENCES_PER_DEVICE = 4


def reduced(deployment: Deployment, devices: int) -> Deployment:
  """A training job of the same kind of model on at most `devices`; every axis above one stays above one.

  Raises:
    UsageError: there are fewer devices than two for each axis in use.
  """
  strategy = _shrunk(deployment.strategy, devices)
  job = Job(
    kind="train",
    batch=strategy.size(*strategy.batch_axes) * SEQUENCES_PER_DEVICE,
    sequence_length=SEQUENCE_LENGTH,
    microbatches=math.gcd(SEQUENCES_PER_DEVICE, deployment.job.microbatches),
    remat=deployment.job.remat,
    transport=deployment.job.transport,
    capacity_factor=deployment.job.capacity_factor,
    precision=Precision(weights="float32", compute="float32", optimizer="float32"),
  )
  return dataclasses.replace(
    deployment,
    name=f"{deployment.name} (reduced)",
    model=_small(deployment.model, strategy),
    strategy=strategy,
    job=job,
    claims=(),
    assumptions=NOTHING_HIDDEN,
  )


def with_precision(deployment: Deployment, dtype: str) -> Deployment:
  """The same deployment with everything in one dtype."""
  precision = Precision(weights=dtype, compute=dtype, optimizer=dtype)
  return dataclasses.replace(deployment, job=dataclasses.replace(deployment.job, precision=precision))


def _shrunk(strategy: Strategy, devices: int) -> Strategy:
  sizes = {axis: min(2, strategy.size(axis)) for axis in AXES}
  needed = math.prod(sizes.values())
  if needed > devices:
    raise UsageError(f"{strategy.product} uses axes that need at least {needed} devices, got {devices}")
  while True:
    growing = [a for a in AXES if strategy.size(a) % (2 * sizes[a]) == 0 and 2 * math.prod(sizes.values()) <= devices]
    if not growing:
      return dataclasses.replace(strategy, **sizes)
    # The axis that was shrunk most grows first.
    sizes[max(growing, key=lambda a: strategy.size(a) / sizes[a])] *= 2


def _small(model: ModelConfig, strategy: Strategy) -> ModelConfig:
  kv_heads = strategy.size(*strategy.heads_over)
  return dataclasses.replace(
    model,
    name=f"{model.name} (reduced)",
    num_layers=2 * strategy.stage,
    d_model=64,
    num_heads=kv_heads * min(2, model.num_heads // model.num_kv_heads),
    num_kv_heads=kv_heads,
    head_dim=16,
    num_experts=2 * strategy.size(*strategy.experts_over),
    experts_per_token=min(2, model.experts_per_token),
    d_expert=128,
    vocab_size=BYTE_VOCABULARY,
  )
