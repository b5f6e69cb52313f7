"""Which deployments, of those that can be planned, can also be built and run."""

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.features import cannot_run, unusual, unusual_dtypes
from jaxmoe.config.model import ModelConfig


def check_supported(model: ModelConfig) -> None:
  """Returns quietly if `Transformer` can run the model.

  Raises:
    NotImplementedError: it has features that the runnable model lacks; the message names them all.
  """
  _refuse(f"model {model.name}", unusual(model))


def check_runnable(d: Deployment) -> None:
  """Returns quietly if the deployment's model, strategy and job can all be run.

  Raises:
    NotImplementedError: one of them has features that only planning knows; the message names them all.
  """
  check_supported(d.model)
  features = {
    "context parallelism": d.strategy.context > 1,
    "sequence parallelism": d.strategy.sequence_parallel,
    f"zero {d.job.zero}": d.job.zero,
    "stages of unequal size": d.model.num_layers % d.strategy.stage,
    f"schedule {d.job.schedule}": d.job.schedule != "gpipe",
    "selective rematerialisation": d.job.remat == "selective",
    "transport ragged": d.job.transport == "ragged",
  }
  present = [name for name, present in features.items() if present]
  _refuse(f"deployment {d.name}", [*present, *unusual_dtypes(d.job.precision)])


def _refuse(what: str, features: list[str]) -> None:
  if why := cannot_run(features):
    raise NotImplementedError(f"{what} {why}")
