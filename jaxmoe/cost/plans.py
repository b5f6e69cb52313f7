"""Many plans at once: what `Deployment` is for one, with arrays for numbers. The same formulas take both."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmoe.config.job import Job
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.shares import Shares
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.strategy import Folding

type Column = NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StrategyColumns(Folding):
  """Strategies that fold alike; sizes are columns. `Strategy` says what the fields mean and what is legal."""

  data: Column  # pyright: ignore[reportIncompatibleVariableOverride]
  stage: Column  # pyright: ignore[reportIncompatibleVariableOverride]
  expert: Column  # pyright: ignore[reportIncompatibleVariableOverride]
  tensor: Column  # pyright: ignore[reportIncompatibleVariableOverride]
  context: Column  # pyright: ignore[reportIncompatibleVariableOverride]
  heads_over: tuple[str, ...]
  experts_over: tuple[str, ...]
  sequence_parallel: bool = False
  order: tuple[str, ...] = AXES
  _sizes: dict[tuple[str, ...], Any] = dataclasses.field(init=False, default_factory=dict[tuple[str, ...], Any])

  def size(self, *axes: str) -> Any:
    """As of one strategy; each product is worked out once."""
    if axes not in self._sizes:
      self._sizes[axes] = math.prod(getattr(self, axis) for axis in axes)
    return self._sizes[axes]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plans(Shares):
  """Every combination of a row (strategy, batch and microbatches), a schedule, a rematerialisation and a level of zero.

  Columns have four dimensions in this order and broadcast: (rows, 1, 1, 1) for what belongs to a row.

  Attributes:
    schedules: (name, chunks) of each place along the second dimension.
    executes_idle: along the second; recomputed, hidden_recomputed: along the third; zero: along the fourth.
  """

  model: ModelConfig
  cluster: Cluster
  job: Job
  strategy: StrategyColumns
  batch: Column
  microbatches: Column
  schedules: tuple[tuple[str, int], ...]
  executes_idle: Column
  recomputed: Column
  hidden_recomputed: Column
  zero: Column
  skips_masked: bool = False
  _shares: dict[str, Any] = dataclasses.field(init=False, default_factory=dict[str, Any])

  @property
  def sequences_per_device(self) -> Any:
    """As floats: whatever is counted by tokens would overflow whole numbers of 64 bits."""
    return self._once("sequences", lambda: self.batch.astype(np.float64) // self.strategy.batch_shards)

  @property
  def microbatch_tokens(self) -> Any:
    return self._once("tokens", lambda: Shares.microbatch_tokens.fget(self))  # pyright: ignore[reportOptionalCall]

  @property
  def dispatch_tokens(self) -> Any:
    return self._once("dispatched", lambda: Shares.dispatch_tokens.fget(self))  # pyright: ignore[reportOptionalCall]

  def _once(self, name: str, made: Callable[[], Any]) -> Any:
    """A share that many formulas ask for, worked out by the first."""
    if name not in self._shares:
      self._shares[name] = made()
    return self._shares[name]

  def by_schedule(self, fact: Callable[[str, int], Any]) -> Any:
    return np.concatenate([fact(schedule, chunks) for schedule, chunks in self.schedules], axis=1)

  @property
  def chunks(self) -> Any:
    return self._once("chunks", lambda: np.array([chunks for _, chunks in self.schedules])[:, None, None])

  @property
  def copies(self) -> Any:
    both_ways = np.array([schedule == "dualpipe" for schedule, _ in self.schedules])
    return 1 + both_ways[:, None, None] if both_ways.any() else 1
