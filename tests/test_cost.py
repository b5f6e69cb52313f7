"""Closed forms against sums done by hand and against published figures."""

import dataclasses
import math

import pytest
import tiny

from jaxmoe.config.catalogue import deployment_names, load_deployment, load_model
from jaxmoe.config.parts import DenseLayers
from jaxmoe.cost.collectives import Collective, collectives
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.flops import executed_flops, flops_per_token, useful_flops
from jaxmoe.cost.memory import activation_bytes, cache_bytes, logit_bytes, memory
from jaxmoe.cost.network import collective_s
from jaxmoe.cost.parameters import (
  active_parameters,
  parameter_tensors,
  parameters_by_class,
  total_parameters,
)
from jaxmoe.cost.stage import stage_layers
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

PUBLISHED = {  # total, active: arithmetic from the published configurations, router included
  "mixtral-8x7b": (46_702_792_704, 12_879_925_248),
  "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704),
  "olmoe-1b-7b": (6_919_161_856, 1_282_017_280),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_published_counts(name):
  model = load_model(name)
  assert (total_parameters(model), active_parameters(model)) == PUBLISHED[name]


def test_parameters_by_hand():
  model = tiny.model()  # L 4, D 32, H G 4, K 8, E 8, F 64, V 256, gated
  attention, experts, router, norms = 4 * 4 * 32 * 32, 4 * 8 * 3 * 32 * 64, 4 * 32 * 8, 4 * 2 * 32 + 32
  assert total_parameters(model) == attention + experts + router + norms + 2 * 256 * 32
  assert active_parameters(model) == total_parameters(model) - experts * 6 // 8
  assert parameters_by_class(model, tiny.deployment().rules) == {
    "expert": experts,
    "sharded": attention + 2 * 256 * 32,
    "replicated": router + norms,
  }


@pytest.mark.parametrize("name", deployment_names())
def test_shards_sum_to_the_whole(name):
  """Each tensor's local size times the devices that split it is its size; times all devices counts its copies."""
  d = load_deployment(name)
  for tensor in parameter_tensors(d.model):
    split = math.prod(d.rules.shards(tensor.role, letter) for letter in tensor.letters)
    assert tensor.local_count(d.rules) * split == tensor.count
    assert d.strategy.devices % split == 0


def test_expert_parameters_divide_by_expert_and_width_axes_but_not_by_data():
  d = tiny.deployment(Strategy(data=2, expert=2, tensor=2))
  tensors = {t.name: t for t in parameter_tensors(d.model)}
  assert tensors["layers/experts/up"].local_count(d.rules) == 4 * (8 // 2) * 32 * (64 // 2)
  assert tensors["layers/attention/query"].local_count(d.rules) == 4 * 32 * (4 // 2) * 8
  assert tensors["embedding"].local_count(d.rules) == 256 // 2 * 32


def test_memory_by_hand():
  d = tiny.deployment()
  held = memory(d)
  assert held.parameters == held.gradients == 4 * total_parameters(d.model)
  assert held.optimizer == 2 * held.parameters + 4
  assert held.cache == 0
  assert held.inputs == 2 * 16 * 16 * 4
  assert held.total == sum(dataclasses.asdict(held).values())


def test_a_master_copy_is_its_own_item():
  wide, plain = tiny.deployment(), tiny.deployment(dtype="bfloat16")
  precision = dataclasses.replace(plain.job.precision, optimizer="float32", gradients="float32", master="float32")
  held = memory(dataclasses.replace(plain, job=dataclasses.replace(plain.job, precision=precision)))
  assert (held.parameters, held.gradients) == (memory(wide).parameters // 2, memory(wide).gradients)
  assert (held.master, held.optimizer) == (memory(wide).parameters, memory(wide).optimizer)


def test_a_scan_over_ticks_holds_all_microbatches():
  """2 stages, 2 microbatches of 8 sequences of 16 tokens: 128 x 32 numbers of 4 bytes each, at 3 ticks."""
  d, stream = tiny.deployment(Strategy(stage=2)), 128 * 32 * 4
  assert memory(d).stacked == (2 + 3) * stream
  assert memory(tiny.deployment(Strategy(stage=2), kind="prefill")).stacked == 2 * stream
  assert memory(tiny.deployment(Strategy(stage=2), schedule="1f1b")).stacked == 0
  assert logit_bytes(d) == 128 * (256 // 2) * 4  # of one microbatch, the vocabulary over both stages


def test_eight_bit_weights_keep_norms_and_routers_in_16_bits():
  d = load_deployment("ep64_tp2")
  sensitive = 16 * 1024 * 64 + 16 * 2 * 1024 + 1024  # router and norms, whole on each device
  rest = 16 * 4 * 1024 * 1024 // 2 + 16 * 2 * 1024 * 2048 // 2 + 2 * 32768 * 1024 // 2
  assert memory(d).parameters == 2 * sensitive + rest


def test_cache_by_hand():
  d = load_deployment("ep256_pp16")  # 1 of 16 layers, 8 of 128 sequences, 10,240 slots of 16 heads x 32 x 2 bytes
  assert cache_bytes(d) == 2 * 1 * 8 * 10_240 * 16 * 32 * 2


def test_recomputing_keeps_less():
  e = estimate(load_deployment("tp8_pp4_ep4_dp4"))
  assert e.activation_bytes_by_remat["full"] < e.activation_bytes_by_remat["none"]


def test_activations_by_remat_are_the_heaviest_stages():
  """Experts weigh most, and wide dense layers keep most: the stage that has most in all is the one of the experts."""
  model = tiny.model(num_experts=64, dense=DenseLayers(layers=(0, 1), d_hidden=1024))
  d = dataclasses.replace(tiny.deployment(Strategy(stage=2), batch=2, transport="ragged"), model=model)
  e = estimate(d)
  assert e.activation_bytes_by_remat["none"] == e.memory.activations
  assert e.memory.activations < max(activation_bytes(d, stage) for stage in stage_layers(d))


def test_useful_flops_by_hand():
  d = tiny.deployment(kind="prefill", batch=1, microbatches=1)
  tokens = 16
  projections = 4 * tokens * 2 * 4 * 32 * 32
  scores = 4 * 2 * 2 * (tokens * (tokens + 1) // 2) * 4 * 8  # causal pairs of each layer, two matmuls
  router = 4 * tokens * 2 * 32 * 8
  experts = 4 * tokens * 2 * 2 * 3 * 32 * 64
  found = useful_flops(d)
  assert (found.attention, found.router, found.experts) == (projections + scores, router, experts)
  assert found.head == 2 * 32 * 256  # of the last token


def test_mixtral_forward_flops_a_token_equal_the_published_ones():
  """82.94 GFLOP a token, forward and backward, full attention of 4,096 tokens (MaxText's tiering table)."""
  d = load_deployment("ep64_tp2")
  job = dataclasses.replace(d.job, kind="train", sequence_length=4096)
  found = flops_per_token(dataclasses.replace(d, model=load_model("mixtral-8x7b"), strategy=Strategy(), job=job))
  causal_to_full = 32 * 4 * 4096 * (4096 - (4096 + 1) / 2)
  assert 3 * (found + causal_to_full) == pytest.approx(82.94e9, rel=5e-3)


def test_executed_flops_count_bubble_padding_and_recomputation():
  plain = tiny.deployment(capacity_factor=1.0, microbatches=1)
  assert executed_flops(plain).experts == useful_flops(plain).experts
  recomputed = tiny.deployment(capacity_factor=1.0, microbatches=1, remat="full")
  assert executed_flops(recomputed).experts == useful_flops(plain).experts * 4 / 3
  padded = tiny.deployment(capacity_factor=1.5, microbatches=1)
  assert executed_flops(padded).experts == useful_flops(plain).experts * 1.5
  piped = tiny.deployment(Strategy(stage=4), capacity_factor=1.0, microbatches=2)
  assert piped.ticks == 5
  assert executed_flops(piped).experts == useful_flops(piped).experts * 5 / 2


def test_collectives_of_one_device_are_none():
  assert collectives(tiny.deployment()) == []


def test_collectives_by_hand():
  """Prefill over expert 2 x tensor 2, 16 sequences of 16 tokens, one microbatch, four layers, float32."""
  d = tiny.deployment(
    Strategy(expert=2, tensor=2), kind="prefill", microbatches=1, capacity_factor=1.0, sizes={"gated": False}
  )
  tokens = 8 * 16
  found: dict[tuple[str, tuple[str, ...]], int] = {}
  for c in collectives(d):
    found[c.kind, c.axes] = found.get((c.kind, c.axes), 0) + c.total_bytes
  hidden = tokens * 32 * 4
  assert found == {
    ("all-reduce", ("tensor",)): hidden * (1 + 4 * 2),  # embedding; attention and experts of each layer
    ("all-to-all", ("expert",)): 4 * 2 * (8 * (tokens * 2 // 8) * 32 * 4),  # there and back, E C D
    ("all-reduce", ("expert",)): 4 * (2 * 8 + 1) * 4,  # balance statistics
  }


def test_gradients_are_summed_over_the_axes_whose_tokens_they_saw():
  d = tiny.deployment(Strategy(data=2, expert=2, tensor=2))
  sums = {(c.axes, c.payload_bytes) for c in collectives(d) if c.part == "gradients"}
  up = 4 * 4 * 32 * 32 * 4
  query = 4 * 32 * 2 * 8 * 4
  assert (("data",), up) in sums
  assert (("data", "expert"), query) in sums
  assert not any(axes == ("data", "expert") and size == up for axes, size in sums)


def test_network_time_by_hand():
  """8 MB over 8 ranks of a node at 100 GB/s and 1 us a message: 1 us + 7/8 of 80 us; an all-reduce 2 (7 + 70)."""
  s = Strategy(expert=8)
  moved = Collective("experts", "all-to-all", ("expert",), 8_000_000, 1)
  assert collective_s(moved, s, tiny.CLUSTER) == pytest.approx(71e-6)
  assert collective_s(dataclasses.replace(moved, kind="all-reduce"), s, tiny.CLUSTER) == pytest.approx(154e-6)
  assert collective_s(dataclasses.replace(moved, count=3), s, tiny.CLUSTER) == pytest.approx(213e-6)


def test_a_group_that_leaves_the_node_uses_the_slower_tier():
  s = Strategy(data=2, expert=8)
  inside, outside = (Collective("x", "all-gather", (axis,), 1_000_000, 1) for axis in ("expert", "data"))
  assert collective_s(inside, s, tiny.CLUSTER) == pytest.approx(7e-6 + 7 / 8 * 1e-5)
  assert collective_s(outside, s, tiny.CLUSTER) == pytest.approx(1e-5 + 1 / 2 * 1e-4)


def test_an_unknown_collective_has_no_time():
  with pytest.raises(ValueError, match="no time formula"):
    collective_s(Collective("x", "broadcast", ("expert",), 1, 1), Strategy(expert=2), tiny.CLUSTER)


def test_time_by_hand():
  """Prefill on one device at 1e12 FLOP/s x 0.5 and 1e12 B/s x 0.5, float32; every term from the sizes alone."""
  d = tiny.deployment(kind="prefill", microbatches=1, capacity_factor=1.0)
  T, D, K, H, S, F, E, V = 256, 32, 8, 4, 16, 64, 8, 256
  rows = 2 * T
  rate = 0.5e12

  def slower(flops, numbers):
    return max(flops, 4 * numbers) / rate

  q = T * K * 4 * H  # query, key, value and their mix
  expected = {
    "projections": slower(2 * T * D * K * 4 * H, 4 * D * H * K + 2 * T * D + q),
    "scores": slower(2 * 2 * T * S * H * K, q),
    "router": slower(2 * T * D * E, T * D + T * E),
    "experts": slower(2 * rows * 3 * D * F, 3 * E * D * F + rows * (2 * D + 3 * F)),
    "elementwise": 4 * (5 * T * D + q + 4 * rows * D + 3 * rows * F + 5 * T * D) / rate,
  }
  found = step_time(d).terms()
  for name, seconds in expected.items():
    assert found[name] == pytest.approx(4 * seconds), name  # four layers
  assert found["head"] == pytest.approx(slower(2 * 16 * D * V, V * D + 16 * (D + V)))
  assert step_time(d).total_s == pytest.approx(4 * sum(expected.values()) + found["head"])


def test_training_makes_three_passes_and_idles_by_the_table():
  forward = step_time(tiny.deployment(kind="prefill", microbatches=2)).matmuls
  trained = step_time(tiny.deployment(microbatches=2)).matmuls
  assert trained["experts"] == pytest.approx(3 * forward["experts"])
  assert trained["scores"] == pytest.approx(3.5 * forward["scores"])
  piped = step_time(tiny.deployment(Strategy(stage=4), microbatches=2))
  busy = sum(piped.matmuls.values()) + piped.exchange + piped.layer_network
  assert piped.bubble == pytest.approx(busy * 3 / 2)


def test_network_time_adds_every_collective():
  """Weights' gradients are summed in one message for each group, so that only they may cost less than one by one."""
  d = tiny.deployment(Strategy(expert=2, tensor=2), kind="prefill", microbatches=2)
  assert step_time(d).network_s == pytest.approx(sum(collective_s(c, d.strategy, d.cluster) for c in collectives(d)))


def test_a_dtype_without_a_peak_is_refused():
  with pytest.raises(UsageError, match=r"peak_flops_per_s\.float16"):
    step_time(tiny.deployment(dtype="float16"))


def test_bubble_and_throughput():
  e = estimate(tiny.deployment(Strategy(stage=4), microbatches=4))
  assert e.bubble == pytest.approx(3 / 7)
  assert e.tokens_per_s == pytest.approx(16 * 16 / e.time.total_s)
