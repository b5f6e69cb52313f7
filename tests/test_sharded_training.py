"""Sharded loss and gradients against the single-device reference, over meshes, foldings, transports and schedules."""

import dataclasses
import math
import types

import jax
import numpy as np
import optax
import pytest
import tiny

from jaxmoe.meshes.build import build_mesh
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.model.sharded import shard_model
from jaxmoe.report.demo import Outcome
from jaxmoe.train.check import Agreement, agreement_with_reference, gradient_difference
from jaxmoe.train.step import abstract_optimizer, init_optimizer, loss_and_gradient, make_train_step

FOLDED = {"heads_over": ("expert",)}
BOTH = {"heads_over": ("expert", "tensor")}
WHOLE = {"experts_over": ("expert", "tensor")}

CASES = {
  "one device": (Strategy(), {}),
  "data x expert x tensor": (Strategy(data=2, expert=2, tensor=2), {}),
  "stage x expert x tensor, recomputed": (Strategy(stage=2, expert=2, tensor=2), {"remat": "full", "microbatches": 4}),
  "four stages": (Strategy(stage=4, tensor=2), {}),
  "heads over expert": (Strategy(stage=2, expert=4, **FOLDED), {"remat": "full"}),
  "heads over expert and tensor": (Strategy(data=2, expert=2, tensor=2, **BOTH), {}),
  "whole experts": (Strategy(stage=2, expert=2, tensor=2, **WHOLE), {}),
  "whole experts, heads over both": (Strategy(data=2, expert=2, tensor=2, **BOTH, **WHOLE), {"remat": "full"}),
  "whole experts, heads over expert alone": (Strategy(data=2, stage=2, expert=2, **FOLDED, **WHOLE), {}),
  "dense transport": (Strategy(stage=2, expert=2, tensor=2), {"transport": "dense", "remat": "full"}),
  "dense transport, folded": (Strategy(expert=4, data=2, **FOLDED), {"transport": "dense"}),
  "gather transport": (Strategy(stage=2, expert=2, tensor=2), {"transport": "gather", "remat": "full"}),
  "gather transport, folded": (Strategy(expert=4, data=2, **FOLDED), {"transport": "gather"}),
  "gather transport, whole experts": (Strategy(expert=2, tensor=2, **WHOLE), {"transport": "gather"}),
  "buffers by the tile loop": (Strategy(stage=2, expert=2, tensor=2), {"expert_kernel": "cpu_tiles", "remat": "full"}),
  "tokens dropped": (Strategy(data=2, expert=4), {"capacity_factor": 0.6}),
}
SIZES = {
  "four stages": {"num_kv_heads": 2},  # grouped queries
  "data x expert x tensor": {"gated": False, "activation": "gelu"},
  "whole experts": {"query_key_norm": "head", "norm_topk_prob": False},
  "heads over expert": {"tied_embeddings": True},
  "gather transport, folded": {"gated": False, "activation": "gelu", "experts_per_token": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_float64_equals_reference(name):
  strategy, job = CASES[name]
  found = agreement_with_reference(tiny.deployment(strategy, "float64", SIZES.get(name), **job))
  assert found.loss < 1e-12
  assert found.gradient < 1e-10
  assert (found.drop_rate > 0) == (name == "tokens dropped")


@pytest.mark.parametrize("name", ["stage x expert x tensor, recomputed", "heads over expert"])
def test_float32_equals_reference(name):
  strategy, job = CASES[name]
  found = agreement_with_reference(tiny.deployment(strategy, "float32", SIZES.get(name), **job))
  assert found.loss < 1e-6
  assert found.gradient < 1e-5


@pytest.mark.parametrize("name", ["first", "last"])
def test_a_gradient_that_is_nan_never_agrees(name):
  wanted = {"first": np.ones(3), "last": np.ones(3)}
  assert math.isnan(gradient_difference({**wanted, name: np.array([1, np.nan, 1])}, wanted))
  for found in (Agreement(0.0, math.nan, 0.0), Agreement(math.nan, 0.0, 0.0)):
    run = types.SimpleNamespace(
      training=types.SimpleNamespace(agreement={"float32": found}), tolerance={"float32": 1.0}
    )
    assert not Outcome.right.fget(run)


def test_a_router_that_moves_no_loss_agrees():
  """One expert a token, its gate scaled to one, and no balance loss: the router's gradient is zero but for rounding."""
  sizes = {"experts_per_token": 1, "aux_loss_coef": 0.0}
  assert agreement_with_reference(tiny.deployment(Strategy(), "float64", sizes)).gradient < 1e-10


def test_all_tokens_to_one_expert_are_dropped_beyond_its_capacity():
  """A router that always prefers experts 0 and 1: they keep C rows a group, all others stay empty."""
  d = tiny.deployment(Strategy(expert=4), capacity_factor=1.0)
  metrics, gradients = _step(d, skew=True)
  kept = 2 * d.expert_capacity / (d.dispatch_tokens * 2)
  assert float(metrics.drop_rate) == pytest.approx(1 - kept)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
  up = np.asarray(gradients["layers"]["experts"]["up"][...])
  assert np.abs(up[:, :2]).max() > 0
  assert np.abs(up[:, 2:]).max() == 0


def test_balance_loss_is_one_when_balanced_and_counts_the_whole_batch():
  """The same global batch gives the same balance however it is split."""
  found = [
    float(_step(tiny.deployment(strategy, microbatches=m))[0].balance)
    for strategy, m in [(Strategy(), 1), (Strategy(data=2, expert=2, tensor=2), 4)]
  ]
  assert found[0] == pytest.approx(found[1], rel=1e-6)
  assert 1.0 <= found[0] < 1.5


def test_initial_parameters_do_not_depend_on_the_mesh():
  one, eight = (
    shard_model(d, build_mesh(d.strategy)).init(seed=3)
    for d in (tiny.deployment(), tiny.deployment(Strategy(stage=2, expert=2, tensor=2)))
  )
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, eight)


def _step(d, *, skew=False):
  model = shard_model(d, build_mesh(d.strategy))
  parameters = model.init()
  if skew:
    router = parameters["layers"]["router"]["weight"]
    router[...] = 0 * router[...]  # equal probabilities: the first experts win every tie
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, d.model.vocab_size, (d.job.batch, d.job.sequence_length), dtype=np.int32)
  return jax.jit(loss_and_gradient(model))(parameters, tokens, np.roll(tokens, -1, axis=1))


def test_capacity_is_the_smallest_that_holds_a_balanced_share():
  d = tiny.deployment(Strategy(expert=4), capacity_factor=1.0)
  assert d.dispatch_tokens == 16 // 4 // 2 * 16  # sequences of a device, of a microbatch, times tokens
  assert d.expert_capacity == d.dispatch_tokens * 2 // 8
  job = dataclasses.replace(d.job, capacity_factor=1.01)
  assert dataclasses.replace(d, job=job).expert_capacity == d.expert_capacity + 1


OPTIMIZERS = {
  "moments of rows and columns": optax.adafactor(1e-2, min_dim_size_to_factor=8),
  "some parameters only": optax.partition(
    {True: optax.adamw(3e-3), False: optax.set_to_zero()}, lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree)
  ),
  "several microsteps": optax.MultiSteps(optax.adamw(3e-3), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers_do_not_depend_on_the_mesh(name):
  one, split = (_losses(OPTIMIZERS[name], strategy) for strategy in (Strategy(), Strategy(stage=2, expert=2, tensor=2)))
  np.testing.assert_allclose(split, one, rtol=1e-5)
  assert one[-1] < one[0]


def _losses(optimizer, strategy):
  """Of five steps on one batch."""
  d = tiny.deployment(strategy)
  model = shard_model(d, build_mesh(strategy))
  parameters, step = model.init(), make_train_step(model, optimizer)
  places = jax.tree.map(lambda x: x.sharding, abstract_optimizer(model, optimizer))
  state = jax.device_put(init_optimizer(optimizer, d, parameters), places)
  tokens_BS = np.random.default_rng(0).integers(0, 256, (16, 16), np.int32)
  losses = []
  for _ in range(5):
    parameters, state, metrics = step(parameters, state, tokens_BS, tokens_BS)
    losses.append(float(metrics.loss))
  return losses
