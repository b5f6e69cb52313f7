"""In the compiled training step each layer adds its gradients to the sum in place; no loop goes over those of all."""

import math

import jax
import pytest
import tiny
from compiled_modules import TARGETS, devices, largest_write

from jaxmoe.meshes.build import build_mesh
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.program import build_program


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_loop_writes_gradients_of_all_layers(remat, target):
  sizes = {"num_layers": 32, "d_model": 128, "d_expert": 512}
  job = {"remat": remat, "sequence_length": 8, "expert_kernel": "einsum"}
  d = tiny.deployment(Strategy(stage=2, expert=2, tensor=2), "float32", sizes, **job)
  program = build_program(d, build_mesh(d.strategy, devices(target)))
  shards = [w.sharding.shard_shape(w.shape) for w in jax.tree.leaves(program.arguments["parameters"])]
  stack = 4 * max(math.prod(shape) for shape in shards)
  written = largest_write(Module.from_compiled(program.lower().compile()))
  assert written < 3 / 4 * stack
