"""DeepSeek-V2, DeepSeek-V3, Kimi-K2 and GLM-4 MoE: leading dense layers, shared experts and grouped routing."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jaxmoe.config.huggingface_base import Count, DecoderConfig, Epsilon, Positive, dense_part, experts_named
from jaxmoe.config.model import QueryKeyNorm
from jaxmoe.config.parts import Biases, DenseLayers, LatentAttention, Routing, Score, SharedExpert
from jaxmoe.config.schema import Size


class Glm4Moe(DecoderConfig):
  """Leading dense layers, shared experts, and a router as in DeepSeek-V3."""

  may_have_attention_bias: ClassVar[bool] = True
  default_dense: ClassVar[int] = 1

  num_key_value_heads: Size | None = 8
  num_experts: Annotated[Size, experts_named("n_routed_experts", "num_experts", "num_local_experts")]
  moe_intermediate_size: Size
  intermediate_size: Size
  first_k_dense_replace: Count | None = None
  n_shared_experts: Count | None = 1
  n_group: Size | None = 1
  topk_group: Size | None = 1
  routed_scaling_factor: Positive = 1.0
  norm_topk_prob: bool = True
  use_qk_norm: bool = False
  partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = 0.5
  num_nextn_predict_layers: Count | None = 0

  @property
  def d_expert(self) -> int:
    return self.moe_intermediate_size

  @property
  def normalises_topk(self) -> bool:
    return self.norm_topk_prob

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "head" if self.use_qk_norm else "none"

  @property
  def prediction_layers(self) -> int:
    return self.num_nextn_predict_layers or 0

  def _dense_layers(self) -> tuple[int, ...]:
    count = self.default_dense if self.first_k_dense_replace is None else self.first_k_dense_replace
    return tuple(range(min(count, self.num_hidden_layers)))

  @property
  def dense(self) -> DenseLayers | None:
    return dense_part(self._dense_layers(), self.intermediate_size)

  @property
  def shared(self) -> SharedExpert | None:
    width = (self.n_shared_experts or 0) * self.moe_intermediate_size
    return SharedExpert(d_hidden=width) if width else None

  @property
  def routing(self) -> Routing:
    return self._grouped(score="sigmoid", selection_bias=True)

  def _grouped(self, *, score: Score, selection_bias: bool) -> Routing:
    groups, visited = self.n_group or 1, self.topk_group or self.n_group or 1
    return Routing(
      score=score, selection_bias=selection_bias, groups=groups, groups_per_token=visited,
      scale=float(self.routed_scaling_factor),
    )  # fmt: skip

  @property
  def biases(self) -> Biases:
    return Biases(query_key_value=self.attention_bias)


class DeepseekV3(Glm4Moe):
  """Adds multi-head latent attention; files carry a `head_dim` of other meaning, and K/V heads that do not exist."""

  may_have_attention_bias: ClassVar[bool] = False
  default_dense: ClassVar[int] = 3

  kv_lora_rank: Size = 512
  q_lora_rank: Size | None = 1536
  qk_nope_head_dim: Size = 128
  qk_rope_head_dim: Size = 64
  v_head_dim: Size = 128
  moe_layer_freq: Size = 1
  n_group: Size | None = 8
  topk_group: Size | None = 4
  routed_scaling_factor: Positive = 2.5
  rms_norm_eps: Epsilon = 1e-6
  scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
  topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
  partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None

  @property
  def kv_heads(self) -> int:
    return self.num_attention_heads

  @property
  def head_width(self) -> int:
    return self.qk_nope_head_dim + self.qk_rope_head_dim

  @property
  def latent(self) -> LatentAttention:
    return LatentAttention(
      query_rank=self.q_lora_rank,
      rank=self.kv_lora_rank,
      plain_dim=self.qk_nope_head_dim,
      rotary_dim=self.qk_rope_head_dim,
      value_dim=self.v_head_dim,
    )

  def _dense_layers(self) -> tuple[int, ...]:
    every = (layer for layer in range(self.num_hidden_layers) if layer % self.moe_layer_freq)
    return tuple(sorted({*super()._dense_layers(), *every}))

  @property
  def routing(self) -> Routing:
    return self._grouped(score=self.scoring_func, selection_bias=self.topk_method == "noaux_tc")


class DeepseekV2(DeepseekV3):
  """Chooses by softmax, at most within the best groups, and has no selection bias."""

  default_dense: ClassVar[int] = 0

  n_shared_experts: Count | None = 2
  n_group: Size | None = None
  topk_group: Size | None = None
  routed_scaling_factor: Positive = 1.0
  norm_topk_prob: bool = False
  scoring_func: Literal["sigmoid", "softmax"] = "softmax"
  topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "greedy"

  @property
  def routing(self) -> Routing:
    if self.topk_method == "greedy":
      return Routing(score=self.scoring_func, scale=float(self.routed_scaling_factor))
    return super().routing
