"""A parallel strategy: the size of every mesh axis, and which axes carry attention heads and experts."""

import dataclasses
import math

from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.errors import UsageError

HEADS_OVER = ((TENSOR,), (EXPERT,), (EXPERT, TENSOR))
EXPERTS_OVER = ((EXPERT,), (EXPERT, TENSOR))


class Folding:
  """What follows from the sizes and the folding of a strategy, or of arrays of strategies that fold alike."""

  data: int
  stage: int
  expert: int
  tensor: int
  heads_over: tuple[str, ...]
  experts_over: tuple[str, ...]
  context: int
  sequence_parallel: bool
  order: tuple[str, ...]

  __slots__ = ()

  def size(self, *axes: str) -> int:
    """Devices along these axes together."""
    return math.prod(getattr(self, axis) for axis in axes)

  @property
  def devices(self) -> int:
    return self.size(*AXES)

  def stride(self, axis: str) -> int:
    """Ranks from one device to its neighbour along this axis."""
    place = self.order.index(DATA if axis == CONTEXT else axis)
    return self.size(*self.order[place + 1 :])

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """Axes that split the batch: data, and expert unless it carries heads."""
    return (DATA,) if EXPERT in self.heads_over else (DATA, EXPERT)

  @property
  def width_axes(self) -> tuple[str, ...]:
    """Axes that split an expert's hidden width."""
    return () if TENSOR in self.experts_over else (TENSOR,)

  @property
  def batch_shards(self) -> int:
    """Parts that the batch is split into: devices that share a sequence count once."""
    return self.size(*self.batch_axes) // self.context

  @property
  def slice_axes(self) -> tuple[str, ...]:
    """Axes over which tokens, equal on all of them after attention, are sliced before dispatch."""
    return tuple(axis for axis in self.experts_over if axis not in self.batch_axes)

  @property
  def token_axes(self) -> tuple[str, ...]:
    """Axes over which devices hold different tokens between layers."""
    return (*self.batch_axes, *self.slice_axes)

  @property
  def sequence_axes(self) -> tuple[str, ...]:
    """Axes that sequence parallelism alone slices the residual stream over: tokens are equal on them throughout."""
    return (TENSOR,) if TENSOR in self.heads_over and TENSOR not in self.slice_axes else ()

  @property
  def vocabulary_axes(self) -> tuple[str, ...]:
    """Axes that split the vocabulary of embedding and head: all that see the same tokens."""
    return (STAGE, *self.heads_over)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Strategy(Folding):
  """Axis sizes and folding; devices = data x stage x expert x tensor.

  Attributes:
    heads_over: axes that split attention heads. With `("expert",)` attention and experts share the same devices
      (tensor-parallel attention, expert-parallel experts), and tokens are sliced over `expert` before dispatch.
    experts_over: axes that split the experts. With `("expert",)` an expert's hidden width is split over `tensor`;
      with `("expert", "tensor")` every expert lies whole on one device.
    context: neighbours along `data` that share each sequence, every one with its part of the tokens.
    sequence_parallel: the residual stream is sliced over `tensor` where attention and experts do not need it whole.
    order: axes from the outermost to the innermost in rank order; neighbours along the last are neighbouring ranks.

  Raises:
    UsageError: an axis size below one, or a folding that would leave devices repeating each other's work.
  """

  data: int = 1
  stage: int = 1
  expert: int = 1
  tensor: int = 1
  heads_over: tuple[str, ...] = (TENSOR,)
  experts_over: tuple[str, ...] = (EXPERT,)
  context: int = 1
  sequence_parallel: bool = False
  order: tuple[str, ...] = AXES

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
    if self.context < 1 or self.data % self.context:
      raise UsageError(f"strategy.context must divide strategy.data={self.data}, got {self.context}; use 1 for none")
    if sorted(self.order) != sorted(AXES):
      raise UsageError(f"strategy.order must name each of {', '.join(AXES)} once, got {list(self.order)}")
    if TENSOR not in self.heads_over and self.tensor > 1:
      raise UsageError(
        f"strategy.heads_over=[expert] leaves attention repeated on {self.tensor} tensor devices;"
        " use heads_over: [expert, tensor], or tensor: 1"
      )

  @property
  def product(self) -> str:
    """The device count written out, `4 data x 4 stage x 4 expert x 8 tensor = 512 devices`."""
    devices = f"{self.devices} device" + "s" * (self.devices > 1)
    return " x ".join(f"{self.size(axis)} {axis}" for axis in AXES) + f" = {devices}"


def _choices(options: tuple[tuple[str, ...], ...]) -> str:
  return " or ".join("[" + ", ".join(option) + "]" for option in options)
