"""A job: what the model does with one batch, and in which precision."""

import dataclasses
from typing import Literal

from jaxmoe.meshes.errors import UsageError

Kind = Literal["train", "prefill", "decode"]
Remat = Literal["none", "full"]
Transport = Literal["capacity", "dense", "gather"]

ExpertKernel = Literal["platform", "einsum", "cpu_tiles", "tpu", "ragged", "hopper"]

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
    transport: how tokens reach their experts: `capacity`, an all-to-all of fixed buffers; `gather`, all tokens of the
      group to each device, which multiplies only rows of its experts; `dense`, the same but every row by every expert.
    capacity_factor: expert capacity over its balanced share; tokens beyond it are dropped. Only `capacity` has it.
    expert_kernel: what multiplies rows by experts: the platform's choice, or one of jaxmoe/kernels by name; `einsum`
      serves equal groups only, those of `capacity` and `dense`.
  """

  kind: Kind
  batch: int
  sequence_length: int
  microbatches: int = 1
  remat: Remat = "none"
  transport: Transport = "capacity"
  capacity_factor: float = 1.25
  expert_kernel: ExpertKernel = "platform"
  precision: Precision = Precision()

  def __post_init__(self):
    for name in ("batch", "sequence_length", "microbatches"):
      if getattr(self, name) < 1:
        raise UsageError(f"job.{name} must be at least 1, got {getattr(self, name)}")
    if self.expert_kernel == "einsum" and self.transport == "gather":
      raise UsageError("job.expert_kernel=einsum serves equal groups, and transport=gather has none; use platform")
    if not self.capacity_factor > 0:
      raise UsageError(f"job.capacity_factor must be above 0, got {self.capacity_factor}; 1.0 is balanced")

  @property
  def query_length(self) -> int:
    """Tokens of each sequence that the step computes: one in decode, else all."""
    return 1 if self.kind == "decode" else self.sequence_length
