"""What the search may choose from."""

import dataclasses

from jaxmoe.config.job import Kind, Remat, Transport
from jaxmoe.meshes.axes import AXES, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.strategy import EXPERTS_OVER, HEADS_OVER

# Ranks of neighbouring stages far apart, or replicas far apart: either may be what a slow network needs.
ORDERS = (AXES, (STAGE, DATA, EXPERT, TENSOR))
# A decoded token's sums are all latency, and are not worth the fast network that its exchange with experts needs.
DECODE_ORDERS = (*ORDERS, (DATA, STAGE, TENSOR, EXPERT))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Space:
  """Choices beside the sizes of axes and of microbatches, which are all that divide.

  Attributes:
    schedules: (name, chunks). All of training but gpipe, and but dualpipe, which would make a search 1.4 times as long.
    largest_context: most devices that may share a sequence.
    sequence_parallel: settings to try. It moves as many bytes and keeps fewer, so that large steps always want it; a
      decoded token is so little that two messages in the place of one cost more than they save.
    equal_stages: whether layers have to divide over stages.
  """

  heads_over: tuple[tuple[str, ...], ...] = HEADS_OVER
  experts_over: tuple[tuple[str, ...], ...] = EXPERTS_OVER
  orders: tuple[tuple[str, ...], ...] = ORDERS
  transports: tuple[Transport, ...] = ("ragged", "gather")
  schedules: tuple[tuple[str, int], ...] = (("1f1b", 1), ("interleaved", 2), ("interleaved", 4), ("zero_bubble", 1))
  remats: tuple[Remat, ...] = ("none", "selective", "full")
  zeros: tuple[int, ...] = (0, 1, 2, 3)
  largest_context: int = 8
  sequence_parallel: tuple[bool, ...] = (True,)
  equal_stages: bool = False

  @property
  def choices(self) -> int:
    """Plans of one row: schedules x rematerialisations x levels of zero."""
    return len(self.schedules) * len(self.remats) * len(self.zeros)


def whole_space(kind: Kind) -> Space:
  """All that can be priced for this kind of job."""
  if kind == "train":
    return Space()
  serving = Space(schedules=(("gpipe", 1),), remats=("none",), zeros=(0,))
  if kind == "prefill":
    return serving
  return dataclasses.replace(serving, orders=DECODE_ORDERS, largest_context=1, sequence_parallel=(False, True))


def runnable_space(kind: Kind) -> Space:
  """What the model of this package runs, and `verify` compiles."""
  return Space(
    transports=("capacity", "gather"),
    schedules=(("gpipe", 1),),
    remats=("none", "full") if kind == "train" else ("none",),
    zeros=(0,),
    largest_context=1,
    sequence_parallel=(False,),
    equal_stages=True,
  )
