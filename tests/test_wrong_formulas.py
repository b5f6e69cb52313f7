"""The sums done by hand have teeth: each mistake planted in the formulas turns one of them red."""

import dataclasses
import random

import pytest
import tiny
import wrong_formulas as wrong
from drawn_deployments import Unchecked, built, with_job

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.catalogue import load_cluster, load_deployment, load_model
from jaxmoe.config.job import Job
from jaxmoe.cost import parameters
from jaxmoe.cost.collectives import Collective, collectives
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.flops import executed_flops, flops_per_token, useful_flops
from jaxmoe.cost.memory import memory
from jaxmoe.cost.network import collective_s
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

# Of tests/tiny.py: 16 sequences of 16 tokens in float32.
L, D, H, K, E, X, F, V, TOKENS = 4, 32, 4, 8, 8, 2, 64, 256, 256
ATTENTION, EXPERT, NORMS = 4 * D * H * K, 3 * D * F, 2 * D
WEIGHTS = L * (ATTENTION + E * EXPERT + D * E + NORMS) + D + 2 * V * D


def deployment(name, cluster="dgx_h100", strategy=None, **job):
  sizes = {"kind": "decode", "batch": 4, "sequence_length": 1024}
  parts = {"model": load_model(name), "cluster": load_cluster(cluster), "strategy": strategy or Strategy()}
  return built(**parts, job=Job(**{**sizes, **job}))


def check_published_parameters():
  expert = 3 * 7168 * 2048
  published = {  # total, and active as arithmetic from the published configurations
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248),
    "deepseek-v3": (671_026_419_200, 671_026_419_200 - 58 * (256 - 8) * expert),
  }
  for name, counts in published.items():
    model = load_model(name)
    assert (parameters.total_parameters(model), parameters.active_parameters(model)) == counts


def check_tied_embeddings():
  assert parameters.total_parameters(tiny.model(tied_embeddings=True)) == WEIGHTS - V * D


def check_weights_of_a_device():
  d = tiny.deployment(Strategy(data=2, stage=2, expert=2, tensor=2))
  layer = ATTENTION // 2 + E // 2 * EXPERT // 2 + D * E + NORMS
  assert memory(d).parameters == 4 * (L // 2 * layer + D + 2 * V * D // 4)


def check_work_of_all_devices():
  d = tiny.deployment(Strategy(data=2, expert=4, tensor=2))
  assert d.strategy.devices == 16
  assert useful_flops(d).total * 16 == 3 * TOKENS * flops_per_token(d)


def check_too_few_key_value_heads_are_refused():
  with pytest.raises(UsageError, match="num_kv_heads=2 must be a multiple of tensor = 4"):
    tiny.deployment(Strategy(tensor=4), sizes={"num_kv_heads": 2})


def check_cache_of_too_few_key_value_heads():
  """Where plans go on all the same, each device keeps a whole head."""
  halved = tiny.deployment(Strategy(tensor=2), sizes={"num_kv_heads": 2}, kind="decode")
  parts = {field.name: getattr(halved, field.name) for field in dataclasses.fields(halved)}
  split = Unchecked(**{**parts, "strategy": Strategy(tensor=4)})
  assert memory(split).cache == memory(halved).cache == 2 * L * 16 * 16 * 1 * K * 4


def check_useful_flops():
  """Three passes over every weight that a token meets; each token scores with itself and those before it."""
  found = useful_flops(tiny.deployment())
  assert found.attention == 3 * L * (2 * TOKENS * ATTENTION + 4 * H * K * 16 * (16 * 17 // 2))
  assert (found.router, found.experts) == (3 * L * 2 * TOKENS * D * E, 3 * L * 2 * TOKENS * X * EXPERT)
  assert found.head == 3 * 2 * TOKENS * V * D


def check_decode_flops():
  found = useful_flops(tiny.deployment(kind="decode"))
  assert found.experts == L * 2 * 16 * X * EXPERT
  assert found.attention == L * (2 * 16 * ATTENTION + 4 * H * K * 16 * 16)


def check_experts_that_one_token_reads():
  """Two rows fall on 1 - (7/8)^2 of 8 experts; reading their weights takes longer than the matmuls."""
  d = tiny.deployment(kind="decode", batch=1, microbatches=1, transport="ragged")
  moved = 4 * ((1 - (7 / 8) ** 2) * E * EXPERT + X * (2 * D + 3 * F))
  assert step_time(d).matmuls["experts"] == pytest.approx(L * moved / 0.5e12)


def check_padded_rows():
  """1.5 of 64 rows for each of 8 experts."""
  d = tiny.deployment(kind="prefill", microbatches=1, capacity_factor=1.5)
  assert executed_flops(d).experts == L * 2 * (8 * 96) * EXPERT
  sent = tiny.deployment(Strategy(expert=2), kind="prefill", microbatches=1, capacity_factor=1.5)
  assert {c.payload_bytes for c in collectives(sent) if c.kind == "all-to-all"} == {8 * 48 * D * 4}


def check_rows_of_all_choices():
  d = tiny.deployment(kind="prefill", microbatches=1, transport="ragged")
  assert executed_flops(d).experts == L * 2 * (X * TOKENS) * EXPERT


def check_recomputation():
  d = tiny.deployment(remat="full", transport="ragged")
  assert executed_flops(d).experts == 4 * L * 2 * (X * TOKENS) * EXPERT
  assert step_time(d).recomputation == pytest.approx(sum(step_time(with_job(d, kind="prefill")).matmuls.values()))


def check_idle_ticks():
  """Two microbatches through four stages of one layer: five ticks of half the tokens."""
  d = tiny.deployment(Strategy(stage=4), transport="ragged")
  assert executed_flops(d).experts == 5 * 3 * 2 * (X * TOKENS // 2) * EXPERT


def check_prediction_head():
  """The head twice, and a projection of 2D to D."""
  d = tiny.deployment(sizes={"mtp_layers": 1})
  assert executed_flops(d).head == 3 * 2 * TOKENS * (2 * V * D + 2 * D * D)
  assert useful_flops(d).head == executed_flops(d).head


def check_time_of_backward():
  forward = step_time(tiny.deployment(kind="prefill")).matmuls
  assert step_time(tiny.deployment()).matmuls["experts"] == pytest.approx(3 * forward["experts"])


def check_bubble():
  """As GPipe's authors have it: (S - 1) / (M + S - 1)."""
  for M in (4, 8, 16):
    for kind in ("train", "prefill", "decode"):
      d = tiny.deployment(Strategy(stage=4), microbatches=M, kind=kind)
      assert estimate(d).bubble == pytest.approx(3 / (M + 3))


def check_microbatches_in_flight():
  """One forward, one backward holds as many as there are stages; of each, here, the input of one layer."""
  few, many = (
    tiny.deployment(Strategy(stage=4), schedule="1f1b", remat="full", microbatches=M, batch=M).job for M in (4, 16)
  )
  d = tiny.deployment(Strategy(stage=4), schedule="1f1b", remat="full", microbatches=2, batch=2)
  kept = [memory(dataclasses.replace(d, job=job)).activations for job in (d.job, few, many)]
  assert kept[1] - kept[0] == 2 * 16 * D * 4
  assert kept[2] == kept[1]


def check_optimizer():
  assert memory(tiny.deployment()).optimizer == 2 * 4 * WEIGHTS + 4


def check_zero_1():
  held = memory(tiny.deployment(Strategy(data=8), zero=1))
  assert (held.parameters, held.gradients, held.optimizer) == (4 * WEIGHTS, 4 * WEIGHTS, 2 * 4 * WEIGHTS // 8 + 4)


def check_cache():
  """1 of 16 layers, 8 of 128 sequences, 10,240 slots of 16 heads x 32 x 2 bytes."""
  assert memory(load_deployment("ep256_pp16")).cache == 2 * 1 * 8 * 10_240 * 16 * 32 * 2


def check_cache_of_uneven_stages():
  """Three of five layers on one of two stages."""
  d = tiny.deployment(Strategy(stage=2), sizes={"num_layers": 5}, kind="decode")
  assert memory(d).cache == 3 * 16 * 16 * 2 * H * K * 4


def check_latent_cache():
  """70 KB a token, as the model's authors say."""
  d = deployment("deepseek-v3")
  assert estimate(d).cache_bytes_per_token == 61 * (512 + 64) * 2 == 70_272
  assert memory(d).cache == 4 * 1024 * 70_272
  assert memory(deployment("deepseek-v3", strategy=Strategy(tensor=2))).cache == 4 * 1024 * 70_272


def check_windowed_cache():
  assert memory(deployment("gpt-oss-120b")).cache == 4 * 18 * (1024 + 128) * 2 * 8 * 64 * 2


def check_gradient_groups():
  """Experts have replicas along data alone, the rest along expert too."""
  d = tiny.deployment(Strategy(data=2, expert=2))
  found = dict.fromkeys([("data",), ("data", "expert")], 0)
  for c in collectives(d):
    if c.part == "gradients":
      found[c.axes] += c.payload_bytes
  experts = L * E // 2 * EXPERT
  assert found == {("data",): 4 * experts, ("data", "expert"): 4 * (WEIGHTS - 2 * experts)}


# Of each part's three passes, or of scores' 3.5, those that the input's gradient takes.
BACKWARD = {"projections": 1 / 3, "scores": 2.5 / 3.5, "elementwise": 2 / 3, "router": 1 / 3, "experts": 1 / 3}


def check_gradients_hide_behind_backward():
  """All that may hide does, behind the one microbatch's backward, which is shorter."""
  d = tiny.deployment(Strategy(data=16), microbatches=1)
  shown, hidden = (step_time(d, Assumptions(gradient_overlap=share)) for share in (0.0, 1.0))
  backward = sum(share * shown.matmuls[part] for part, share in BACKWARD.items())
  assert shown.gradients - hidden.gradients == pytest.approx(backward)


def check_exchange_hides_behind_matmuls():
  """In forward and in backward as far as matmuls last; the weights' gradient sends nothing."""
  d = tiny.deployment(Strategy(expert=16), microbatches=1, sizes={"num_experts": 16})
  shown, hidden = (step_time(d, Assumptions(dispatch_overlap=share)) for share in (0.0, 1.0))
  forward = {"scores": 1 / 3.5}
  both = sum((share + forward.get(part, 1 / 3)) * shown.matmuls[part] for part, share in BACKWARD.items())
  assert shown.exchange - hidden.exchange == pytest.approx(both)


def check_keys_of_shared_sequences():
  """Half a sequence a device: all keys and values to both, twice, and their gradients back, of 8 sequences of 16."""
  d = tiny.deployment(Strategy(data=2, context=2))
  sent = {c.kind: (c.count, c.payload_bytes) for c in collectives(d) if c.axes == ("context",)}
  keys = 8 * 16 * 2 * H * K * 4
  assert sent == {"all-gather": (2 * L * 2, keys), "reduce-scatter": (2 * L, keys)}


def check_messages_of_zero_3():
  """Each of two microbatches scatters gradients and gathers weights twice: of experts and of the rest, 7/8 move."""
  d = tiny.deployment(Strategy(data=8), zero=3)
  assert step_time(d).gradients == pytest.approx(2 * 3 * (2 * 7e-6 + 7 / 8 * 4 * WEIGHTS / 1e11))


def check_messages_in_a_node():
  """8 MB over 8 ranks at 100 GB/s and 1 us a message: 1 us + 7/8 of 80 us; all-reduce, two passes of 7 us + 70 us."""
  moved = Collective("experts", "all-to-all", ("expert",), 8_000_000, 1)
  assert collective_s(moved, Strategy(expert=8), tiny.CLUSTER) == pytest.approx(71e-6)
  reduced = dataclasses.replace(moved, kind="all-reduce")
  assert collective_s(reduced, Strategy(expert=8), tiny.CLUSTER) == pytest.approx(154e-6)


def check_messages_between_nodes():
  """Two nodes of 8: half of 8 MB leaves the node at 10 GB/s, in messages of 10 us that leave at once."""
  moved = Collective("experts", "all-to-all", ("expert",), 8_000_000, 1)
  assert collective_s(moved, Strategy(expert=16), tiny.CLUSTER) == pytest.approx(10e-6 + 4e-4)


def check_nodes_that_a_token_visits():
  """Against routing at random: 8 experts in 4 of 8 groups, 256 over 4 to 32 nodes; the closed form is from above."""
  rng, tokens = random.Random(0), 2000
  for nodes in (4, 8, 16, 32):
    visited = 0
    for _ in range(tokens):
      allowed = [32 * group + e for group in rng.sample(range(8), 4) for e in range(32)]
      visited += len({expert * nodes // 256 for expert in rng.sample(allowed, 8)})
    d = deployment("deepseek-v3", strategy=Strategy(expert=8 * nodes), batch=8 * nodes, transport="ragged")
    outer_bytes = max(c.outer_bytes for c in collectives(d) if c.kind == "all-to-all")
    left = visited / tokens * (1 - 1 / nodes) * 7168 * 2  # of one token of a device
    assert left <= outer_bytes <= 1.25 * left


def check_messages_between_stages():
  """Narayanan et al. 2021: a microbatch visits each stage once for each of its chunks, forward and back."""
  strategy = Strategy(stage=2, expert=2, tensor=2, sequence_parallel=True)
  d = tiny.deployment(strategy, microbatches=4, transport="ragged", schedule="interleaved", chunks=2)
  (sent,) = [c for c in collectives(d) if c.kind == "collective-permute"]
  tokens = 16 // 2 // 4 * 16  # of a microbatch, on the devices of one tensor group together
  assert (sent.payload_bytes, sent.count) == (tokens // 2 * D * 4, 4 * 2 * 2)


FAULTS = [
  (wrong.router_is_left_out, check_published_parameters),
  (wrong.shared_expert_counts_as_routed, check_published_parameters),
  (wrong.dense_layers_count_as_expert_layers, check_published_parameters),
  (wrong.all_experts_are_active, check_published_parameters),
  (wrong.tied_embeddings_count_twice, check_tied_embeddings),
  (wrong.expert_width_is_whole_on_each_tensor_device, check_weights_of_a_device),
  (wrong.experts_are_split_over_data_too, check_weights_of_a_device),
  (wrong.layers_are_whole_on_every_stage, check_weights_of_a_device),
  (wrong.experts_multiply_devices_for_free, check_work_of_all_devices),
  (wrong.nobody_asks_whether_key_value_heads_divide, check_too_few_key_value_heads_are_refused),
  (wrong.key_value_heads_split_without_end, check_cache_of_too_few_key_value_heads),
  (wrong.causal_half_is_forgotten, check_useful_flops),
  (wrong.every_expert_is_read, check_experts_that_one_token_reads),
  (wrong.backward_is_one_pass_of_useful_flops, check_useful_flops),
  (wrong.backward_is_one_pass_of_time, check_time_of_backward),
  (wrong.decode_computes_the_whole_sequence, check_decode_flops),
  (wrong.capacity_padding_is_forgotten, check_padded_rows),
  (wrong.token_visits_one_expert, check_rows_of_all_choices),
  (wrong.recomputation_is_forgotten, check_recomputation),
  (wrong.idle_ticks_compute_nothing, check_idle_ticks),
  (wrong.prediction_head_is_forgotten, check_prediction_head),
  (wrong.pipeline_never_idles, check_bubble),
  (wrong.serving_fills_its_pipeline_for_free, check_bubble),
  (wrong.bubble_is_stages_less_one_over_microbatches, check_bubble),
  (wrong.chunks_are_handed_on_once, check_messages_between_stages),
  (wrong.sequence_parallel_devices_send_all_tokens, check_messages_between_stages),
  (wrong.every_microbatch_is_in_flight, check_microbatches_in_flight),
  (wrong.adam_keeps_one_moment, check_optimizer),
  (wrong.zero_1_splits_weights, check_zero_1),
  (wrong.cache_of_one_sequence, check_cache),
  (wrong.latent_cache_is_whole_keys_and_values, check_latent_cache),
  (wrong.uneven_stages_hold_as_few_layers_as_any, check_cache_of_uneven_stages),
  (wrong.latent_cache_is_split_over_tensor_devices, check_latent_cache),
  (wrong.windows_keep_the_whole_sequence, check_windowed_cache),
  (wrong.expert_gradients_are_summed_over_experts, check_gradient_groups),
  (wrong.all_to_all_is_an_all_gather, check_messages_in_a_node),
  (wrong.what_stays_is_sent_too, check_messages_in_a_node),
  (wrong.all_reduce_is_one_pass, check_messages_in_a_node),
  (wrong.both_directions_add_up, check_messages_in_a_node),
  (wrong.all_links_are_those_of_the_node, check_messages_between_nodes),
  (wrong.keys_of_shared_sequences_stay, check_keys_of_shared_sequences),
  (wrong.split_weights_are_gathered_once, check_messages_of_zero_3),
  (wrong.gradients_hide_behind_nothing, check_gradients_hide_behind_backward),
  (wrong.exchange_hides_behind_nothing, check_exchange_hides_behind_matmuls),
  (wrong.groups_of_experts_are_ignored, check_nodes_that_a_token_visits),
  (wrong.a_group_of_experts_is_one_node, check_nodes_that_a_token_visits),
]


def name(function):
  return function.__name__


@pytest.mark.parametrize("fault,check", FAULTS, ids=name)
def test_mistake_is_caught(fault, check, monkeypatch):
  fault(monkeypatch)
  with pytest.raises((AssertionError, pytest.fail.Exception)):
    check()


@pytest.mark.parametrize("check", dict.fromkeys(check for _, check in FAULTS), ids=name)
def test_without_a_mistake_all_sums_agree(check):
  check()
