"""A job: what the model does with one batch, and in which precision."""

import dataclasses
from typing import Literal

from jaxmoe.meshes.errors import UsageError

Kind = Literal["train", "prefill", "decode"]
Remat = Literal["none", "full"]
Transport = Literal["capacity", "dense"]

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
  """Dtypes by name.

  Attributes:
    weights: of stored parameters, and of gradients in training.
    compute: of activations and of weights in use (cast on use); of the key-value cache.
    optimizer: of both Adam moments.
  """

  weights: str = "float32"
  compute: str = "bfloat16"
  optimizer: str = "float32"

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) not in ITEM_BYTES:
        raise UsageError(
          f"precision.{field.name} must be one of {', '.join(ITEM_BYTES)}, got {getattr(self, field.name)!r}"
        )

  @property
  def sensitive_weights(self) -> str:
    """Dtype of stored norms and routers: never 8-bit, because their rounding moves every token."""
    return self.compute if ITEM_BYTES[self.weights] == 1 else self.weights


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
  """One step on one global batch.

  Attributes:
    kind: `train` is value, gradient and optimizer update; `prefill` fills the cache from a prompt and gives
      the next token's logits; `decode` adds one token to every sequence.
    batch: sequences in the global batch.
    sequence_length: tokens of a sequence; for decode, slots of the cache, of which all but one are filled.
    microbatches: parts that a device's share of the batch goes through the pipeline in.
    remat: what backward recomputes: nothing but attention scores, or every layer.
    transport: how tokens reach their experts: fixed-capacity all-to-all, or all tokens to all experts.
    capacity_factor: expert capacity over its balanced share; tokens beyond it are dropped.
  """

  kind: Kind
  batch: int
  sequence_length: int
  microbatches: int = 1
  remat: Remat = "none"
  transport: Transport = "capacity"
  capacity_factor: float = 1.25
  precision: Precision = Precision()

  def __post_init__(self):
    for name in ("batch", "sequence_length", "microbatches"):
      if getattr(self, name) < 1:
        raise UsageError(f"job.{name} must be at least 1, got {getattr(self, name)}")
    if not self.capacity_factor > 0:
      raise UsageError(f"job.capacity_factor must be above 0, got {self.capacity_factor}; 1.0 is balanced")

  @property
  def query_length(self) -> int:
    """Tokens of each sequence that the step computes: one in decode, else all."""
    return 1 if self.kind == "decode" else self.sequence_length
