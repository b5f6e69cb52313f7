"""Counts of a step as jax traced it: what the model's code asks for, before any compiler sees it."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from jaxmoe.xla import jaxpr_counts
from jaxmoe.xla.compiled_step import PARTS, TracedStep
from jaxmoe.xla.declared import AT_MOST
from jaxmoe.xla.program import Program


def traced_step(program: Program, traced: jax.stages.Traced, devices: int) -> TracedStep:
  """Counts of `program`, traced; raises as `jaxpr_counts.count`."""
  expected = jaxpr_counts.count(traced.jaxpr, devices=devices)
  classes = class_bytes(program.arguments)
  infos = dict(zip((name for name in program.arguments if name != "inputs"), traced.args_info[0], strict=False))
  donated = [name for name, info in infos.items() if all(leaf.donated for leaf in jax.tree.leaves(info))]
  return TracedStep(
    class_bytes=classes,
    output_class_bytes=class_bytes(program.outputs(traced)),
    donated_bytes=sum(classes[name] for name in donated),
    flops=expected.flops,
    flops_at_most=jaxpr_counts.count(traced.jaxpr, AT_MOST, devices=devices).flops,
    flops_by_part=expected.by_part(PARTS),
    matmuls=expected.matmuls,
    collectives=expected.collectives,
  )


def class_bytes(classes: Mapping[str, Any]) -> dict[str, int]:
  """Bytes that one device holds of each pytree of sharded shapes."""
  return {name: sum(map(_shard_bytes, jax.tree.leaves(tree))) for name, tree in classes.items()}


def _shard_bytes(leaf: Any) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
