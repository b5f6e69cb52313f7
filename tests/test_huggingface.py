"""`config.json` of the known families, against their published parameter counts and real files' traps."""

import dataclasses
import json

import pytest

from jaxmoe.config.catalogue import load_model
from jaxmoe.config.huggingface import FAMILIES, is_huggingface, model_from_huggingface
from jaxmoe.config.parts import Biases, DenseLayers, LocalAttention, Rotary
from jaxmoe.cost.parameters import active_parameters, total_parameters
from jaxmoe.meshes.errors import UsageError

MIXTRAL = {
  "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
  "vocab_size": 96,
}  # fmt: skip
QWEN = {
  "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 999, "moe_intermediate_size": 32,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
  "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 96,
}  # fmt: skip
LLAMA = {
  "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
OLMOE = {**MIXTRAL, "model_type": "olmoe"}
# transformers' own counts of the published checkpoints
PUBLISHED = {
  "mixtral-8x7b": (46_702_792_704, 12_879_925_248),
  "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704),
  "olmoe-1b-7b": (6_919_161_856, 1_282_017_280),
}


def by_hand(m):
  """(total, active) parameters, summed here anew: embedding, head, final norm and layers."""
  attention = m.d_model * m.head_dim * (2 * m.num_heads + 2 * m.num_kv_heads)
  norm = {"none": 0, "head": 2 * m.head_dim, "projection": (m.num_heads + m.num_kv_heads) * m.head_dim}
  layer = attention + norm[m.query_key_norm] + 2 * m.d_model + m.d_model * m.num_experts
  rest = m.d_model * m.vocab_size * (1 if m.tied_embeddings else 2) + m.d_model
  expert = m.d_model * m.d_expert * (3 if m.gated else 2)
  return tuple(rest + m.num_layers * (layer + n * expert) for n in (m.num_experts, m.experts_per_token))


@pytest.mark.parametrize("name", PUBLISHED)
def test_catalogue_models_have_their_published_counts(name):
  model = load_model(name)
  assert by_hand(model) == PUBLISHED[name]
  assert (total_parameters(model), active_parameters(model)) == PUBLISHED[name]


def read(config, **changes):
  return model_from_huggingface({**config, **changes}, name="m")


def test_families_differ_where_their_code_does():
  models = [read(config) for config in (MIXTRAL, QWEN, OLMOE)]
  assert [m.query_key_norm for m in models] == ["none", "head", "projection"]
  assert [m.norm_topk_prob for m in models] == [True, False, False]
  assert [m.rope_theta for m in models] == [1e6, 1e4, 1e4]
  assert [m.norm_eps for m in models] == [1e-5, 1e-6, 1e-5]
  assert [m.d_expert for m in models] == [128, 32, 128]
  assert [m.aux_loss_coef for m in models] == [0.001, 0.001, 0.01]
  assert {m.gated for m in models} == {True} and {m.activation for m in models} == {"silu"}
  assert {m.tied_embeddings for m in models} == {False}


def test_head_dim_given_null_or_left_out():
  assert read(QWEN).head_dim == 32
  assert read(QWEN, head_dim=None).head_dim == 64 // 4
  assert read(MIXTRAL).head_dim == 64 // 4
  with pytest.raises(UsageError, match="head_dim"):
    read(MIXTRAL, num_attention_heads=6)


def test_key_value_heads_null_are_the_heads():
  assert read(MIXTRAL, num_key_value_heads=None).num_kv_heads == 4
  assert read(MIXTRAL).num_kv_heads == 2


def test_rope_theta_of_older_and_newer_files():
  assert read(QWEN, rope_theta=5).rope_theta == 5.0
  assert read(QWEN, rope_parameters={"rope_theta": 7.0, "rope_type": "default"}).rope_theta == 7.0


def test_experts_under_either_name():
  newer = {key: value for key, value in MIXTRAL.items() if key != "num_local_experts"}
  assert read(newer, num_experts=4) == read(MIXTRAL)


def test_nested_text_config():
  wrapper = {"model_type": "some_vl", "tie_word_embeddings": True, "text_config": QWEN}
  assert read(wrapper).tied_embeddings is True
  assert read({**wrapper, "text_config": {**QWEN, "tie_word_embeddings": False}}) == read(QWEN)
  stored = {**wrapper, "quantization_config": {"quant_method": "fp8"}}
  assert (read(stored).quantization, read(wrapper).quantization) == ("fp8", None)


def test_quantization_is_storage_and_changes_nothing_else():
  stored = read(QWEN, quantization_config={"quant_method": "fp8"})
  assert dataclasses.replace(stored, quantization=None) == read(QWEN, quantization_config=None) == read(QWEN)


def test_what_is_expressed_beyond_the_plain_decoder():
  assert read(QWEN, mlp_only_layers=[1]).dense == DenseLayers(layers=(1,), d_hidden=999)
  assert read(QWEN, decoder_sparse_step=2).dense == DenseLayers(layers=(0,), d_hidden=999)
  assert read(QWEN, attention_bias=True).biases == Biases(query_key_value=True, output=True)
  assert read(MIXTRAL, sliding_window=7).local == LocalAttention(kind="sliding", size=7, layers=(0, 1))
  assert read(MIXTRAL, sliding_window=64, max_position_embeddings=64) == read(MIXTRAL, max_position_embeddings=64)
  kinds = ["full_attention", "sliding_attention"]
  windows = read(QWEN, layer_types=kinds, use_sliding_window=True, sliding_window=4)
  assert windows.local == LocalAttention(kind="sliding", size=4, layers=(1,))
  assert read(OLMOE, clip_qkv=8.0).clip_qkv == 8.0
  for rope in ({"rope_type": "yarn", "factor": 4.0}, {"type": "yarn", "factor": 4.0}):
    assert read(QWEN, rope_scaling=rope).rotary == Rotary(scaling="yarn")
  assert read(QWEN, rope_parameters={"rope_type": "llama3", "rope_theta": 5.0}).rotary == Rotary(scaling="llama3")
  assert read(QWEN, rope_parameters={"partial_rotary_factor": 0.5}).rotary == Rotary(share=0.5)


def test_a_window_that_is_off_is_no_window():
  assert read(QWEN, use_sliding_window=False, sliding_window=4096) == read(QWEN)


@pytest.mark.parametrize(
  "config, changes, words",
  [
    (QWEN, {"mlp_only_layers": [0], "intermediate_size": None}, ["intermediate_size is missing", "mlp_only_layers"]),
    (QWEN, {"mlp_only_layers": [0, 1]}, ["dense", "at least one to experts"]),
    (MIXTRAL, {"attention_bias": True}, ["attention_bias", "false", "true"]),
    (QWEN, {"use_sliding_window": True, "sliding_window": 4096}, ["sliding_window", "null"]),
    (QWEN, {"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_window", "null"]),
    (QWEN, {"layer_types": ["full_attention", "linear_attention"]}, ["layer_types", "'linear_attention'"]),
    (QWEN, {"layer_types": ["full_attention"]}, ["layer_types", "2 entries", "1"]),
    (MIXTRAL, {"sliding_window": 0}, ["sliding_window", "at least 1", "0"]),
    (MIXTRAL, {"hidden_act": "gelu_new"}, ["hidden_act", "'silu'", "'gelu_new'"]),
    (QWEN, {"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, ["rope_scaling", "yarn", "'spiral'"]),
    (QWEN, {"rope_parameters": {"rope_type": 3}}, ["rope_parameters", "yarn", "3"]),
    (QWEN, {"rope_parameters": {"rope_theta": "big"}}, ["rope_parameters.rope_theta", "'big'"]),
    (QWEN, {"rope_parameters": {"partial_rotary_factor": 1.5}}, ["partial_rotary_factor", "1", "1.5"]),
    (OLMOE, {"clip_qkv": 0}, ["clip_qkv", "above 0"]),
    (QWEN, {"quantization_config": {"bits": 8}}, ["quantization_config.quant_method", "nothing"]),
    (QWEN, {"num_experts": "8"}, ["num_experts", "whole number", "'8'", "quotes"]),
    (QWEN, {"num_experts": True}, ["num_experts", "whole number", "true"]),
    (QWEN, {"hidden_size": 0}, ["hidden_size", "at least 1", "0"]),
    (QWEN, {"num_key_value_heads": 3}, ["num_kv_heads", "nearest legal"]),
    (QWEN, {"num_experts_per_tok": 9}, ["experts_per_token", "8", "9"]),
    (QWEN, {"rope_scaling": "yarn"}, ["rope_scaling", "mapping", "'yarn'"]),
    (MIXTRAL, {"model_type": "llama"}, ["model_type", ", ".join(FAMILIES), "'llama'; write other"]),
    (LLAMA, {}, ["model_type", ", ".join(FAMILIES), "got the text 'llama'; no key names experts"]),
    (MIXTRAL, {"model_type": "mixtrl"}, ["model_type", "did you mean 'mixtral'"]),
    (MIXTRAL, {"model_type": None}, ["model_type", "nothing"]),
    (MIXTRAL, {"model_type": ["mixtral"]}, ["model_type", "a list"]),
    ({"text_config": 3}, {}, ["text_config", "mapping", "3"]),
  ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(config, changes, words):
  with pytest.raises(UsageError) as caught:
    read(config, **changes)
  assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("config", [MIXTRAL, QWEN, OLMOE], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named(config, key):
  with pytest.raises(UsageError, match=f"{key} is missing"):
    read({name: value for name, value in config.items() if name != key})


@pytest.mark.parametrize(
  "model_type, key",
  [("mixtral", "num_local_experts"), ("gpt_oss", "num_local_experts"), ("olmoe", "num_experts")],
)
def test_missing_experts_are_named_as_the_family_does(model_type, key):
  config = {name: value for name, value in MIXTRAL.items() if name != "num_local_experts"}
  with pytest.raises(UsageError, match=f"^{key} is missing"):
    read(config, model_type=model_type)


def test_checkpoint_folder_and_file(tmp_path):
  folder = tmp_path / "my-moe"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(QWEN))
  assert load_model(f"{folder}") == load_model(f"{folder}/config.json")
  assert load_model(f"{folder}").name == "my-moe"


def test_only_config_json_is_taken_for_one():
  assert is_huggingface(MIXTRAL) and is_huggingface({"text_config": QWEN})
  assert not is_huggingface({"num_layers": 4, "d_model": 64})
