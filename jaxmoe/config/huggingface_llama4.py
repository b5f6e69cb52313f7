"""Llama 4: layers without positions, attention in chunks, dense layers between sparse ones."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from jaxmoe.config.files import got
from jaxmoe.config.huggingface_base import LOCAL_EXPERTS, Count, DecoderConfig, dense_part, experts_named
from jaxmoe.config.model import QueryKeyNorm
from jaxmoe.config.parts import DenseLayers, Rotary, Routing, SharedExpert
from jaxmoe.config.schema import Size


class Llama4(DecoderConfig):
  """Experts and the shared one are as wide as `intermediate_size`, dense layers as `intermediate_size_mlp`."""

  default_rope_theta: ClassVar[float] = 500_000.0
  may_have_attention_bias: ClassVar[bool] = True

  num_key_value_heads: Size | None = 8
  intermediate_size: Size
  num_experts: Annotated[Size, experts_named(*LOCAL_EXPERTS)]
  intermediate_size_mlp: Size = 16384
  head_dim: Size | None = 128
  num_experts_per_tok: Size = 1
  moe_layers: list[Count] | None = None
  interleave_moe_layer_step: Size = 1
  use_qk_norm: bool = True
  no_rope_layers: list[int] | None = None
  no_rope_layer_interval: Size = 4
  attention_chunk_size: Size | None = 8192
  attn_temperature_tuning: bool | int = True

  @property
  def d_expert(self) -> int:
    return self.intermediate_size

  @property
  def query_key_norm(self) -> QueryKeyNorm:
    return "unit" if self.use_qk_norm else "none"

  @property
  def normalises_topk(self) -> bool:
    return False

  @property
  def window(self) -> int | None:
    return self.attention_chunk_size

  def kinds_of_layers(self) -> list[str]:
    if self.layer_types is not None:
      return self.layer_types
    skipped = self._without_positions()
    near = "full_attention" if self.window is None else "chunked_attention"
    return ["full_attention" if layer in skipped else near for layer in range(self.num_hidden_layers)]

  def _without_positions(self) -> tuple[int, ...]:
    """The file's 0 entries, or else every fourth layer."""
    if self.no_rope_layers:
      return tuple(layer for layer, turns in enumerate(self.no_rope_layers) if not turns)
    step = self.no_rope_layer_interval
    return tuple(range(step - 1, self.num_hidden_layers, step))

  @property
  def dense(self) -> DenseLayers | None:
    step = self.interleave_moe_layer_step
    sparse = range(step - 1, self.num_hidden_layers, step) if self.moe_layers is None else self.moe_layers
    return dense_part([n for n in range(self.num_hidden_layers) if n not in sparse], self.intermediate_size_mlp)

  @property
  def shared(self) -> SharedExpert:
    return SharedExpert(d_hidden=self.intermediate_size)

  @property
  def routing(self) -> Routing:
    return Routing(score="sigmoid", scales_input=True)

  @property
  def rotary(self) -> Rotary:
    plain = super().rotary
    return Rotary(
      scaling=plain.scaling, share=plain.share, skipped_layers=self._without_positions(),
      tempered=bool(self.attn_temperature_tuning),
    )  # fmt: skip

  def refusals(self) -> Iterator[str]:
    yield from super().refusals()
    if self.no_rope_layers and len(self.no_rope_layers) != self.num_hidden_layers:
      yield f"no_rope_layers: expected {self.num_hidden_layers} entries, got {len(self.no_rope_layers)}"
    beyond = [layer for layer in self.moe_layers or () if layer >= self.num_hidden_layers]
    if beyond:
      yield f"moe_layers: expected layers below {self.num_hidden_layers}, got {got(beyond[0])}"
