"""`config.json` of each family: where keys mean other things, are left out, or say nothing of what the code adds."""

import json
from importlib import resources

import pytest

from jaxmoe.config.catalogue import load_model, model_names
from jaxmoe.config.huggingface import FAMILIES, model_from_huggingface
from jaxmoe.config.parts import Biases, DenseLayers, LocalAttention, Multipliers, Rotary, Routing, SharedExpert
from jaxmoe.meshes.errors import UsageError


def config(name):
  data = json.loads((resources.files("jaxmoe.meshes") / "models" / f"{name}.json").read_text())
  return data.get("text_config", data)


CONFIGS = {name: config(name) for name in model_names()}


def read(name, *left_out, mtp=False, **changes):
  data = {key: value for key, value in {**CONFIGS[name], **changes}.items() if key not in left_out}
  return model_from_huggingface(data, name=name, mtp=mtp)


# num_key_value_heads of each family's configuration class in transformers; None, as many as heads.
KEY_VALUE_HEADS = {
  "mixtral-8x7b": 8, "qwen2-57b-a14b": 16, "qwen3-30b-a3b": 4, "olmoe-1b-7b": None, "gpt-oss-120b": 8,
  "phi-3.5-moe": 8, "glm-4.5-air": 8, "granite-3.1-3b-a800m": None, "llama-4-scout": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", KEY_VALUE_HEADS)
def test_key_value_heads_that_are_left_out_are_the_familys(name):
  heads = 48
  changes = {"num_attention_heads": heads, "head_dim": 64}
  assert read(name, "num_key_value_heads", **changes).num_kv_heads == (KEY_VALUE_HEADS[name] or heads)
  assert read(name, num_key_value_heads=None, **changes).num_kv_heads == heads


def test_every_family_has_a_model_in_the_catalogue():
  assert {data["model_type"] for data in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_missing_size_is_named(name):
  for usual, dbrx in [("hidden_size", "d_model"), ("num_hidden_layers", "n_layers"), ("vocab_size", "vocab_size")]:
    key = dbrx if name == "dbrx" else usual
    with pytest.raises(UsageError, match=f"^{key} is missing; add it"):
      read(name, key)


# `intermediate_size` and its relatives: widths of an expert, a dense layer and the shared expert
WIDTHS = {
  "mixtral-8x7b": (14_336, None, None),
  "qwen3-30b-a3b": (768, None, None),
  "qwen2-57b-a14b": (2560, None, 20_480),
  "deepseek-v2": (1536, 12_288, 2 * 1536),
  "deepseek-v3": (2048, 18_432, 2048),
  "gpt-oss-120b": (2880, None, None),
  "dbrx": (10_752, None, None),
  "llama-4-scout": (8192, None, 8192),
  "llama-4-maverick": (8192, 16_384, 8192),
  "phi-3.5-moe": (6400, None, None),
  "glm-4.5-air": (1408, 10_944, 1408),
  "granite-3.1-3b-a800m": (512, None, None),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_widths(name):
  m = load_model(name)
  assert (m.d_expert, m.dense and m.dense.d_hidden, m.shared and m.shared.d_hidden) == WIDTHS[name]


def test_latent_attention_owns_its_head_sizes():
  """DeepSeek's files may carry `head_dim`, the rotary part, and key-value heads that no tensor has."""
  plain = read("deepseek-v3")
  assert (plain.head_dim, plain.num_kv_heads) == (192, 128)
  assert read("deepseek-v3", head_dim=64, num_key_value_heads=8) == plain
  assert read("deepseek-v3", head_dim=None, num_key_value_heads=None) == plain
  assert read("deepseek-v2", q_lora_rank=None).latent.query_rank is None


def test_experts_have_a_name_of_their_own():
  renamed = {"num_local_experts": 256}
  assert read("deepseek-v3", "n_routed_experts", **renamed) == read("deepseek-v3")
  with pytest.raises(UsageError, match="n_routed_experts is missing"):
    read("deepseek-v3", "n_routed_experts")


def test_leading_dense_layers():
  assert read("deepseek-v3").dense == DenseLayers(layers=(0, 1, 2), d_hidden=18_432)
  assert read("deepseek-v3", "first_k_dense_replace") == read("deepseek-v3")
  assert read("deepseek-v3", first_k_dense_replace=0).dense is None
  assert read("deepseek-v3", num_hidden_layers=6, moe_layer_freq=2).dense.layers == (0, 1, 2, 3, 5)
  with pytest.raises(UsageError, match="at least one to experts"):
    read("deepseek-v3", first_k_dense_replace=61)


def test_routing_of_deepseek():
  third = Routing(score="sigmoid", selection_bias=True, groups=8, groups_per_token=4, scale=2.5)
  assert (read("deepseek-v3").routing, read("deepseek-v3").norm_topk_prob) == (third, True)
  assert read("deepseek-v2").routing == Routing(groups=8, groups_per_token=3, scale=16.0)
  assert read("deepseek-v2", topk_method="greedy").routing == Routing(scale=16.0)
  assert read("kimi-k2").routing == Routing(score="sigmoid", selection_bias=True, scale=2.827)
  with pytest.raises(UsageError, match=r"256 must divide into routing\.groups=7"):
    read("deepseek-v3", n_group=7)
  with pytest.raises(UsageError, match="groups_per_token must be at most"):
    read("deepseek-v3", topk_group=9)
  with pytest.raises(UsageError, match=r"topk_method: .*'noaux_tc'.*'best'"):
    read("deepseek-v3", topk_method="best")


def test_shared_experts_may_be_absent():
  assert read("deepseek-v3", n_shared_experts=None).shared is read("deepseek-v3", n_shared_experts=0).shared is None
  assert read("qwen2-57b-a14b").shared == SharedExpert(d_hidden=20_480, weighed=True)


def test_prediction_layers_are_counted_on_request():
  assert [read("deepseek-v3", mtp=mtp).mtp_layers for mtp in (False, True)] == [0, 1]
  assert read("deepseek-v3", mtp=True, num_nextn_predict_layers=2).mtp_layers == 2
  assert read("glm-4.5-air", "num_nextn_predict_layers", mtp=True).mtp_layers == 0
  assert read("mixtral-8x7b", mtp=True) == read("mixtral-8x7b")


def test_gpt_oss_has_more_than_its_file_says():
  m = read("gpt-oss-120b")
  assert m.sinks and m.activation == "clamped" and m.head_dim == 64
  assert m.biases == Biases(query_key_value=True, output=True, router=True, expert=True)
  assert m.local == LocalAttention(kind="sliding", size=128, layers=tuple(range(0, 36, 2)))
  assert read("gpt-oss-120b", "layer_types", "head_dim", "sliding_window", "attention_bias") == m
  assert read("gpt-oss-120b", "rope_scaling", "rope_theta").rotary == Rotary(scaling="yarn")
  with pytest.raises(UsageError, match=r"swiglu_limit: expected 7.0, got 5.0"):
    read("gpt-oss-120b", swiglu_limit=5.0)


def test_llama_4_layers():
  scout, maverick = read("llama-4-scout"), read("llama-4-maverick")
  whole = tuple(range(3, 48, 4))
  near = tuple(layer for layer in range(48) if layer not in whole)
  assert scout.local == LocalAttention(kind="chunked", size=8192, layers=near)
  assert scout.rotary == Rotary(scaling="llama3", skipped_layers=whole, tempered=True)
  assert scout.dense is None and maverick.dense.layers == tuple(range(0, 48, 2))
  assert (scout.query_key_norm, maverick.query_key_norm) == ("unit", "none")
  assert scout.routing == Routing(score="sigmoid", scales_input=True)
  assert read("llama-4-scout", moe_layers=[1, 3]).dense.layers == (0, 2, *range(4, 48))
  assert read("llama-4-scout", no_rope_layers=[1] * 47 + [0]).rotary.skipped_layers == (47,)
  assert read("llama-4-scout", attention_chunk_size=None).local is None
  with pytest.raises(UsageError, match="moe_layers: expected layers below 48, got 48"):
    read("llama-4-scout", moe_layers=[48])
  with pytest.raises(UsageError, match="no_rope_layers: expected 48 entries, got 1"):
    read("llama-4-scout", no_rope_layers=[0])


def test_llama_4_is_read_from_its_wrapper():
  wrapper = {"model_type": "llama4", "text_config": CONFIGS["llama-4-scout"], "vision_config": {"hidden_size": 1408}}
  assert model_from_huggingface(wrapper, name="llama-4-scout") == load_model("llama-4-scout")


def test_dbrx_nests_its_keys():
  m = read("dbrx")
  assert (m.num_kv_heads, m.head_dim, m.clip_qkv, m.rope_theta, m.norm) == (8, 128, 8.0, 5e5, "layer")
  assert (m.aux_loss_coef, m.norm_topk_prob, m.biases) == (0.05, True, Biases())
  nested = CONFIGS["dbrx"]["ffn_config"]
  assert not read("dbrx", ffn_config={**nested, "moe_normalize_expert_weights": None}).norm_topk_prob
  for change, words in [
    ({"moe_num_experts": "16"}, r"ffn_config\.moe_num_experts: expected a whole number.*'16'"),
    ({"moe_normalize_expert_weights": 2}, r"ffn_config\.moe_normalize_expert_weights: expected 1 or null"),
    ({"ffn_act_fn": {"name": "relu"}}, r"ffn_config\.ffn_act_fn\.name: expected 'silu'.*'relu'"),
  ]:
    with pytest.raises(UsageError, match=words):
      read("dbrx", ffn_config={**nested, **change})
  with pytest.raises(UsageError, match="attn_config is missing"):
    read("dbrx", "attn_config")
  with pytest.raises(UsageError, match="tie_word_embeddings"):
    read("dbrx", tie_word_embeddings=True)


def test_phi_norms_and_window():
  m = read("phi-3.5-moe")
  assert m.norm == "layer" and m.routing == Routing(score="sparsemixer")
  assert m.biases == Biases(query_key_value=True, output=True, norm=True, head=True)
  assert m.local is None, "the window is as long as the longest sequence"
  assert read("phi-3.5-moe", sliding_window=2047).local.size == 2047


def test_glm_and_granite():
  glm, granite = read("glm-4.5-air"), read("granite-3.1-3b-a800m")
  assert glm.biases == Biases(query_key_value=True), "its output map has none"
  assert (glm.rotary, glm.query_key_norm) == (Rotary(share=0.5), "none")
  assert read("glm-4.5-air", "partial_rotary_factor", use_qk_norm=True).rotary == Rotary(share=0.5)
  assert read("glm-4.5-air", use_qk_norm=True).query_key_norm == "head"
  assert granite.multipliers == Multipliers(embedding=12.0, attention=0.015625, residual=0.22, logits=6.0)
  assert granite.tied_embeddings and granite.norm_topk_prob


def test_quantization_is_named():
  stored = {name: load_model(name).quantization for name in model_names()}
  assert {name: kind for name, kind in stored.items() if kind} == {
    "deepseek-v3": "fp8", "kimi-k2": "fp8", "gpt-oss-120b": "mxfp4",
  }  # fmt: skip
