"""Prefill and decode against the reference's logits for the whole text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from jaxmoe.config.job import Precision
from jaxmoe.meshes.axes import STAGE
from jaxmoe.meshes.build import build_mesh
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.model import reference
from jaxmoe.model.sharded import shard_model
from jaxmoe.pipeline.executor import run_pipeline
from jaxmoe.serve.steps import make_decode, make_prefill

STRATEGIES = {
  "one device": Strategy(),
  "stage x expert x tensor": Strategy(stage=2, expert=2, tensor=2),
  "heads over expert": Strategy(stage=2, expert=4, heads_over=("expert",)),
  "whole experts, heads over expert alone": Strategy(
    expert=4, heads_over=("expert",), experts_over=("expert", "tensor")
  ),
  "whole experts": Strategy(data=2, expert=2, tensor=2, experts_over=("expert", "tensor")),
}
LENGTHS = np.array([3, 7, 12, 8] * 4, np.int32)
STEPS = 3


def _tokens(d):
  shape = (d.job.batch, d.job.sequence_length)
  return np.random.default_rng(0).integers(0, d.model.vocab_size, shape, dtype=np.int32)


def _expected(d, parameters, tokens):
  plain = jax.tree.map(np.asarray, nnx.to_pure_dict(parameters))
  return np.asarray(reference.forward(d.model, plain, tokens, group_tokens=1, capacity=None)[0])


def _at(logits_BSV, position_B):
  return np.take_along_axis(logits_BSV, position_B[:, None, None], axis=1)[:, 0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_prefill_then_decode_equals_reference(name):
  """Sequences of different lengths, three tokens generated; grouped queries."""
  d = tiny.deployment(STRATEGIES[name], sizes={"num_kv_heads": 4, "num_heads": 8}, kind="prefill")
  model = shard_model(d, build_mesh(d.strategy))
  parameters, tokens = model.init(), _tokens(d)
  expected = _expected(d, parameters, tokens)
  logits, cache, dropped = make_prefill(model)(parameters, tokens, LENGTHS)
  np.testing.assert_allclose(np.asarray(logits), _at(expected, LENGTHS - 1), atol=2e-5)
  assert float(dropped) == 0
  decode_deployment = dataclasses.replace(d, job=dataclasses.replace(d.job, kind="decode"))
  decode = make_decode(shard_model(decode_deployment, model.mesh))
  for step in range(STEPS):
    position = LENGTHS + step
    logits, cache, _ = decode(parameters, cache, np.take_along_axis(tokens, position[:, None], axis=1), position)
    np.testing.assert_allclose(np.asarray(logits), _at(expected, position), atol=2e-5)


def test_float64_decodes_at_lengths_of_32_bits():
  d = tiny.deployment(Strategy(), "float64", kind="prefill")
  with jax.enable_x64(True):
    model = shard_model(d, build_mesh(d.strategy))
    parameters, tokens = model.init(), _tokens(d)
    _, cache, _ = make_prefill(model)(parameters, tokens, LENGTHS)
    logits, _, _ = make_decode(model)(parameters, cache, tokens[np.arange(16), LENGTHS][:, None], LENGTHS)
    np.testing.assert_allclose(np.asarray(logits), _at(_expected(d, parameters, tokens), LENGTHS), atol=1e-12)


@pytest.mark.parametrize("S,M", [(1, 2), (2, 1), (4, 3)])
def test_what_idle_ticks_keep_is_overwritten_or_equal(S, M):
  """Each stage adds one and keeps what came in, at every tick: in the end every microbatch's place holds its own."""

  def keep(carry_M, x, microbatch, active):
    del active
    return carry_M.at[microbatch].set(x), x + 1, x

  def body(inputs_M):
    empty, inputs_M = (lax.pcast(x, STAGE, to="varying") for x in (jnp.full((M,), jnp.nan), inputs_M))
    return run_pipeline(keep, empty, inputs_M, stages=S)[0][None]

  mesh = jax.make_mesh((S,), (STAGE,), axis_types=(jax.sharding.AxisType.Auto,))
  kept_SM = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(STAGE)))
  inputs_M = 10.0 * (1 + np.arange(M, dtype=np.float32))
  np.testing.assert_array_equal(kept_SM(inputs_M), inputs_M[None] + np.arange(S)[:, None])


def test_later_tokens_never_change_earlier_ones():
  d = tiny.deployment(Strategy(stage=2, expert=2, tensor=2), kind="prefill")
  model = shard_model(d, build_mesh(d.strategy))
  parameters, tokens = model.init(), _tokens(d)
  prefill = make_prefill(model)
  changed = tokens.copy()
  changed[:, 7:] = (changed[:, 7:] + 1) % d.model.vocab_size
  before, _, _ = prefill(parameters, tokens, np.full(16, 7, np.int32))
  after, _, _ = prefill(parameters, changed, np.full(16, 7, np.int32))
  np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
  seen, _, _ = prefill(parameters, changed, np.full(16, 8, np.int32))
  assert np.abs(np.asarray(seen) - np.asarray(before)).max() > 1e-3


@pytest.mark.parametrize("transport", ["capacity", "dense", "gather"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_padding_takes_nothing_from_prompts(name, transport):
  """Whatever stands behind the prompts, at a capacity that already drops some of their tokens."""
  d = tiny.deployment(STRATEGIES[name], kind="prefill", transport=transport, capacity_factor=0.5)
  model = shard_model(d, build_mesh(d.strategy))
  parameters, tokens = model.init(), _tokens(d)
  prefill, behind = make_prefill(model), np.arange(tokens.shape[1])[None, :] >= LENGTHS[:, None]
  outcomes = [prefill(parameters, np.where(behind, pad, tokens), LENGTHS) for pad in (0, 5, tokens[::-1])]
  for logits, _, dropped in outcomes[1:]:
    np.testing.assert_array_equal(np.asarray(logits), np.asarray(outcomes[0][0]))
    assert float(dropped) == float(outcomes[0][2])
  assert (0 < float(outcomes[0][2]) < 1) == (transport == "capacity")


def test_float8_weights_are_stored_in_8_bits_and_used_in_the_compute_dtype():
  precision = Precision(weights="float8_e4m3fn", compute="bfloat16")
  d = tiny.deployment(Strategy(expert=2, tensor=2), kind="prefill", precision=precision)
  model = shard_model(d, build_mesh(d.strategy))
  parameters, tokens = model.init(), _tokens(d)
  dtypes = {str(x.dtype) for x in jax.tree.leaves(parameters)}
  assert dtypes == {"float8_e4m3fn", "bfloat16"}  # norms and routers stay in 16 bits
  logits, cache, _ = make_prefill(model)(parameters, tokens, LENGTHS)
  assert cache.key_LBGKS.dtype == jnp.bfloat16
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), parameters)
  expected = _at(_expected(d, wide, tokens), LENGTHS - 1)
  # bfloat16 has 8 bits of mantissa; a few layers of it move logits of order one by a few hundredths.
  assert np.abs(np.asarray(logits, np.float32) - expected).max() < 0.15 * np.abs(expected).max()
