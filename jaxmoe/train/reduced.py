"""Train a reduced deployment and prove it right; run in a process with enough devices."""

import dataclasses
from collections.abc import Callable

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.reduced import with_precision
from jaxmoe.train.check import Agreement, agreement_with_reference
from jaxmoe.train.loop import train


@dataclasses.dataclass(frozen=True)
class ReducedRun:
  """Metrics of every step, and agreement with the reference by dtype."""

  history: list[dict[str, float]]
  agreement: dict[str, Agreement]


def train_and_check(deployment: Deployment, steps: int, progress: Callable[[str], None]) -> ReducedRun:
  agreement = {}
  for dtype in ("float32", "float64"):
    progress(f"comparing loss and gradients with the single-device reference in {dtype}")
    agreement[dtype] = agreement_with_reference(with_precision(deployment, dtype))
  progress(f"compiling the reduced training step for {deployment.strategy.devices} devices")
  return ReducedRun(train(deployment, steps, progress), agreement)
