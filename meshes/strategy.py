"""A parallel strategy: the size of every mesh axis, and which axes carry attention heads and experts."""

import dataclasses
import math

from jaxmoe.meshes.axes import AXES, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.errors import UsageError

HEADS_OVER = ((TENSOR,), (EXPERT,), (EXPERT, TENSOR))
EXPERTS_OVER = ((EXPERT,), (EXPERT, TENSOR))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
  """Axis sizes and folding; devices = data x stage x expert x tensor.

  Attributes:
    heads_over: axes that split attention heads. With `("expert",)` attention and experts share the same devices
      (tensor-parallel attention, expert-parallel experts), and tokens are sliced over `expert` before dispatch.
    experts_over: axes that split the experts. With `("expert",)` an expert's hidden width is split over `tensor`;
      with `("expert", "tensor")` every expert lies whole on one device.

  Raises:
    UsageError: an axis size below one, or a folding that would leave devices repeating each other's work.
  """

  data: int = 1
  stage: int = 1
  expert: int = 1
  tensor: int = 1
  heads_over: tuple[str, ...] = (TENSOR,)
  experts_over: tuple[str, ...] = (EXPERT,)

  def __post_init__(self):
    for axis in AXES:
      size = self.size(axis)
      if isinstance(size, bool) or size < 1:
        raise UsageError(
          f"strategy.{axis} must be a whole number of at least 1, got {size!r}; use 1 to leave the axis out"
        )
    if self.heads_over not in HEADS_OVER:
      raise UsageError(f"strategy.heads_over must be one of {_choices(HEADS_OVER)}, got {list(self.heads_over)}")
    if self.experts_over not in EXPERTS_OVER:
      raise UsageError(f"strategy.experts_over must be one of {_choices(EXPERTS_OVER)}, got {list(self.experts_over)}")
    if TENSOR not in self.heads_over and self.tensor > 1:
      raise UsageError(
        f"strategy.heads_over=[expert] leaves attention repeated on {self.tensor} tensor devices;"
        " use heads_over: [expert, tensor], or tensor: 1"
      )

  def size(self, *axes: str) -> int:
    """Devices along these axes together."""
    return math.prod(getattr(self, axis) for axis in axes)

  @property
  def devices(self) -> int:
    return self.size(*AXES)

  @property
  def product(self) -> str:
    """The device count written out, `4 data x 4 stage x 4 expert x 8 tensor = 512 devices`."""
    return " x ".join(f"{self.size(axis)} {axis}" for axis in AXES) + f" = {self.devices} devices"

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """Axes that split the batch: data, and expert unless it carries heads."""
    return (DATA,) if EXPERT in self.heads_over else (DATA, EXPERT)

  @property
  def width_axes(self) -> tuple[str, ...]:
    """Axes that split an expert's hidden width."""
    return () if TENSOR in self.experts_over else (TENSOR,)

  @property
  def slice_axes(self) -> tuple[str, ...]:
    """Axes over which tokens, equal on all of them after attention, are sliced before dispatch."""
    return tuple(axis for axis in self.experts_over if axis not in self.batch_axes)

  @property
  def vocabulary_axes(self) -> tuple[str, ...]:
    """Axes that split the vocabulary of embedding and head: all that see the same tokens."""
    return (STAGE, *self.heads_over)


def _choices(options: tuple[tuple[str, ...], ...]) -> str:
  return " or ".join("[" + ", ".join(option) + "]" for option in options)
