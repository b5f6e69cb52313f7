"""Parameters, useful FLOPs and caches of every family, against published checkpoints and sums done by hand."""

import dataclasses
import math

import pytest
import tiny

from jaxmoe.config.catalogue import load_model, model_names
from jaxmoe.config.job import Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.parts import Biases, DenseLayers, LatentAttention, LocalAttention, SharedExpert
from jaxmoe.cost.flops import flops_per_token, useful_flops
from jaxmoe.cost.memory import cache_bytes, cache_bytes_per_token
from jaxmoe.cost.parameters import (
  active_parameters,
  layer_tensors,
  parameter_tensors,
  parameters_by_class,
  total_parameters,
)
from jaxmoe.cost.token_flops import token_flops
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Strategy

# Numbers in the published checkpoint, as its own index of tensors adds up, less what is no part of the language model:
# prediction layers with their copies of embedding and head, or an image encoder.
LLAMA_4_VISION = 871_932_416
CHECKPOINTS = {
  "mixtral-8x7b": 46_702_792_704,
  "qwen3-30b-a3b": 30_532_122_624,
  "olmoe-1b-7b": 6_919_161_856,
  "qwen2-57b-a14b": 57_408_658_944,
  "deepseek-v2": 235_741_434_880,
  "deepseek-v3": 671_026_419_200,
  "kimi-k2": 1_026_408_232_448,
  "gpt-oss-120b": 116_829_156_672,
  "dbrx": 131_596_523_520,
  "llama-4-scout": 108_641_793_536 - LLAMA_4_VISION,
  "llama-4-maverick": 401_583_781_376 - LLAMA_4_VISION,
  "phi-3.5-moe": 41_873_153_344,
  "glm-4.5-air": 106_852_251_264,  # as in a checkpoint of this shape published without prediction layers
  "granite-3.1-3b-a800m": 3_298_793_472,
}
# With prediction layers, which checkpoints store with copies of embedding and head: 2 V D
WITH_PREDICTION = {
  "deepseek-v3": 684_489_845_504 - 2 * 129_280 * 7168,
  "glm-4.5-air": 110_468_824_832 - 2 * 151_552 * 4096,
}


@pytest.mark.parametrize("name", model_names())
def test_total_equals_the_checkpoint(name):
  assert total_parameters(load_model(name)) == CHECKPOINTS[name]


@pytest.mark.parametrize("name", WITH_PREDICTION)
def test_total_with_prediction_layers_equals_the_checkpoint(name):
  assert total_parameters(load_model(name, mtp=True)) == WITH_PREDICTION[name]
  assert load_model(name).mtp_layers == 0


def swiglu(width, hidden):
  return 3 * width * hidden


def latent(D, H, Q=1536, Z=512, nope=128, rope=64, value=128):
  """DeepSeek's attention: two query maps and a norm, one down map with the rotary key, a norm, one up map, output."""
  query = D * Q + Q + Q * H * (nope + rope)
  return query + D * (Z + rope) + Z + Z * H * (nope + value) + H * value * D


def grouped(D, H, G, K):
  return D * K * (H + 2 * G) + H * K * D


def by_hand(D, V, layers, attention, experts, *, dense=(0, 0), extra=0, bias=0, norms=2, tied=False, outer=0):
  """(total, active): `experts` is (E, visited, width), `extra` what an expert layer has beside router and experts."""
  E, visited, width = experts
  whole = (1 if tied else 2) * V * D + D + outer + layers * (attention + norms * D) + dense[0] * swiglu(D, dense[1])
  routed = layers - dense[0]
  return tuple(whole + routed * (D * E + extra + n * (swiglu(D, width) + bias)) for n in (E, visited))


# The public architectures, number by number; a router's bias or a selection bias is E, sinks are H.
HAND = {
  "mixtral-8x7b": by_hand(4096, 32_000, 32, grouped(4096, 32, 8, 128), (8, 2, 14_336)),
  "qwen3-30b-a3b": by_hand(2048, 151_936, 48, grouped(2048, 32, 4, 128) + 2 * 128, (128, 8, 768)),
  "olmoe-1b-7b": by_hand(2048, 50_304, 16, grouped(2048, 16, 16, 128) + 2 * 2048, (64, 8, 1024)),
  "qwen2-57b-a14b": by_hand(
    3584, 151_936, 28, grouped(3584, 28, 4, 128) + 36 * 128, (64, 8, 2560), extra=swiglu(3584, 20_480) + 3584
  ),
  "deepseek-v2": by_hand(
    5120, 102_400, 60, latent(5120, 128), (160, 6, 1536), dense=(1, 12_288), extra=swiglu(5120, 2 * 1536)
  ),
  "deepseek-v3": by_hand(
    7168, 129_280, 61, latent(7168, 128), (256, 8, 2048), dense=(3, 18_432), extra=swiglu(7168, 2048) + 256
  ),
  "kimi-k2": by_hand(
    7168, 163_840, 61, latent(7168, 64), (384, 8, 2048), dense=(1, 18_432), extra=swiglu(7168, 2048) + 384
  ),
  "gpt-oss-120b": by_hand(
    2880, 201_088, 36, grouped(2880, 64, 8, 64) + 80 * 64 + 2880 + 64, (128, 4, 2880), extra=128, bias=3 * 2880
  ),
  "dbrx": by_hand(6144, 100_352, 40, grouped(6144, 48, 8, 128), (16, 4, 10_752)),
  "llama-4-scout": by_hand(
    5120, 202_048, 48, grouped(5120, 40, 8, 128), (16, 1, 8192), extra=swiglu(5120, 8192)
  ),
  "llama-4-maverick": by_hand(
    5120, 202_048, 48, grouped(5120, 40, 8, 128), (128, 1, 8192), dense=(24, 16_384), extra=swiglu(5120, 8192)
  ),
  "phi-3.5-moe": by_hand(
    4096, 32_064, 32, grouped(4096, 32, 8, 128) + 48 * 128 + 4096, (16, 2, 6400), norms=4, outer=4096 + 32_064
  ),
  "glm-4.5-air": by_hand(
    4096, 151_552, 46, grouped(4096, 96, 8, 128) + 112 * 128, (128, 8, 1408), dense=(1, 10_944),
    extra=swiglu(4096, 1408) + 128,
  ),
  "granite-3.1-3b-a800m": by_hand(1536, 49_155, 32, grouped(1536, 24, 8, 64), (40, 8, 512), tied=True),
}  # fmt: skip


@pytest.mark.parametrize("name", model_names())
def test_total_and_active_by_hand(name):
  model = load_model(name)
  assert (total_parameters(model), active_parameters(model)) == HAND[name]


# Active parameters as their authors state them, in billions, and what they leave out.
STATED = {
  "mixtral-8x7b": (12.9, 0),
  "deepseek-v2": (21, 0),
  "deepseek-v3": (37, 0),
  "dbrx": (36, 0),
  "gpt-oss-120b": (5.13, 201_088 * 2880),  # without the input embedding
  "llama-4-scout": (17, 0),
  "llama-4-maverick": (17, 0),
  "phi-3.5-moe": (6.6, 0),
  "qwen2-57b-a14b": (14, 0),
}


@pytest.mark.parametrize("name", STATED)
def test_active_parameters_as_stated(name):
  billions, left_out = STATED[name]
  assert (active_parameters(load_model(name)) - left_out) / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("name", model_names())
def test_single_layers_add_up_to_the_stacked_tensors(name):
  model = load_model(name)
  stacked = {t.name: t.count for t in parameter_tensors(model) if t.name.startswith("layers/")}
  summed = dict.fromkeys(stacked, 0)
  for layer in range(model.num_layers):
    for tensor in layer_tensors(model, layer):
      summed[tensor.name] += tensor.count
  assert summed == stacked


@pytest.mark.parametrize("strategy", [Strategy(expert=8), Strategy(expert=8, tensor=4)], ids=lambda s: s.product)
@pytest.mark.parametrize("name", sorted(set(model_names()) - {"granite-3.1-3b-a800m"}))  # its vocabulary is odd
def test_shards_of_every_family_sum_to_the_whole(name, strategy):
  model, rules = load_model(name, mtp=True), PartitionRules(strategy)
  for tensor in parameter_tensors(model):
    split = math.prod(rules.shards(tensor.role, letter) for letter in tensor.letters)
    assert tensor.local_count(rules) * split == tensor.count
  assert sum(parameters_by_class(model, rules).values()) == total_parameters(model)


def test_local_shares_of_latent_dense_and_shared_tensors():
  """Down maps to latent vectors lie whole on each device, what has heads or a hidden width is split."""
  rules = PartitionRules(Strategy(expert=8, tensor=4))
  local = {t.name: t.local_count(rules) for t in parameter_tensors(load_model("deepseek-v3"))}
  assert local["layers/attention/latent_down"] == 61 * 7168 * 512
  assert local["layers/attention/rotary_key"] == 61 * 7168 * 64
  assert local["layers/attention/query"] == 61 * 1536 * (128 // 4) * 192
  assert local["layers/attention/value"] == 61 * 512 * (128 // 4) * 128
  assert local["layers/dense/up"] == 3 * 7168 * 18_432 // 4
  assert local["layers/shared/down"] == 58 * 7168 * 2048 // 4
  assert local["layers/experts/up"] == 58 * (256 // 8) * 7168 * 2048 // 4
  assert local["layers/selection_bias"] == 58 * 256


def test_biases_of_experts_by_hand():
  """L 4, E 8, D 32, F 64: two inward biases of F, split as the width is, and one of D, whole beside each expert."""
  model, rules = tiny.model(biases=Biases(expert=True, router=True)), PartitionRules(Strategy(expert=4, tensor=2))
  assert total_parameters(model) - total_parameters(tiny.model()) == 4 * 8 * (2 * 64 + 32) + 4 * 8
  assert active_parameters(model) - active_parameters(tiny.model()) == 4 * 2 * (2 * 64 + 32) + 4 * 8
  local = {t.name: t.local_count(rules) for t in parameter_tensors(model)}
  assert (local["layers/experts/up_bias"], local["layers/experts/down_bias"]) == (4 * 2 * 32, 4 * 2 * 32)


def test_only_matrices_are_kept_in_8_bits():
  precision = Precision(weights="float8_e4m3fn", compute="bfloat16", optimizer="float32")
  for name in ("gpt-oss-120b", "deepseek-v3", "phi-3.5-moe", "olmoe-1b-7b"):
    wide = {t.name for t in parameter_tensors(load_model(name)) if t.dtype(precision) != "float8_e4m3fn"}
    small = ("norm", "bias", "sinks", "router")
    assert wide == {t.name for t in parameter_tensors(load_model(name)) if t.name.endswith(small)}


def test_widths_must_divide():
  for part in ({"dense": DenseLayers(layers=(0,), d_hidden=9)}, {"shared": SharedExpert(d_hidden=9)}):
    with pytest.raises(UsageError, match=f"model.{next(iter(part))}.d_hidden=9 must be a multiple of tensor = 2"):
      dataclasses.replace(deployment(tiny.model(**part)), strategy=Strategy(tensor=2))


# Forward and backward of one token at 4,096 tokens, GFLOP: lowest and highest published, and by closed form.
# (model, prediction layers, keys seen, (lowest, highest), closed form); the sources are Megatron-Bridge's performance
# summary (TFLOP/s over tokens/s), table 4 of arXiv 2505.09343, and MaxText's tiering table.
PUBLISHED_FLOPS = [
  ("deepseek-v3", True, "causal", (259.6, 260.2), 260.65),
  ("deepseek-v3", False, "causal", (249.7, 249.7), 250.46),
  ("qwen3-30b-a3b", False, "causal", (22.8, 23.1), 23.08),
  ("mixtral-8x7b", False, "full", (82.93, 82.95), 82.94),
]


@pytest.mark.parametrize("name, mtp, seen, published, closed_form", PUBLISHED_FLOPS)
def test_training_flops_a_token_as_published(name, mtp, seen, published, closed_form):
  found = 3 * token_flops(load_model(name, mtp=mtp), 4096, seen=seen).total / 1e9
  assert published[0] * 0.995 <= found <= published[1] * 1.005
  assert found == pytest.approx(closed_form, rel=2e-4)


def test_deployments_count_prediction_layers_in_training_only():
  model = load_model("deepseek-v3", mtp=True)
  trained, filled = (deployment(model, kind=kind, sequence_length=4096) for kind in ("train", "prefill"))
  assert 3 * flops_per_token(trained) / 1e9 == pytest.approx(260.65, rel=2e-4)
  assert 3 * flops_per_token(filled) / 1e9 == pytest.approx(250.46, rel=2e-4)
  assert useful_flops(trained).total == pytest.approx(3 * 4096 * flops_per_token(trained))


def deployment(model, **job):
  d = tiny.deployment(dtype="bfloat16", **{"batch": 1, "microbatches": 1, **job})
  return dataclasses.replace(d, model=model)


LATENT = LatentAttention(query_rank=12, rank=10, plain_dim=6, rotary_dim=2, value_dim=5)


def test_flops_of_latent_attention_by_hand():
  """D 32, H 4: down and up maps; in decode the cache of 10 + 2 numbers is read for scores, its 10 for values."""
  model = tiny.model(num_layers=1, latent=LATENT)
  maps = 32 * 12 + 12 * 4 * 8 + 32 * 10 + 32 * 2 + 10 * 4 * 6 + 10 * 4 * 5 + 4 * 5 * 32
  assert token_flops(model, 7).attention == 2 * maps + 2 * 4 * 4 * (8 + 5)  # 4 = (7 + 1) / 2 keys
  assert token_flops(model, 7, seen="full").attention == 2 * maps + 2 * 7 * 4 * (8 + 5)
  assert token_flops(model, 7, seen="decode").attention == 2 * maps + 2 * 7 * 4 * (10 + 2 + 10)


def test_flops_of_dense_layers_and_shared_experts_by_hand():
  """Four layers, D 32, of which two dense of width 40; the others visit 2 of 8 experts of 64 and one shared of 24."""
  model = tiny.model(
    dense=DenseLayers(layers=(0, 2), d_hidden=40), shared=SharedExpert(d_hidden=24, weighed=True), mtp_layers=1
  )  # fmt: skip
  found, expert_layers = token_flops(model, 16), 2 + 1  # the prediction layer routes too
  assert found.experts == 2 * 3 * 32 * (2 * 40 + expert_layers * (2 * 64 + 24))
  assert found.router == 2 * expert_layers * (32 * 8 + 32)
  assert found.head == 2 * (2 * 32 * 256 + 2 * 32 * 32)
  assert found.attention == 2 * 5 * (4 * 32 * 32 + 2 * 8.5 * 4 * 8)


def test_a_tied_head_is_multiplied_with_too():
  assert token_flops(tiny.model(tied_embeddings=True), 4).head == token_flops(tiny.model(), 4).head == 2 * 32 * 256


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 12, 31])
@pytest.mark.parametrize("size", [1, 3, 6, 40])
def test_keys_of_local_attention_one_by_one(length, size):
  seen = {
    "sliding": [min(position + 1, size) for position in range(length)],
    "chunked": [position % size + 1 for position in range(length)],
  }
  for kind, keys in seen.items():
    local = LocalAttention(kind=kind, size=size, layers=(0,))
    assert local.mean_keys(length) == pytest.approx(sum(keys) / length)
    assert local.last_keys(length) == keys[-1]


def test_local_layers_see_and_keep_less():
  """Layers 0 and 2 of four see 4 of 16 tokens: G 4, K 8, two bytes."""
  model = tiny.model(local=LocalAttention(kind="sliding", size=4, layers=(0, 2)))
  full = token_flops(tiny.model(), 16).attention
  assert full - token_flops(model, 16).attention == 2 * 4 * 4 * 8 * (8.5 - (4 - 4 * 3 / 32))
  assert cache_bytes(deployment(model, kind="decode")) == 2 * 4 * 8 * 2 * (2 * 4 + 2 * 16)
  assert cache_bytes_per_token(model, "bfloat16") == 2 * 4 * 8 * 2 * 4


def test_a_stage_with_more_whole_layers_sets_the_cache():
  model = tiny.model(local=LocalAttention(kind="chunked", size=4, layers=(0, 1)))
  d = dataclasses.replace(deployment(model, kind="decode"), strategy=Strategy(stage=2))
  assert cache_bytes(d) == 2 * 4 * 8 * 2 * (2 * 16)


# Bytes that a token keeps in 16 bits: table 1 of arXiv 2505.09343, whose Llama-3.1-405B is dense: one expert here.
LLAMA_405B = ModelConfig(
  name="llama-3.1-405b", num_layers=126, d_model=16_384, num_heads=128, num_kv_heads=8, head_dim=128, num_experts=1,
  experts_per_token=1, d_expert=53_248, vocab_size=128_256,
)  # fmt: skip


def test_cache_bytes_a_token_as_published():
  assert cache_bytes_per_token(load_model("deepseek-v3"), "bfloat16") == 70_272
  assert cache_bytes_per_token(LLAMA_405B, "bfloat16") == 516_096


def test_a_latent_cache_lies_whole_on_every_device():
  """61 layers of 576 numbers of two bytes, 16 sequences over expert 4: tensor splits heads, which this cache lacks."""
  d = deployment(load_model("deepseek-v3"), kind="decode", batch=16, sequence_length=10)
  d = dataclasses.replace(d, strategy=Strategy(expert=4, tensor=2))
  assert cache_bytes(d) == 61 * 576 * 2 * (16 // 4) * 10
