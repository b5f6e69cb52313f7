"""The loss, one microbatch's logits at a time: value and gradients against all logits at once, and what it holds."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from jaxmoe.meshes.axes import STAGE
from jaxmoe.meshes.build import build_mesh
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.model.sharded import shard_model
from jaxmoe.train.loss import mean_cross_entropy
from jaxmoe.xla.program import build_program

STAGES, M, T, TWICE = 2, 4, 32, 2.0


def split_job(dtype="float64", **sizes):
  """Two stages, which hold half of the vocabulary each; 4 microbatches of 2 sequences of 16 tokens."""
  job = {"batch": 8, "sequence_length": 16, "microbatches": M}
  small = {"num_layers": STAGES, "num_experts": 2, "d_expert": 8}
  return tiny.deployment(Strategy(stage=STAGES), dtype, {**small, **sizes}, **job)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_those_of_all_logits_at_once(tied):
  """Of twice the loss, so that what backward is handed is not one."""
  with jax.enable_x64(True):
    d = split_job(tied_embeddings=tied)
    model = shard_model(d, build_mesh(d.strategy))
    parameters, rng = model.init(), np.random.default_rng(0)
    emitted = jnp.array(rng.normal(size=(STAGES, M + STAGES - 1, T, d.model.d_model)))
    targets = jnp.array(rng.integers(d.model.vocab_size, size=(M, T)), jnp.int32)

    def on_device(parameters, emitted_STD):
      def loss(parameters, emitted_STD):
        return TWICE * mean_cross_entropy(d, model.merge(parameters).output, emitted_STD[0], targets)

      return jax.value_and_grad(loss, argnums=(0, 1))(parameters, emitted_STD)

    stages = PartitionSpec(STAGE)
    outputs = (PartitionSpec(), (model.specs, stages))
    split = jax.shard_map(on_device, mesh=model.mesh, in_specs=(model.specs, stages), out_specs=outputs)
    found = jax.jit(split)(parameters, emitted)

    def whole(parameters, emitted):
      return TWICE * entropy_of_all(model.merge(parameters), emitted[-1, STAGES - 1 :], targets)

    wanted = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(parameters, emitted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)


def entropy_of_all(model, x_MTD, targets_MT):
  """The mean, on one device."""
  scale, head = model.final_norm.scale[...], model.embedding[...].T if model.head is None else model.head[...]
  rms = jnp.sqrt(jnp.mean(x_MTD**2, -1, keepdims=True) + model.deployment.model.norm_eps)
  chances = jax.nn.log_softmax(x_MTD / rms * scale[None, None] @ head)
  return -jnp.mean(jnp.take_along_axis(chances, targets_MT[..., None], -1))


def test_a_step_holds_the_logits_of_one_microbatch():
  """All would be its largest array; as it is, that is the embedding, the global one."""
  words = 2**16
  d = split_job("float32", vocab_size=words)
  text = build_program(d, build_mesh(d.strategy)).lower().as_text()
  shapes = {tuple(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)+)f32>", text)}
  assert (T, words // STAGES) in shapes
  assert max(map(math.prod, shapes)) == words * d.model.d_model < M * T * words // STAGES
