"""Plans that no other beats in both of two numbers, and the best plan of every size of an axis, in a whole search."""

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxmoe.cost.estimate import Estimate, estimate
from jaxmoe.meshes.axes import AXES, CONTEXT
from jaxmoe.planner.candidate import Block, Candidate, rank
from jaxmoe.planner.question import Question
from jaxmoe.planner.rows import BATCH

type Points = NDArray[Any]


def front(first: Points, second: Points) -> Points:
  """Places of the points that no other is at most equal to in both numbers; of equal points the earliest one.

  In rising order of the first number, and so in falling order of the second.
  """
  order = np.lexsort((second, first))
  ordered = second[order]
  least_before = np.concatenate(([np.inf], np.minimum.accumulate(ordered)[:-1]))
  return order[ordered < least_before]


class Objectives(Protocol):
  """The two numbers of plans that are to be small, from devices, tokens of a step, seconds and bytes."""

  def __call__(self, devices: int, tokens: Any, step_s: Any, memory_bytes: Any) -> tuple[Any, Any]: ...


def training(devices: int, tokens: Any, step_s: Any, memory_bytes: Any) -> tuple[Any, Any]:
  """Time of a step and bytes of a device."""
  return step_s, memory_bytes


def serving(devices: int, tokens: Any, step_s: Any, memory_bytes: Any) -> tuple[Any, Any]:
  """Latency, and device-seconds a token: the inverse of tokens a second and device."""
  return step_s, step_s * devices / tokens


@dataclasses.dataclass(slots=True)
class Explored:
  """What a search passes by; give its `see` to `search`.

  Attributes:
    found: plans of the front so far.
    by_size: (axis, its size) -> the best plan that has it.
  """

  question: Question
  found: list[Candidate] = dataclasses.field(default_factory=list[Candidate])
  by_size: dict[tuple[str, int], Candidate] = dataclasses.field(default_factory=dict[tuple[str, int], Candidate])

  def objectives_of(self, e: Estimate) -> tuple[float, float]:
    """The front's two numbers, both to be small."""
    d = e.deployment
    first, second = self._of_kind(d.strategy.devices, self._tokens(d.job.batch), e.time.total_s, e.memory.total)
    return float(first), float(second)

  def objectives(self, c: Candidate) -> tuple[float, float]:
    numbers = self._of_kind(c.devices, self._tokens(c.sizes[BATCH]), c.step_s, c.memory_bytes)
    return float(numbers[0]), float(numbers[1])

  def estimate(self, c: Candidate) -> Estimate:
    """All numbers of one of its plans."""
    return estimate(c.deployment(self.question), self.question.assumptions)

  def see(self, block: Block, used: Points, step_s: Points) -> None:
    """Takes in a block of plans; those that break a limit take infinitely long."""
    places = np.flatnonzero(np.isfinite(step_s))
    if len(places):
      self._add_to_front(block, used, step_s, places)
      self._add_to_sizes(block, used, step_s)

  def _of_kind(self, devices: int, tokens: Any, step_s: Any, memory_bytes: Any) -> tuple[Any, Any]:
    objectives: Objectives = training if self.question.job.kind == "train" else serving
    return objectives(devices, tokens, step_s, memory_bytes)

  def _tokens(self, batch: Any) -> Any:
    return batch * self.question.job.query_length

  def _add_to_front(self, block: Block, used: Points, step_s: Points, places: Points) -> None:
    rows = np.unravel_index(places, step_s.shape)[0]
    tokens = self._tokens(block.columns[BATCH][rows])
    numbers = self._of_kind(block.devices, tokens, step_s.ravel()[places], used.ravel()[places])
    new = [block.candidate(int(places[at]), used, step_s) for at in front(*numbers)]
    both = [*self.found, *new]
    points = np.array([self.objectives(c) for c in both])
    self.found = [both[at] for at in front(points[:, 0], points[:, 1])]

  def _add_to_sizes(self, block: Block, used: Points, step_s: Points) -> None:
    """The best of each row, then of the rows of each size."""
    flat = step_s.reshape(len(step_s), -1)
    best_of_row = flat.argmin(axis=1)
    row_s = flat[np.arange(len(flat)), best_of_row]
    order = np.lexsort((row_s, rank(self.question, block.devices, block.columns[BATCH], row_s)))
    for axis in (*AXES, CONTEXT):
      sizes = block.columns[axis][order]
      for size in np.unique(sizes):
        row = int(order[(sizes == size).argmax()])
        if np.isfinite(row_s[row]):
          place = row * flat.shape[1] + int(best_of_row[row])
          self._keep(axis, int(size), block.candidate(place, used, step_s))

  def _keep(self, axis: str, size: int, new: Candidate) -> None:
    key = (axis, size)
    if key not in self.by_size or new < self.by_size[key]:
      self.by_size[key] = new
