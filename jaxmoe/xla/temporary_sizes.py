"""Lengths on one device by which the buffers of a deployment's step are told apart."""

import math
from typing import Any

import jax

from jaxmoe.config.deployment import Deployment
from jaxmoe.xla.assignment import Assignment
from jaxmoe.xla.attribution import Sizes
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.memory import CompiledMemory
from jaxmoe.xla.program import Program
from jaxmoe.xla.temporaries import Temporaries, temporaries


def sizes_of(d: Deployment, program: Program) -> Sizes:
  """Shapes of the parameters as they are sharded; the rest by the partition rules."""
  m, rules = d.model, d.rules
  kv_heads = 1 if m.latent else math.ceil(m.num_kv_heads / rules.shards("attention", "G"))
  return Sizes(
    train=d.job.kind == "train",
    decode=d.job.kind == "decode",
    weights=tuple({_local_shape(leaf) for leaf in jax.tree.leaves(program.arguments["parameters"])}),
    d_model=m.d_model,
    experts=m.num_experts,
    hidden=math.ceil(m.d_expert / rules.shards("expert", "F")),
    vocabulary=math.ceil(m.vocab_size / rules.shards("vocabulary", "V")),
    heads=math.ceil(m.num_heads / rules.shards("attention", "H")),
    kv_heads=kv_heads,
    cached=m.cache_width if m.latent else m.head_dim,
    keys=d.job.sequence_length,
    tokens=int(d.dispatch_tokens),
  )


def explained(
  d: Deployment, program: Program, optimised: Module, memory: CompiledMemory, assignment: Assignment | None
) -> Temporaries | None:
  """The step's temporaries, buffer by buffer; None if its compiler does not show them."""
  if assignment is None:
    return None
  arguments = [name for name, tree in program.arguments.items() for _ in jax.tree.leaves(tree)]
  return temporaries(assignment, optimised, memory.temp_bytes, sizes_of(d, program), arguments)


def _local_shape(leaf: Any) -> tuple[int, ...]:
  return tuple(leaf.sharding.shard_shape(leaf.shape))
