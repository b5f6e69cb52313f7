"""What a prediction of time takes for granted, stated once and shown with the answer."""

import dataclasses
import math

from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
  """Shares in [0, 1], and a factor; the defaults hide nothing, which bounds a step's time from above.

  Attributes:
    dispatch_overlap: of the exchange of tokens with experts, hidden behind the same pass as far as its matmuls last.
    gradient_overlap: of the gradients' sum, hidden behind the last microbatch's backward as far as it lasts.
    load: rows of the busiest device's experts over the mean of all devices; at most as many as share the experts.
    popularity: how tokens choose experts, which gives the load of each way to deal them out: a power law's exponent, or
      rows by expert, measured. Where it is given, `load` is not read.
  """

  dispatch_overlap: float = 0.0
  gradient_overlap: float = 0.0
  load: float = 1.0
  popularity: float | tuple[float, ...] | None = None

  def __post_init__(self):
    for name in ("dispatch_overlap", "gradient_overlap"):
      if not 0 <= getattr(self, name) <= 1:
        raise UsageError(f"assumptions.{name} must lie in [0, 1], got {getattr(self, name)}")
    self._check_popularity()
    if not self.load >= 1:
      raise UsageError(f"assumptions.load must be at least 1, which is balanced, got {self.load}")

  def _check_popularity(self):
    match self.popularity:
      case float() if not 1 < self.popularity < math.inf:
        raise UsageError(
          f"assumptions.popularity, a power law's exponent, must be above 1 and finite, got {self.popularity}"
        )
      case tuple() if not all(0 <= rows < math.inf for rows in self.popularity) or not any(self.popularity):
        raise UsageError("assumptions.popularity, rows by expert, must be 0 or more and not all 0")
      case _:
        pass

  def check_experts(self, num_experts: int) -> None:
    """That they can be of a model with as many experts.

    Raises:
      UsageError: other than one number of rows for each expert, or more rows at one device than there are.
    """
    if isinstance(self.popularity, tuple) and len(self.popularity) != num_experts:
      raise UsageError(
        f"assumptions.popularity must have rows of each of the model's {num_experts} experts,"
        f" got {len(self.popularity)}"
      )
    if not self.load <= num_experts:
      raise UsageError(
        f"assumptions.load must be at most {num_experts}, all rows at one expert's device, got {self.load}"
      )


NOTHING_HIDDEN = Assumptions()
"""Messages wait for matmuls and matmuls for messages; every device gets as many rows."""
