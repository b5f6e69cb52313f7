"""The YAML forms of clusters and deployments, and their way into the frozen dataclasses; `model_form` has the models'.

All values are in SI base units (bytes, bytes/s, FLOP/s, seconds); `64_000_000_000` and `400e12` are readable
spellings. Keys and types are strict: an unknown key is an error, a number in quotes is text, true is not 1.
"""

from collections.abc import Mapping
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

from jaxmoe.config.deployment import Claim, Deployment, ExpertNumbering, Reading
from jaxmoe.config.files import closest, got
from jaxmoe.config.job import ITEM_BYTES, ExpertKernel, Job, Kind, Precision, Remat, Transport
from jaxmoe.config.messages import usage_error
from jaxmoe.config.model import ModelConfig
from jaxmoe.meshes.cluster import Cluster, NetworkTier
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy


def _known_dtype(name: str) -> str:
  if name not in ITEM_BYTES:
    raise ValueError(f"expected one of {', '.join(ITEM_BYTES)}, got {got(name)}{closest(name, ITEM_BYTES)}")
  return name


def _known_version(version: int) -> int:
  if version != 1:
    raise ValueError(f"expected 1, the version of files that this jaxmoe reads, got {version}")
  return version


def _one_printable_line(text: str) -> str:
  if not text.isprintable():
    raise ValueError("expected one line of printable text; remove line breaks and control characters")
  return text


Version = Annotated[int, AfterValidator(_known_version)]
Size = Annotated[int, Field(ge=1, le=1 << 24)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Bytes = Annotated[int, Field(ge=1, le=1 << 60)]
Rate = Annotated[float, Field(gt=0, le=1e20)]
Seconds = Annotated[float, Field(ge=0, le=1e3)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
ClaimName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=80)]
Line = Annotated[str, StringConstraints(max_length=300), AfterValidator(_one_printable_line)]
Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_one_printable_line)]
Dtype = Annotated[str, AfterValidator(_known_dtype)]


class Form(BaseModel):
  """A mapping with exactly these keys and types."""

  model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TierForm(Form):
  name: Name
  devices: Size
  bandwidth_bytes_per_s: Rate
  latency_s: Seconds


class ClusterForm(Form):
  schema_version: Version = 1
  name: Name
  devices: Size
  devices_per_host: Size
  peak_flops_per_s: Annotated[dict[Dtype, Rate], Field(min_length=1)]
  matmul_efficiency: Share
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


class PrecisionForm(Form):
  weights: Dtype = "float32"
  compute: Dtype = "bfloat16"
  optimizer: Dtype = "float32"


class JobForm(Form):
  kind: Kind
  batch: Size
  sequence_length: Size
  microbatches: Size = 1
  remat: Remat = "none"
  transport: Transport = "capacity"
  expert_kernel: ExpertKernel = "platform"
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


class DeploymentForm(Form):
  """`model` and `cluster` are a name, a path beside the file, or written out; see `catalogue`."""

  schema_version: Version
  name: Name
  title: Line
  document: Line | None = None
  model: Any
  cluster: Any
  strategy: StrategyForm
  job: JobForm
  expert_numbering: ExpertNumbering = "per_layer"
  claims: list[ClaimForm] = []
  reading: list[ReadingForm] = []

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


def cluster_from(data: Mapping[str, Any], *, prefix: str = "") -> Cluster:
  form = checked(ClusterForm, data, prefix=prefix)
  tiers = tuple(NetworkTier(**tier.model_dump()) for tier in form.tiers)
  return Cluster(**form.model_dump(exclude={"schema_version", "tiers"}), tiers=tiers)


def deployment_from(form: DeploymentForm, *, model: ModelConfig, cluster: Cluster) -> Deployment:
  """The deployment once its model and cluster are known."""
  compute = form.job.precision.compute
  if compute not in cluster.peak_flops_per_s:
    raise UsageError(
      f"job.precision.compute: expected one of {', '.join(cluster.peak_flops_per_s)},"
      f" which cluster {cluster.name} has a peak for, got {got(compute)}"
    )
  return Deployment(
    **form.model_dump(include={"name", "title", "document", "expert_numbering"}),
    model=model,
    cluster=cluster,
    strategy=_strategy(form.strategy),
    job=_job(form.job),
    claims=tuple(Claim(**claim.model_dump()) for claim in form.claims),
    readings=tuple(Reading(**reading.model_dump()) for reading in form.reading),
  )


def _strategy(form: StrategyForm) -> Strategy:
  over = form.model_dump(include={"heads_over", "experts_over"}, exclude_none=True)
  fields: dict[str, Any] = {key: tuple(axes) for key, axes in over.items()}
  return Strategy(**form.model_dump(exclude={"heads_over", "experts_over"}), **fields)


def _job(form: JobForm) -> Job:
  return Job(**form.model_dump(exclude={"precision"}), precision=Precision(**form.precision.model_dump()))
