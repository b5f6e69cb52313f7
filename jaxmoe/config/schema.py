"""The YAML forms of clusters and deployments; `model_form` has the models', `from_forms` the way out of them.

All values are in SI base units (bytes, bytes/s, FLOP/s, seconds); `64_000_000_000` and `400e12` are readable
spellings. Keys and types are strict: an unknown key is an error, a number in quotes is text, true is not 1.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Self

from pydantic import (
  AfterValidator,
  BaseModel,
  ConfigDict,
  Field,
  StringConstraints,
  ValidationError,
  model_validator,
)

from jaxmoe.config.deployment import ExpertNumbering
from jaxmoe.config.files import closest, got
from jaxmoe.config.job import (
  ITEM_BYTES,
  WIDE_DTYPES,
  ExpertKernel,
  Kind,
  Remat,
  ScheduleName,
  Transport,
)
from jaxmoe.config.legal import MOST_LAYERS, MOST_SIZE
from jaxmoe.config.messages import usage_error


def _known_dtype(name: str) -> str:
  return _one_of(name, ITEM_BYTES)


def _wide_dtype(name: str) -> str:
  return _one_of(name, WIDE_DTYPES, "; 8 bits are for weights that are only read" if name in ITEM_BYTES else None)


def _one_of(name: str, legal: Collection[str], remedy: str | None = None) -> str:
  if name not in legal:
    hint = closest(name, legal) if remedy is None else remedy
    raise ValueError(f"expected one of {', '.join(legal)}, got {got(name)}{hint}")
  return name


def _known_version(version: int) -> int:
  if version != 1:
    raise ValueError(f"expected 1, the version of files that this jaxmoe reads, got {got(version)}")
  return version


def _one_printable_line(text: str) -> str:
  if not text.isprintable():
    raise ValueError("expected one line of printable text; remove line breaks and control characters")
  return text


def _number_or_numbers(value: Any) -> float | tuple[float, ...] | None:
  entries = value if isinstance(value, list) else [] if value is None else [value]
  if not all(type(entry) in (int, float) and abs(entry) <= 1e300 for entry in entries):
    raise ValueError(f"expected a power law's exponent, or a list of rows by expert, got {got(value)}")
  numbers = tuple(map(float, entries))
  return numbers if isinstance(value, list) else next(iter(numbers), None)


Version = Annotated[int, AfterValidator(_known_version)]
Size = Annotated[int, Field(ge=1, le=MOST_SIZE)]
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Bytes = Annotated[int, Field(ge=1, le=1 << 60)]
Rate = Annotated[float, Field(gt=0, le=1e20)]
Seconds = Annotated[float, Field(ge=0, le=1e3)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
ClaimName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=80)]
Line = Annotated[str, StringConstraints(max_length=300), AfterValidator(_one_printable_line)]
Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_one_printable_line)]
Dtype = Annotated[str, AfterValidator(_known_dtype)]
WideDtype = Annotated[str, AfterValidator(_wide_dtype)]


class Form(BaseModel):
  """A mapping with exactly these keys and types."""

  model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class TierForm(Form):
  name: Name
  devices: Size
  bandwidth_bytes_per_s: Rate
  latency_s: Seconds
  efficiency: Share = 1.0
  torus_axes: Annotated[int, Field(ge=1, le=3)] | None = None


class ClusterForm(Form):
  schema_version: Version = 1
  name: Name
  devices: Size
  devices_per_host: Size
  peak_flops_per_s: Annotated[dict[Dtype, Rate], Field(min_length=1)]
  matmul_efficiency: Share
  expert_matmul_efficiency: Share | None = None
  memory_bytes: Bytes
  memory_bandwidth_bytes_per_s: Rate
  memory_efficiency: Share
  tiers: Annotated[list[TierForm], Field(min_length=1)]
  source: Text = ""
  assumptions: dict[str, Text] = {}

  @model_validator(mode="after")
  def _assumptions_name_fields(self) -> Self:
    for key in self.assumptions:
      if key.split(".")[0] not in type(self).model_fields:
        raise ValueError(f"assumptions.{key}: no such field{closest(key, type(self).model_fields)}")
    return self


class StrategyForm(Form):
  data: Size = 1
  stage: Size = 1
  expert: Size = 1
  tensor: Size = 1
  heads_over: list[str] | None = None
  experts_over: list[str] | None = None
  context: Size = 1
  sequence_parallel: bool = False
  order: list[str] | None = None


class ParallelStrategyForm(Form):
  """A strategy by its usual short names, as `parallel_strategy:` in place of `strategy:`.

  Attributes:
    ep: devices that share the experts of a layer; those of all stages, where experts are numbered `across_stages`.
    sp: sequence parallelism, on the devices of `tp`: 1, or as many as those.
  """

  ep: Size = 1
  pp: Size = 1
  tp: Size = 1
  sp: Size = 1
  dp: Size = 1

  @model_validator(mode="after")
  def _sequences_are_sliced_over_tensor_devices(self) -> Self:
    if self.sp not in (1, self.tp):
      raise ValueError(
        f"sp={self.sp} must be 1 or tp={self.tp}: it slices activations over the devices of tp and adds none;"
        " devices of their own that share each sequence are strategy.context, in a strategy: block"
      )
    return self


class PrecisionForm(Form):
  weights: Dtype = "float32"
  compute: WideDtype = "bfloat16"
  optimizer: WideDtype = "float32"
  matmuls: Dtype | None = None
  gradients: WideDtype | None = None
  master: WideDtype | None = None


class JobForm(Form):
  kind: Kind
  batch: Size
  sequence_length: Size
  microbatches: Size = 1
  remat: Remat = "none"
  transport: Transport = "capacity"
  expert_kernel: ExpertKernel = "platform"
  schedule: ScheduleName = "gpipe"
  chunks: Annotated[int, Field(ge=1, le=64)] = 1
  zero: Annotated[int, Field(ge=0, le=3)] = 0
  capacity_factor: Annotated[float, Field(gt=0, le=1e6)] = 1.25
  precision: PrecisionForm = PrecisionForm()


class ClaimForm(Form):
  name: ClaimName
  value: float
  unit: Line
  quote: Line


class ReadingForm(Form):
  statement: Text
  reading: Text
  assumption: bool = False


class AssumptionsForm(Form):
  dispatch_overlap: Annotated[float, Field(ge=0, le=1)] = 0.0
  gradient_overlap: Annotated[float, Field(ge=0, le=1)] = 0.0
  load: Annotated[float, Field(ge=1)] = 1.0
  popularity: Annotated[Any, AfterValidator(_number_or_numbers)] = None


class DeploymentForm(Form):
  """`model` and `cluster` are a name, a path beside the file, or written out; see `catalogue`."""

  schema_version: Version
  name: Name
  title: Line
  document: Line | None = None
  model: Any
  cluster: Any
  strategy: StrategyForm | None = None
  parallel_strategy: ParallelStrategyForm | None = None
  job: JobForm
  expert_numbering: ExpertNumbering = "per_layer"
  claims: list[ClaimForm] = []
  reading: list[ReadingForm] = []
  assumptions: AssumptionsForm = AssumptionsForm()

  @model_validator(mode="after")
  def _one_strategy(self) -> Self:
    if (self.strategy is None) == (self.parallel_strategy is None):
      what = "is missing; add it" if self.strategy is None else "and parallel_strategy are both given; keep one"
      raise ValueError(f"strategy {what}" + ", or parallel_strategy: {ep, pp, tp, sp, dp}" * (self.strategy is None))
    return self

  @model_validator(mode="after")
  def _claims_have_names_of_their_own(self) -> Self:
    names = [claim.name for claim in self.claims]
    for index, name in enumerate(names):
      if name in names[:index]:
        raise ValueError(f"claims[{index}].name: {name} names another claim already; give each its own name")
    return self


def checked[F: BaseModel](form: type[F], data: Mapping[str, Any], *, prefix: str = "") -> F:
  """`data` as this form.

  Raises:
    UsageError: one sentence on the first fault.
  """
  try:
    return form.model_validate(data)
  except ValidationError as error:
    raise usage_error(error, form, prefix=prefix) from error
