"""How many layers of each kind the heaviest pipeline stage has."""

import dataclasses
from typing import Any

from jaxmoe.config.arrays import ceil_div, least, most
from jaxmoe.config.shares import Shares


@dataclasses.dataclass(frozen=True, slots=True)
class StageLayers:
  """Layers of one stage.

  Attributes:
    experts: layers with routed experts, those that predict further tokens among them where stages are several.
    dense: layers without.
    prediction: layers that predict further tokens, of a model in one stage.
  """

  experts: Any
  dense: Any
  prediction: Any

  @property
  def all(self) -> Any:
    return self.experts + self.dense + self.prediction

  @property
  def routed(self) -> Any:
    """Layers with routed experts, wherever they stand."""
    return self.experts + self.prediction

  def of(self, stack: str) -> Any:
    """Layers that have the tensors of a `parameters.Stack`."""
    counts = {"none": 1, "all": self.experts + self.dense, "expert": self.experts, "dense": self.dense}
    return {**counts, "prediction": self.prediction}[stack]


def stage_layers(d: Shares) -> tuple[StageLayers, ...]:
  """The heaviest stage: ceil(layers / stages), with the fewest and with the most dense layers that it can have.

  Either may be the heavier one, so both are given where they differ. Layers that predict further tokens are dealt out
  with the others.
  """
  m, stages = d.model, d.strategy.stage
  predicting = m.mtp_layers if d.train else 0
  single = (stages == 1) * 1
  layers = ceil_div(m.num_layers + predicting * (1 - single), stages)
  fewest = most(layers - m.expert_layers - predicting * (1 - single), 0 * layers)
  mixes = (fewest, least(layers, m.dense_layers)) if m.dense_layers else (fewest,)
  return tuple(StageLayers(layers - dense, dense, predicting * single) for dense in mixes)
