"""Slots of expert buffers, blocks of queries, and the statistics of balance, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from jaxmoe.meshes.build import build_mesh
from jaxmoe.model.attention import QUERY_BLOCK, causal_attention, query_blocks
from jaxmoe.model.balance import balance_loss, balance_statistics
from jaxmoe.model.dispatch import assign_slots, dense_all_gather
from jaxmoe.model.reference import kept_choices
from jaxmoe.model.router import Routing


def slots_by_loop(choices, num_experts, capacity):
  """First choices of all tokens in order, then second ones; whoever comes late is dropped."""
  used = [0] * num_experts
  slots = np.full(choices.shape, num_experts * capacity)
  for x in range(choices.shape[1]):
    for t in range(choices.shape[0]):
      e = choices[t, x]
      if used[e] < capacity:
        slots[t, x] = e * capacity + used[e]
      used[e] += 1
  return slots


@pytest.mark.parametrize(
  "tokens, experts, chosen, capacity", [(1, 1, 1, 1), (13, 4, 2, 3), (40, 8, 3, 40), (16, 4, 4, 2)]
)
def test_slots_equal_a_loop(tokens, experts, chosen, capacity):
  rng = np.random.default_rng(tokens)
  choices = np.stack([rng.permutation(experts)[:chosen] for _ in range(tokens)])
  slots, kept = assign_slots(jnp.asarray(choices), experts, capacity)
  expected = slots_by_loop(choices, experts, capacity)
  np.testing.assert_array_equal(np.asarray(slots), expected)
  np.testing.assert_array_equal(np.asarray(kept), expected < experts * capacity)
  taken = np.asarray(slots)[np.asarray(kept)]
  assert len(set(taken)) == len(taken)
  np.testing.assert_array_equal(np.asarray(kept_choices(choices, experts, tokens, capacity)), np.asarray(kept))


@pytest.mark.parametrize("length, blocks", [(1, 1), (512, 1), (513, 3), (1024, 2), (10_240, 20), (521, 521)])
def test_queries_are_split_into_the_fewest_equal_blocks(length, blocks):
  assert query_blocks(length) == blocks
  assert length % blocks == 0
  assert length // blocks <= QUERY_BLOCK


def test_blocked_attention_equals_a_loop(monkeypatch):
  monkeypatch.setattr("jaxmoe.model.attention.QUERY_BLOCK", 4)
  rng = np.random.default_rng(0)
  B, S, H, G, K = 2, 12, 4, 2, 8
  q, k, v = (rng.normal(size=(B, S, n, K)).astype(np.float32) for n in (H, G, G))
  positions = jnp.broadcast_to(jnp.arange(S)[None], (B, S))
  got = causal_attention(*map(jnp.asarray, (q, k, v)), positions)
  for b in range(B):
    for h in range(H):
      for s in range(S):
        scores = q[b, s, h] @ k[b, : s + 1, h // 2].T / K**0.5
        weights = np.exp(scores - scores.max())
        expected = weights @ v[b, : s + 1, h // 2] / weights.sum()
        np.testing.assert_allclose(np.asarray(got)[b, s, h], expected, atol=1e-5)


def test_balance_by_hand():
  """Two tokens, two experts, both tokens to expert 1 with probabilities 0.75 and 0.25 for it; one choice dropped."""
  probabilities = jnp.array([[0.25, 0.75], [0.75, 0.25]])
  routing = Routing(jnp.ones((2, 1)), jnp.array([[1], [1]]), probabilities)
  statistics = balance_statistics(routing, jnp.array([[True], [False]]))
  np.testing.assert_allclose(np.asarray(statistics), [1.0, 1.0, 0.0, 2.0, 1.0])
  # share (0, 1), mean probability (0.5, 0.5): 2 * (0 * 0.5 + 1 * 0.5)
  assert float(balance_loss(statistics[None], 2, 1)[0]) == pytest.approx(1.0)


def test_dense_adds_nothing_of_experts_that_no_token_chose():
  """Every other expert's result is beyond float16, which holds the sums of those that were chosen."""
  d = tiny.deployment(dtype="float16", kind="prefill", transport="dense")
  x_TD, choices_TX = jnp.ones((3, 4), jnp.float16), jnp.array([[0, 2], [2, 4], [4, 0]])
  routing = Routing(jnp.full((3, 2), 0.5), choices_TX, jnp.full((3, 8), 0.125))

  def on_device(x_TD):
    return dense_all_gather(d, lambda x_ETD: x_ETD / (jnp.arange(8)[:, None, None] % 2 == 0), x_TD, routing)[0]

  spec = PartitionSpec(d.strategy.token_axes)
  y_TD = jax.shard_map(on_device, mesh=build_mesh(d.strategy), in_specs=spec, out_specs=spec)(x_TD)
  np.testing.assert_array_equal(np.asarray(y_TD), np.asarray(x_TD))
