"""What the `config.json` of all families share, and how its keys become a `ModelConfig`.

A family overrides the properties in which its model code differs. Defaults are those of the family's own configuration
class, for files leave out what equals them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from jaxmoe.config.files import got
from jaxmoe.config.model import Activation, ModelConfig, Norm, QueryKeyNorm
from jaxmoe.config.model_form import whole_head_dim
from jaxmoe.config.parts import (
  Biases,
  DenseLayers,
  LatentAttention,
  LocalAttention,
  Multipliers,
  Rotary,
  Routing,
  SharedExpert,
)
from jaxmoe.config.schema import Layers, Size

Positive = Annotated[float, Field(gt=0)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10_000)]

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "su", "llama3")
LAYER_KINDS = {"full_attention": None, "sliding_attention": "sliding", "chunked_attention": "chunked"}


# The name that Mixtral's code and those after it give E.
LOCAL_EXPERTS = ("num_local_experts", "num_experts")


def experts_named(*names: str) -> Any:
  """The field of E, under any of the names that files give it; the family's own comes first."""
  return Field(validation_alias=AliasChoices(*names))


class FamilyConfig(BaseModel):
  """A family's keys; those that describe neither shape nor function are passed over."""

  model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

  @property
  def prediction_layers(self) -> int:
    """Multi-token-prediction layers that the checkpoint holds beside the model."""
    return 0

  def refusals(self) -> Iterator[str]:
    """One sentence for each feature that `ModelConfig` cannot express."""
    raise NotImplementedError

  def model(self, name: str) -> ModelConfig:
    raise NotImplementedError


class DecoderConfig(FamilyConfig):
  """The usual keys of a decoder of experts."""

  default_rope_theta: ClassVar[float] = 10_000.0
  may_have_attention_bias: ClassVar[bool] = False

  hidden_size: Size
  num_hidden_layers: Layers
  num_attention_heads: Size
  num_key_value_heads: Size | None = None
  head_dim: Size | None = None
  num_experts: Annotated[Size, experts_named("num_experts", "num_local_experts")]
  num_experts_per_tok: Size
  vocab_size: Size
  hidden_act: str = "silu"
  tie_word_embeddings: bool = False
  max_position_embeddings: Size | None = None
  rms_norm_eps: Epsilon = 1e-5
  router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.001
  rope_theta: Positive | None = None
  rope_parameters: dict[str, Any] | None = None
  rope_scaling: dict[str, Any] | None = None
  partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
  attention_bias: bool = False
  sliding_window: int | None = None
  layer_types: list[str] | None = None
  quantization_config: dict[str, Any] | None = None

  @property
  def d_expert(self) -> int:
    raise NotImplementedError

  @property
  def kv_heads(self) -> int:
    return self.num_key_value_heads or self.num_attention_heads

  @property
  def head_width(self) -> int:
    return self.head_dim or whole_head_dim(self.hidden_size, self.num_attention_heads)

  @property
  def activation(self) -> Activation:
    return "silu"

  @property
  def norm(self) -> Norm:
    return "rms"

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "none"

  @property
  def normalises_topk(self) -> bool:
    return True

  @property
  def clip(self) -> float | None:
    return None

  @property
  def sinks(self) -> bool:
    return False

  @property
  def latent(self) -> LatentAttention | None:
    return None

  @property
  def local(self) -> LocalAttention | None:
    """Layers that look back no further than the window, unless that holds the longest sequence."""
    layers, window = self.local_layers(), self.window
    if not layers or window is None or window >= (self.max_position_embeddings or window + 1):
      return None
    kind = "chunked" if "chunked_attention" in self.kinds_of_layers() else "sliding"
    return LocalAttention(kind=kind, size=window, layers=layers)

  @property
  def window(self) -> int | None:
    """Tokens that a local layer sees, `None` where the file turns windows off."""
    return self.sliding_window

  def kinds_of_layers(self) -> list[str]:
    """One of LAYER_KINDS for each layer: as the file says, else as the family's code does."""
    kind = "full_attention" if self.window is None else "sliding_attention"
    return self.layer_types if self.layer_types is not None else [kind] * self.num_hidden_layers

  def local_layers(self) -> tuple[int, ...]:
    return tuple(layer for layer, kind in enumerate(self.kinds_of_layers()) if LAYER_KINDS.get(kind))

  @property
  def dense(self) -> DenseLayers | None:
    return None

  @property
  def shared(self) -> SharedExpert | None:
    return None

  @property
  def routing(self) -> Routing:
    return Routing()

  @property
  def biases(self) -> Biases:
    return Biases(query_key_value=self.attention_bias, output=self.attention_bias)

  @property
  def rotary(self) -> Rotary:
    kinds = [rope_kind(rope) for rope in (self.rope_scaling, self.rope_parameters) if rope]
    share = (self.rope_parameters or {}).get("partial_rotary_factor", self.partial_rotary_factor)
    scaling = next((kind for kind in kinds if kind != "default"), None)
    return Rotary(scaling=scaling, share=1.0 if share is None else float(share))

  @property
  def multipliers(self) -> Multipliers:
    return Multipliers()

  def model(self, name: str) -> ModelConfig:
    """The model of this file, without prediction layers."""
    return ModelConfig(
      name=name,
      num_layers=self.num_hidden_layers,
      d_model=self.hidden_size,
      num_heads=self.num_attention_heads,
      num_kv_heads=self.kv_heads,
      head_dim=self.head_width,
      num_experts=self.num_experts,
      experts_per_token=self.num_experts_per_tok,
      d_expert=self.d_expert,
      vocab_size=self.vocab_size,
      activation=self.activation,
      query_key_norm=self.query_key_norm,
      tied_embeddings=self.tie_word_embeddings,
      norm_topk_prob=self.normalises_topk,
      rope_theta=self._rope_theta(),
      norm_eps=self.rms_norm_eps,
      max_sequence_length=self.max_position_embeddings,
      aux_loss_coef=self.router_aux_loss_coef,
      norm=self.norm,
      clip_qkv=self.clip,
      sinks=self.sinks,
      latent=self.latent,
      local=self.local,
      dense=self.dense,
      shared=self.shared,
      routing=self.routing,
      biases=self.biases,
      rotary=self.rotary,
      multipliers=self.multipliers,
      quantization=(self.quantization_config or {}).get("quant_method"),
    )

  def refusals(self) -> Iterator[str]:
    if self.hidden_act not in ("silu", "swish"):
      yield f"hidden_act: expected 'silu', got {got(self.hidden_act)}; no other activation is read here"
    if self.attention_bias and not self.may_have_attention_bias:
      yield "attention_bias: expected false, got true; this family's attention has no such biases"
    yield from self._layer_refusals()
    if self.quantization_config and not isinstance(self.quantization_config.get("quant_method"), str):
      yield f"quantization_config.quant_method: expected text, got {got(self.quantization_config.get('quant_method'))}"
    for key in ("rope_scaling", "rope_parameters"):
      yield from _rope_refusals(key, getattr(self, key) or {})

  def _layer_refusals(self) -> Iterator[str]:
    types = self.layer_types
    if types is not None and len(types) != self.num_hidden_layers:
      yield f"layer_types: expected {self.num_hidden_layers} entries, one for each layer, got {len(types)}"
    for kind in types or ():
      if kind not in LAYER_KINDS:
        yield f"layer_types: expected one of {', '.join(LAYER_KINDS)}, got {got(kind)}"
    if self.window is not None and self.window < 1:
      yield f"sliding_window: expected null or a number of at least 1, got {self.window}"
    if self.local_layers() and self.window is None:
      yield "sliding_window: expected a number, got null, though layer_types names layers with a window"

  def _rope_theta(self) -> float:
    """Given in `rope_parameters` by newer files, at the top by older ones."""
    theta = (self.rope_parameters or {}).get("rope_theta", self.rope_theta)
    return float(self.default_rope_theta if theta is None else theta)


def dense_part(layers: Iterable[int], width: int | None) -> DenseLayers | None:
  """The dense layers of a model, `None` if there are none (or a refusal says that their width is missing)."""
  layers = tuple(layers)
  return DenseLayers(layers=layers, d_hidden=width) if layers and width is not None else None


def rope_kind(rope: Mapping[str, Any]) -> Any:
  """The rule's name, under its newer or its older key."""
  return rope.get("rope_type", rope.get("type", "default"))


def _rope_refusals(key: str, rope: Mapping[str, Any]) -> Iterator[str]:
  kind, share, theta = rope_kind(rope), rope.get("partial_rotary_factor"), rope.get("rope_theta")
  if kind not in ROPE_KINDS:
    yield f"{key}: expected a type of {', '.join(ROPE_KINDS)}, got {got(kind)}"
  if share is not None and not _is_number(share, 1):
    yield f"{key}.partial_rotary_factor: expected a number above 0 and at most 1, got {got(share)}"
  if theta is not None and not _is_number(theta, 1e30):
    yield f"{key}.rope_theta: expected a number above 0, got {got(theta)}"


def _is_number(value: Any, most: float) -> bool:
  return type(value) in (int, float) and 0 < value <= most
