"""The families that `config.json` is read of: for each, where its model code differs from the plain decoder's."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from jaxmoe.config.huggingface_base import (
  LOCAL_EXPERTS,
  DecoderConfig,
  Epsilon,
  FamilyConfig,
  Positive,
  dense_part,
  experts_named,
)
from jaxmoe.config.huggingface_dbrx import Dbrx
from jaxmoe.config.huggingface_deepseek import DeepseekV2, DeepseekV3, Glm4Moe
from jaxmoe.config.huggingface_llama4 import Llama4
from jaxmoe.config.model import Activation, Norm, QueryKeyNorm
from jaxmoe.config.parts import Biases, DenseLayers, Multipliers, Rotary, Routing, SharedExpert
from jaxmoe.config.schema import Size


class _Mixtral(DecoderConfig):
  """Here, as in OLMoE, gpt-oss, Phi-3.5-MoE and Granite, `intermediate_size` is the width of one expert."""

  default_rope_theta: ClassVar[float] = 1e6

  num_key_value_heads: Size | None = 8
  intermediate_size: Size
  num_experts: Annotated[Size, experts_named(*LOCAL_EXPERTS)]

  @property
  def d_expert(self) -> int:
    return self.intermediate_size


class _Olmoe(DecoderConfig):
  may_have_attention_bias: ClassVar[bool] = True

  intermediate_size: Size
  norm_topk_prob: bool = False
  router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.01
  clip_qkv: Positive | None = None

  @property
  def d_expert(self) -> int:
    return self.intermediate_size

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "projection"

  @property
  def normalises_topk(self) -> bool:
    return self.norm_topk_prob

  @property
  def clip(self) -> float | None:
    return self.clip_qkv


class _Qwen(DecoderConfig):
  """Experts are as wide as `moe_intermediate_size`, dense layers as `intermediate_size`."""

  moe_intermediate_size: Size
  intermediate_size: Size | None = None
  norm_topk_prob: bool = False
  rms_norm_eps: Epsilon = 1e-6
  use_sliding_window: bool = False
  decoder_sparse_step: Size = 1
  mlp_only_layers: list[int] | None = None

  @property
  def d_expert(self) -> int:
    return self.moe_intermediate_size

  @property
  def normalises_topk(self) -> bool:
    return self.norm_topk_prob

  @property
  def window(self) -> int | None:
    return self.sliding_window if self.use_sliding_window else None

  def _dense_layers(self) -> tuple[int, ...]:
    step, named = self.decoder_sparse_step, self.mlp_only_layers or ()
    return tuple(layer for layer in range(self.num_hidden_layers) if layer in named or (layer + 1) % step)

  @property
  def dense(self) -> DenseLayers | None:
    return dense_part(self._dense_layers(), self.intermediate_size)

  def refusals(self) -> Iterator[str]:
    yield from super().refusals()
    if self._dense_layers() and self.intermediate_size is None:
      yield "intermediate_size is missing; add it: mlp_only_layers or decoder_sparse_step make layers dense"
    if self.window is not None and self.layer_types is None:
      yield "sliding_window: expected null without layer_types, for versions of the code differ in where it slides"


class _Qwen2Moe(_Qwen):
  num_key_value_heads: Size | None = 16
  shared_expert_intermediate_size: Size = 5632
  qkv_bias: bool = True

  @property
  def shared(self) -> SharedExpert:
    return SharedExpert(d_hidden=self.shared_expert_intermediate_size, weighed=True)

  @property
  def biases(self) -> Biases:
    return Biases(query_key_value=self.qkv_bias)


class _Qwen3Moe(_Qwen):
  may_have_attention_bias: ClassVar[bool] = True

  num_key_value_heads: Size | None = 4

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "head"


class _GptOss(_Mixtral):
  """Sinks and biases everywhere are in the code, not in the file; every other layer slides, the first one does."""

  default_rope_theta: ClassVar[float] = 150_000.0
  may_have_attention_bias: ClassVar[bool] = True

  head_dim: Size | None = 64
  attention_bias: bool = True
  sliding_window: int | None = 128
  swiglu_limit: float = 7.0
  swiglu_alpha: float = 1.702

  @property
  def activation(self) -> Activation:
    return "clamped"

  @property
  def sinks(self) -> bool:
    return True

  @property
  def biases(self) -> Biases:
    return Biases(query_key_value=self.attention_bias, output=self.attention_bias, router=True, expert=True)

  def kinds_of_layers(self) -> list[str]:
    if self.layer_types is not None:
      return self.layer_types
    kinds = ("sliding_attention", "full_attention")
    return [kinds[layer % 2] for layer in range(self.num_hidden_layers)]

  def refusals(self) -> Iterator[str]:
    yield from super().refusals()
    for key, value in (("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)):
      if getattr(self, key) != value:
        yield f"{key}: expected {value}, got {getattr(self, key)}; no other clamped activation is expressed"

  @property
  def rotary(self) -> Rotary:
    plain = self.rope_scaling is None and self.rope_parameters is None
    return Rotary(scaling="yarn") if plain else super().rotary


class _Phimoe(_Mixtral):
  """LayerNorms with biases, and a router that is no softmax."""

  may_have_attention_bias: ClassVar[bool] = True

  lm_head_bias: bool = False

  @property
  def norm(self) -> Norm:
    return "layer"

  @property
  def normalises_topk(self) -> bool:
    return False

  @property
  def routing(self) -> Routing:
    return Routing(score="sparsemixer")

  @property
  def biases(self) -> Biases:
    return Biases(
      query_key_value=self.attention_bias, output=self.attention_bias, norm=True, head=self.lm_head_bias
    )  # fmt: skip


class _GraniteMoe(_Mixtral):
  default_rope_theta: ClassVar[float] = 10_000.0
  may_have_attention_bias: ClassVar[bool] = True

  num_key_value_heads: Size | None = None
  rms_norm_eps: Epsilon = 1e-6
  embedding_multiplier: float = 1.0
  attention_multiplier: float = 1.0
  residual_multiplier: float = 1.0
  logits_scaling: Positive = 1.0

  @property
  def multipliers(self) -> Multipliers:
    return Multipliers(
      embedding=float(self.embedding_multiplier),
      attention=float(self.attention_multiplier),
      residual=float(self.residual_multiplier),
      logits=float(self.logits_scaling),
    )


FAMILIES: Mapping[str, type[FamilyConfig]] = {
  "mixtral": _Mixtral,
  "qwen2_moe": _Qwen2Moe,
  "qwen3_moe": _Qwen3Moe,
  "olmoe": _Olmoe,
  "deepseek_v2": DeepseekV2,
  "deepseek_v3": DeepseekV3,
  "kimi_k2": DeepseekV3,
  "gpt_oss": _GptOss,
  "dbrx": Dbrx,
  "llama4_text": Llama4,
  "phimoe": _Phimoe,
  "glm4_moe": Glm4Moe,
  "granitemoe": _GraniteMoe,
}
