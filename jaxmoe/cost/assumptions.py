"""What a prediction of time takes for granted, stated once and shown with the answer."""

import dataclasses

from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
  """Shares in [0, 1], and a factor; the defaults hide nothing, which bounds a step's time from above.

  Attributes:
    dispatch_overlap: of the exchange of tokens with experts, hidden behind the same pass as far as its matmuls last.
    gradient_overlap: of the gradients' sum, hidden behind the last microbatch's backward as far as it lasts.
    load: rows of the busiest device's experts over the mean of all devices.
  """

  dispatch_overlap: float = 0.0
  gradient_overlap: float = 0.0
  load: float = 1.0

  def __post_init__(self):
    for name in ("dispatch_overlap", "gradient_overlap"):
      if not 0 <= getattr(self, name) <= 1:
        raise UsageError(f"assumptions.{name} must lie in [0, 1], got {getattr(self, name)}")
    if not self.load >= 1:
      raise UsageError(f"assumptions.load must be at least 1, which is balanced, got {self.load}")


NOTHING_HIDDEN = Assumptions()
"""Messages wait for matmuls and matmuls for messages; every device gets as many rows."""
