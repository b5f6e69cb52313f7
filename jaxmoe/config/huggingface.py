"""`ModelConfig` from a Hugging Face `config.json`; what it cannot express is refused, never approximated.

Keys that describe neither shape nor function (token ids, dropout, initialisation, dtype) are passed over.
Defaults are those of the family's own configuration class, for files leave out what equals them.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from jaxmoe.config.files import closest, got
from jaxmoe.config.model import ModelConfig, QueryKeyNorm
from jaxmoe.config.schema import Layers, Size, checked, whole_head_dim
from jaxmoe.meshes.errors import UsageError

_MARKS = {"model_type", "architectures", "hidden_size", "num_hidden_layers", "text_config"}


def is_huggingface(data: Mapping[str, Any]) -> bool:
  """Whether a mapping is a `config.json` rather than a model in this project's own words."""
  return not _MARKS.isdisjoint(data)


def model_from_huggingface(data: Mapping[str, Any], *, name: str) -> ModelConfig:
  """The model of one `config.json`, also when a wrapper nests it under `text_config`.

  Raises:
    UsageError: an unknown family, a missing or mistyped field, or a feature that `ModelConfig` lacks.
  """
  data = _text_config(data)
  config = checked(_family(data.get("model_type")), data)
  for refusal in config.refusals():
    raise UsageError(refusal)
  return config.model(name)


class _Config(BaseModel):
  """The keys that all families share."""

  model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

  hidden_size: Size
  num_hidden_layers: Layers
  num_attention_heads: Size
  num_key_value_heads: Size | None = None
  head_dim: Size | None = None
  num_experts: Annotated[Size, Field(validation_alias=AliasChoices("num_experts", "num_local_experts"))]
  num_experts_per_tok: Size
  vocab_size: Size
  hidden_act: str = "silu"
  tie_word_embeddings: bool = False
  max_position_embeddings: Size | None = None
  rms_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
  router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.001
  rope_theta: Annotated[float, Field(gt=0)] | None = None
  rope_parameters: dict[str, Any] | None = None
  rope_scaling: dict[str, Any] | None = None
  attention_bias: bool = False
  sliding_window: int | None = None
  layer_types: list[str] | None = None
  quantization_config: dict[str, Any] | None = None

  @property
  def d_expert(self) -> int:
    raise NotImplementedError

  @property
  def default_rope_theta(self) -> float:
    return 10_000.0

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "none"

  @property
  def normalises_topk(self) -> bool:
    return True

  def model(self, name: str) -> ModelConfig:
    return ModelConfig(
      name=name,
      num_layers=self.num_hidden_layers,
      d_model=self.hidden_size,
      num_heads=self.num_attention_heads,
      num_kv_heads=self.num_key_value_heads or self.num_attention_heads,
      head_dim=self.head_dim or whole_head_dim(self.hidden_size, self.num_attention_heads),
      num_experts=self.num_experts,
      experts_per_token=self.num_experts_per_tok,
      d_expert=self.d_expert,
      vocab_size=self.vocab_size,
      query_key_norm=self.query_key_norm,
      tied_embeddings=self.tie_word_embeddings,
      norm_topk_prob=self.normalises_topk,
      rope_theta=self._rope_theta(),
      norm_eps=self.rms_norm_eps,
      max_sequence_length=self.max_position_embeddings,
      aux_loss_coef=self.router_aux_loss_coef,
    )

  def refusals(self) -> Iterator[str]:
    """One sentence for each feature that `ModelConfig` cannot express."""
    if self.hidden_act not in ("silu", "swish"):
      yield f"hidden_act: expected 'silu', got {got(self.hidden_act)}; no other activation is read here"
    if self.attention_bias:
      yield "attention_bias: expected false, got true; attention with biases cannot be expressed"
    if self._slides() or any(kind != "full_attention" for kind in self.layer_types or ()):
      yield "sliding_window: expected null, got a window in use; layers attend to whole sequences here"
    if self.quantization_config:
      yield "quantization_config: expected none; remove it and name the stored dtype in job.precision.weights"
    for key in ("rope_scaling", "rope_parameters"):
      yield from _rope_refusals(key, getattr(self, key) or {})

  def _slides(self) -> bool:
    return self.sliding_window is not None

  def _rope_theta(self) -> float:
    """Given in `rope_parameters` by newer files, at the top by older ones."""
    theta = (self.rope_parameters or {}).get("rope_theta", self.rope_theta)
    return float(self.default_rope_theta if theta is None else theta)


class _Mixtral(_Config):
  intermediate_size: Size

  @property
  def d_expert(self) -> int:
    return self.intermediate_size

  @property
  def default_rope_theta(self) -> float:
    return 1e6


class _Qwen3Moe(_Config):
  moe_intermediate_size: Size
  norm_topk_prob: bool = False
  rms_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
  use_sliding_window: bool = False
  decoder_sparse_step: int = 1
  mlp_only_layers: list[int] | None = None

  @property
  def d_expert(self) -> int:
    return self.moe_intermediate_size

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "head"

  @property
  def normalises_topk(self) -> bool:
    return self.norm_topk_prob

  def refusals(self) -> Iterator[str]:
    yield from super().refusals()
    if self.decoder_sparse_step != 1:
      yield f"decoder_sparse_step: expected 1, got {self.decoder_sparse_step}; no layer may be dense"
    if self.mlp_only_layers:
      yield f"mlp_only_layers: expected [], got {self.mlp_only_layers[:8]}; no layer may be dense"

  def _slides(self) -> bool:
    return self.use_sliding_window and super()._slides()


class _Olmoe(_Config):
  intermediate_size: Size
  norm_topk_prob: bool = False
  router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.01
  clip_qkv: float | None = None

  @property
  def d_expert(self) -> int:
    return self.intermediate_size

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "projection"

  @property
  def normalises_topk(self) -> bool:
    return self.norm_topk_prob

  def refusals(self) -> Iterator[str]:
    yield from super().refusals()
    if self.clip_qkv is not None:
      yield f"clip_qkv: expected null, got {self.clip_qkv}; clipped projections cannot be expressed"


FAMILIES: Mapping[str, type[_Config]] = {"mixtral": _Mixtral, "qwen3_moe": _Qwen3Moe, "olmoe": _Olmoe}


def _family(model_type: Any) -> type[_Config]:
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    near = closest(model_type, FAMILIES) if isinstance(model_type, str) else ""
    raise UsageError(
      f"model_type: expected one of {', '.join(FAMILIES)}, got {got(model_type)}{near};"
      " write other Mixture-of-Experts models as a model YAML"
    )
  return FAMILIES[model_type]


def _text_config(data: Mapping[str, Any]) -> Mapping[str, Any]:
  """The language model's part; a wrapper's `tie_word_embeddings` stands in where that part has none."""
  text = data.get("text_config")
  if text is None:
    return data
  if not isinstance(text, dict):
    raise UsageError(f"text_config: expected a mapping, got {got(text)}")
  tied = {key: data[key] for key in ("tie_word_embeddings",) if key in data}
  return {**tied, **text}


def _rope_refusals(key: str, rope: Mapping[str, Any]) -> Iterator[str]:
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind != "default":
    yield f"{key}: expected type default, got {got(kind)}; scaled positions cannot be expressed"
  part = rope.get("partial_rotary_factor", 1)
  if part != 1:
    yield f"{key}.partial_rotary_factor: expected 1, got {got(part)}; every head turns whole here"
  theta = rope.get("rope_theta")
  if theta is not None and not (type(theta) in (int, float) and 0 < theta < 1e30):
    yield f"{key}.rope_theta: expected a number above 0, got {got(theta)}"
