"""A job: what the model does with one batch, and in which precision."""

import dataclasses
import math
from typing import Literal

from jaxmoe.meshes.errors import UsageError

Kind = Literal["train", "prefill", "decode"]
Remat = Literal["none", "selective", "full"]
Transport = Literal["capacity", "dense", "gather", "ragged"]
ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "dualpipe"]

ExpertKernel = Literal["platform", "einsum", "cpu_tiles", "tpu", "ragged", "hopper"]

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
# Weights that are only read may be stored in 8 bits; nothing is computed or updated in them.
WIDE_DTYPES = tuple(name for name, size in ITEM_BYTES.items() if size > 1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
  """Dtypes by name.

  Attributes:
    weights: of stored parameters, and of gradients in training.
    compute: of activations and of weights in use (cast on use); of the key-value cache.
    optimizer: of both Adam moments.
    gradients: of gradients as they are summed up; None, as weights.
    matmuls: of tokens and weights as they are multiplied; None, as compute. Attention's scores stay in `compute`.
    master: of a second copy of the weights that the optimizer keeps; None for no copy.
  """

  weights: str = "float32"
  compute: str = "bfloat16"
  optimizer: str = "float32"
  matmuls: str | None = None
  gradients: str | None = None
  master: str | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      dtype = getattr(self, field.name)
      legal = ITEM_BYTES if field.name in ("weights", "matmuls") else WIDE_DTYPES
      if dtype not in legal and (dtype is not None or field.default is not None):
        raise UsageError(f"job.precision.{field.name} must be one of {', '.join(legal)}, got {dtype!r}")

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
    remat: what backward recomputes: nothing but attention scores; also the experts' hidden rows; or every layer.
    transport: how tokens reach their experts: `capacity`, an all-to-all of fixed buffers; `gather`, all tokens of the
      group to each device, which multiplies only rows of its experts; `dense`, the same but every row by every expert;
      `ragged`, an all-to-all of as many rows as are chosen, a token sent once to each block of the network it visits.
    capacity_factor: expert capacity over its balanced share; tokens beyond it are dropped. Only `capacity` has it.
    expert_kernel: what multiplies rows by experts: the platform's choice, or one of jaxmoe/kernels by name; `einsum`
      serves equal groups only, those of `capacity` and `dense`.
    schedule: order of the pipeline's forwards and backwards (jaxmoe/pipeline/schedule_makers.py).
    chunks: chunks of layers that each stage holds, `interleaved` only.
    zero: what replicas split among them: 0 nothing, 1 the optimizer's state, 2 also gradients, 3 also weights.
  """

  kind: Kind
  batch: int
  sequence_length: int
  microbatches: int = 1
  remat: Remat = "none"
  transport: Transport = "capacity"
  capacity_factor: float = 1.25
  expert_kernel: ExpertKernel = "platform"
  schedule: ScheduleName = "gpipe"
  chunks: int = 1
  zero: int = 0
  precision: Precision = Precision()

  def __post_init__(self):
    for name in ("batch", "sequence_length", "microbatches"):
      if getattr(self, name) < 1:
        raise UsageError(f"job.{name} must be at least 1, got {getattr(self, name)}")
    if self.expert_kernel == "einsum" and self.transport == "gather":
      raise UsageError("job.expert_kernel=einsum serves equal groups, and transport=gather has none; use platform")
    self._check_pipeline()
    if not 0 < self.capacity_factor < math.inf:
      raise UsageError(f"job.capacity_factor must be above 0 and finite, got {self.capacity_factor}; 1.0 is balanced")

  def _check_pipeline(self):
    if self.chunks < 1 or (self.chunks > 1) != (self.schedule == "interleaved"):
      raise UsageError(
        f"job.chunks must be 1, or above 1 with schedule interleaved, got {self.chunks} with {self.schedule}"
      )
    if self.zero not in (0, 1, 2, 3):
      raise UsageError(f"job.zero must be 0, 1, 2 or 3, got {self.zero}")
    if self.kind != "train" and (self.zero or self.schedule != "gpipe"):
      raise UsageError(f"job.zero and job.schedule belong to training; leave them out of a {self.kind} job")

  @property
  def query_length(self) -> int:
    """Tokens of each sequence that the step computes: one in decode, else all."""
    return 1 if self.kind == "decode" else self.sequence_length
