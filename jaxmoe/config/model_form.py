"""The YAML form of a model; its parts have the keys of `parts`, and all of them may be left out."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from jaxmoe.config.model import Activation, ModelConfig, Norm, QueryKeyNorm
from jaxmoe.config.parts import (
  Biases,
  DenseLayers,
  LatentAttention,
  LocalAttention,
  LocalKind,
  Multipliers,
  Rotary,
  Routing,
  Score,
  SharedExpert,
)
from jaxmoe.config.schema import Form, Layers, Name, Share, Size, Version, checked
from jaxmoe.meshes.errors import UsageError

Positive = Annotated[float, Field(gt=0, le=1e30)]
LayerNumbers = list[Annotated[int, Field(ge=0, le=10_000)]]


class LatentForm(Form):
  query_rank: Size | None = None
  rank: Size
  plain_dim: Size
  rotary_dim: Size
  value_dim: Size


class LocalForm(Form):
  kind: LocalKind
  size: Size
  layers: LayerNumbers


class DenseForm(Form):
  layers: LayerNumbers
  d_hidden: Size


class SharedForm(Form):
  d_hidden: Size
  weighed: bool = False


class RoutingForm(Form):
  score: Score = "softmax"
  selection_bias: bool = False
  groups: Size = 1
  groups_per_token: Size = 1
  scale: Positive = 1.0
  scales_input: bool = False


class BiasesForm(Form):
  query_key_value: bool = False
  output: bool = False
  router: bool = False
  expert: bool = False
  norm: bool = False
  head: bool = False


class RotaryForm(Form):
  scaling: Name | None = None
  share: Share = 1.0
  skipped_layers: LayerNumbers = Field(default_factory=list)
  tempered: bool = False


class MultipliersForm(Form):
  embedding: float = 1.0
  attention: float | None = None
  residual: float = 1.0
  logits: Positive = 1.0


class ModelForm(Form):
  """`num_kv_heads` is `num_heads` if left out; `head_dim` is `d_model / num_heads`, or what `latent` makes it."""

  schema_version: Version = 1
  name: Name | None = None
  num_layers: Layers
  d_model: Size
  num_heads: Size
  num_kv_heads: Size | None = None
  head_dim: Size | None = None
  num_experts: Size
  experts_per_token: Size
  d_expert: Size
  vocab_size: Size
  gated: bool = True
  activation: Activation = "silu"
  query_key_norm: QueryKeyNorm = "none"
  tied_embeddings: bool = False
  norm_topk_prob: bool = True
  rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
  norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
  max_sequence_length: Size | None = None
  aux_loss_coef: Annotated[float, Field(ge=0)] = 0.01
  norm: Norm = "rms"
  clip_qkv: Positive | None = None
  sinks: bool = False
  latent: LatentForm | None = None
  local: LocalForm | None = None
  dense: DenseForm | None = None
  shared: SharedForm | None = None
  routing: RoutingForm = RoutingForm()
  biases: BiasesForm = BiasesForm()
  rotary: RotaryForm = RotaryForm()
  multipliers: MultipliersForm = MultipliersForm()
  mtp_layers: Annotated[int, Field(ge=0, le=100)] = 0
  quantization: Name | None = None


PARTS = {
  "latent": LatentAttention, "local": LocalAttention, "dense": DenseLayers, "shared": SharedExpert,
  "routing": Routing, "biases": Biases, "rotary": Rotary, "multipliers": Multipliers,
}  # fmt: skip


def model_from(data: Mapping[str, Any], *, name: str, prefix: str = "") -> ModelConfig:
  """A model's mapping; `name` is for one that has none."""
  form = checked(ModelForm, data, prefix=prefix)
  fields = form.model_dump(exclude={"schema_version", *PARTS})
  fields |= {key: _part(part, getattr(form, key)) for key, part in PARTS.items()}
  fields["name"] = form.name or name
  fields["num_kv_heads"] = form.num_kv_heads or form.num_heads
  fields["head_dim"] = form.head_dim or _head_dim(form)
  return ModelConfig(**fields)


def whole_head_dim(d_model: int, num_heads: int) -> int:
  """K where only D and H are known."""
  if d_model % num_heads:
    raise UsageError(
      f"model.head_dim is missing, and d_model={d_model} is no multiple of num_heads={num_heads}; add it"
    )
  return d_model // num_heads


def _head_dim(form: ModelForm) -> int:
  if form.latent is not None:
    return form.latent.plain_dim + form.latent.rotary_dim
  return whole_head_dim(form.d_model, form.num_heads)


def _part(part: type, form: Form | None) -> Any:
  """The frozen part that a form spells: its lists become tuples."""
  if form is None:
    return None
  return part(**{key: tuple(value) if isinstance(value, list) else value for key, value in form.model_dump().items()})
