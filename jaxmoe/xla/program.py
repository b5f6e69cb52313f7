"""The real step of a deployment, ready to be lowered from shapes alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmoe.config.deployment import Deployment
from jaxmoe.model.sharded import ShardedModel, shard_model
from jaxmoe.serve.steps import abstract_cache, make_decode, make_prefill
from jaxmoe.train.step import abstract_optimizer, make_optimizer, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted step and its abstract arguments, by class in argument order.

  Attributes:
    arguments: class name ("parameters", "optimizer", "cache", "inputs") -> pytree of sharded shapes.
    results: class name of each top-level result.
  """

  step: Any
  arguments: dict[str, Any]
  results: tuple[str, ...]

  def trace(self) -> jax.stages.Traced:
    flat = [tree for name, tree in self.arguments.items() if name != "inputs"]
    return self.step.trace(*flat, *self.arguments["inputs"])

  def lower(self) -> jax.stages.Lowered:
    return self.trace().lower()

  def outputs(self, stage: jax.stages.Traced | jax.stages.Lowered) -> dict[str, Any]:
    """Class name -> pytree of sharded result shapes."""
    return dict(zip(self.results, stage.out_info, strict=True))


def build_program(deployment: Deployment, mesh: Mesh) -> Program:
  """Value, gradient and optimizer update for training; prefill or one decode step for serving."""
  model = shard_model(deployment, mesh)
  if deployment.job.kind == "train":
    return _train(model)
  tokens = _integers(model, "BS", deployment.job.query_length)
  lengths = _integers(model, "B")
  if deployment.job.kind == "prefill":
    return Program(
      make_prefill(model),
      {"parameters": model.abstract, "inputs": (tokens, lengths)},
      ("logits", "cache", "metrics"),
    )
  return Program(
    make_decode(model),
    {"parameters": model.abstract, "cache": abstract_cache(model), "inputs": (tokens, lengths)},
    ("logits", "cache", "metrics"),
  )


def _train(model: ShardedModel) -> Program:
  optimizer = make_optimizer()
  tokens = _integers(model, "BS", model.deployment.job.sequence_length)
  return Program(
    make_train_step(model, optimizer),
    {
      "parameters": model.abstract,
      "optimizer": abstract_optimizer(model, optimizer),
      "inputs": (tokens, tokens),
    },
    ("parameters", "optimizer", "metrics"),
  )


def _integers(model: ShardedModel, letters: str, *lengths: int) -> jax.ShapeDtypeStruct:
  shape = (model.deployment.job.batch, *lengths)
  return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=model.sharding("activation", letters))
