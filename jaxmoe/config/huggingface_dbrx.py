"""DBRX, whose `config.json` has names of its own and nests attention and feed-forward."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from jaxmoe.config.files import got
from jaxmoe.config.huggingface_base import FamilyConfig, Positive
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.model_form import whole_head_dim
from jaxmoe.config.schema import Layers, Size


class _Attention(FamilyConfig):
  kv_n_heads: Size = 1
  clip_qkv: Positive | None = None
  rope_theta: Positive = 10_000.0


class _FeedForward(FamilyConfig):
  ffn_hidden_size: Size = 3584
  moe_num_experts: Size = 4
  moe_top_k: Size = 1
  moe_loss_weight: Annotated[float, Field(ge=0)] = 0.01
  moe_normalize_expert_weights: Annotated[float, Field(ge=0)] | None = 1.0
  ffn_act_fn: dict[str, Any] | None = None


class Dbrx(FamilyConfig):
  d_model: Size
  n_layers: Layers
  n_heads: Size
  vocab_size: Size
  max_seq_len: Size | None = 2048
  attn_config: _Attention
  ffn_config: _FeedForward
  tie_word_embeddings: bool = False
  quantization_config: dict[str, Any] | None = None

  def refusals(self) -> Iterator[str]:
    name = (self.ffn_config.ffn_act_fn or {"name": "silu"}).get("name")
    if name != "silu":
      yield f"ffn_config.ffn_act_fn.name: expected 'silu', got {got(name)}; no other activation is read here"
    if self.ffn_config.moe_normalize_expert_weights not in (None, 1):
      norm = self.ffn_config.moe_normalize_expert_weights
      yield f"ffn_config.moe_normalize_expert_weights: expected 1 or null, got {norm}; other norms are not expressed"
    if self.tie_word_embeddings:
      yield "tie_word_embeddings: expected false, got true; this family's head has weights of its own"

  def model(self, name: str) -> ModelConfig:
    attention, feed_forward = self.attn_config, self.ffn_config
    return ModelConfig(
      name=name,
      num_layers=self.n_layers,
      d_model=self.d_model,
      num_heads=self.n_heads,
      num_kv_heads=attention.kv_n_heads,
      head_dim=whole_head_dim(self.d_model, self.n_heads),
      num_experts=feed_forward.moe_num_experts,
      experts_per_token=feed_forward.moe_top_k,
      d_expert=feed_forward.ffn_hidden_size,
      vocab_size=self.vocab_size,
      norm_topk_prob=feed_forward.moe_normalize_expert_weights is not None,
      rope_theta=float(attention.rope_theta),
      norm_eps=1e-5,
      max_sequence_length=self.max_seq_len,
      aux_loss_coef=feed_forward.moe_loss_weight,
      norm="layer",
      clip_qkv=attention.clip_qkv,
      quantization=(self.quantization_config or {}).get("quant_method"),
    )
