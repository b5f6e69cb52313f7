"""Clusters and deployments out of their YAML forms."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.deployment import Claim, Deployment, Reading
from jaxmoe.config.files import got
from jaxmoe.config.job import ITEM_BYTES, WIDE_DTYPES, Job, Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.schema import ClusterForm, DeploymentForm, JobForm, ParallelStrategyForm, StrategyForm, checked
from jaxmoe.meshes.cluster import Cluster, NetworkTier
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy


def cluster_from(data: Mapping[str, Any], *, prefix: str = "") -> Cluster:
  form = checked(ClusterForm, data, prefix=prefix)
  tiers = tuple(NetworkTier(**tier.model_dump()) for tier in form.tiers)
  return Cluster(**form.model_dump(exclude={"schema_version", "tiers"}), tiers=tiers)


def _check_peak(field: str, dtype: str, legal: Collection[str], cluster: Cluster) -> None:
  """That the cluster says how fast it multiplies in this dtype."""
  peaks = [stated for stated in cluster.peak_flops_per_s if stated in legal]
  if dtype in peaks:
    return
  stated = f"which cluster {cluster.name} has a peak for, got {got(dtype)}"
  if not peaks:
    raise UsageError(f"job.precision.{field}: expected a dtype {stated}; add its peak to cluster.peak_flops_per_s")
  raise UsageError(f"job.precision.{field}: expected one of {', '.join(peaks)}, {stated}")


def deployment_from(form: DeploymentForm, *, model: ModelConfig, cluster: Cluster) -> Deployment:
  """The deployment once its model and cluster are known."""
  precision = form.job.precision
  _check_peak("compute", precision.compute, WIDE_DTYPES, cluster)
  if precision.matmuls is not None:
    _check_peak("matmuls", precision.matmuls, ITEM_BYTES, cluster)
  strategy, job = _strategy_of(form), _job(form.job)
  assumptions = Assumptions(**form.assumptions.model_dump())
  try:
    return Deployment(
      **form.model_dump(include={"name", "title", "document", "expert_numbering"}),
      model=model,
      cluster=cluster,
      strategy=strategy,
      job=job,
      claims=tuple(Claim(**claim.model_dump()) for claim in form.claims),
      readings=tuple(Reading(**reading.model_dump()) for reading in form.reading),
      assumptions=assumptions,
    )
  except UsageError as error:
    if form.parallel_strategy is None:
      raise
    raise UsageError(f"{error} (parallel_strategy was read as {strategy.product})") from error


def _strategy_of(form: DeploymentForm) -> Strategy:
  """The strategy in either spelling."""
  if form.strategy is not None:
    return _strategy(form.strategy)
  assert form.parallel_strategy is not None
  return _parallel_strategy(form.parallel_strategy, across_stages=form.expert_numbering == "across_stages")


def _parallel_strategy(form: ParallelStrategyForm, *, across_stages: bool) -> Strategy:
  """`ep` counts the devices of one stage, or where experts are numbered on through the stages those of all."""
  stages = form.pp if across_stages else 1
  if form.ep % stages:
    raise UsageError(
      f"parallel_strategy.ep={form.ep} must be a multiple of pp={form.pp}, for with expert_numbering: across_stages it"
      f" counts the devices of all stages; the nearest legal ep is {max(1, round(form.ep / stages)) * stages}"
    )
  return Strategy(data=form.dp, stage=form.pp, expert=form.ep // stages, tensor=form.tp, sequence_parallel=form.sp > 1)


def _strategy(form: StrategyForm) -> Strategy:
  lists = {"heads_over", "experts_over", "order"}
  fields: dict[str, Any] = {k: tuple(axes) for k, axes in form.model_dump(include=lists, exclude_none=True).items()}
  return Strategy(**form.model_dump(exclude=lists), **fields)


def _job(form: JobForm) -> Job:
  weights = form.precision.weights
  if form.kind == "train" and weights not in WIDE_DTYPES:
    raise UsageError(
      f"job.precision.weights: expected one of {', '.join(WIDE_DTYPES)} in a train job, got {got(weights)};"
      " 8 bits are for weights that are only read, in prefill and decode"
    )
  return Job(**form.model_dump(exclude={"precision"}), precision=Precision(**form.precision.model_dump()))
