"""Where everything lies: device rank <-> mesh coordinates, host, and the layers and experts of a device."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import overload

from jaxmoe.meshes.axes import AXES, STAGE
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
  """One device.

  Attributes:
    rank: its place in the order of the strategy, the last axis fastest.
    host: the host that it sits in.
    coordinates: its index on every mesh axis.
    layers: layers of its pipeline stage, then of the other one that it holds where microbatches go both ways.
    experts: experts it holds in each of those layers, numbered from 0 in every layer.
    heads_part: which part of the attention heads it holds: its rank in tensor-parallel attention.
    width_part: which part of its experts' hidden width it holds.
  """

  rank: int
  host: int
  coordinates: Mapping[str, int]
  layers: tuple[int, ...]
  experts: tuple[int, ...]
  heads_part: int
  width_part: int

  def expert_numbers(self, num_experts: int, *, across_stages: bool) -> tuple[int, ...]:
    """`experts`, or their numbers where a document counts on through the stages: E x stage + index."""
    first = num_experts * self.coordinates[STAGE] if across_stages else 0
    return tuple(first + expert for expert in self.experts)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Placements(Sequence[Placement]):
  """Devices in rank order, each worked out when it is asked for: of a million, a slice costs the slice.

  Attributes:
    num_layers: of the model, dealt out over the chunks of all stages in turn, the first of which get one more.
    both_ways: whether a stage also holds the layers of the one as far from the other end.
    experts: how many of them one device holds.
  """

  strategy: Strategy
  num_layers: int
  chunks: int
  both_ways: bool
  experts: int
  devices_per_host: int

  def __len__(self) -> int:
    return self.strategy.devices

  @overload
  def __getitem__(self, index: int) -> Placement: ...
  @overload
  def __getitem__(self, index: slice) -> tuple[Placement, ...]: ...
  def __getitem__(self, index: int | slice) -> Placement | tuple[Placement, ...]:
    ranks = range(len(self))[index]
    return self._device(ranks) if isinstance(ranks, int) else tuple(map(self._device, ranks))

  def _device(self, rank: int) -> Placement:
    strategy, at = self.strategy, _coordinates(self.strategy, rank)
    return Placement(
      rank=rank,
      host=rank // self.devices_per_host,
      coordinates=at,
      layers=self._layers(at[STAGE]),
      experts=_block(_part(strategy, at, strategy.experts_over), self.experts),
      heads_part=_part(strategy, at, strategy.heads_over),
      width_part=_part(strategy, at, strategy.width_axes),
    )

  def _layers(self, stage: int) -> tuple[int, ...]:
    """Those of every stages-th chunk: neighbours, where each stage has one chunk."""
    stages = self.strategy.stage
    parts = stages * self.chunks
    size, more = divmod(self.num_layers, parts)
    chunks = [*range(stage, parts, stages), *([stages - 1 - stage] if self.both_ways else [])]
    return tuple(layer for c in chunks for layer in range(c * size + min(c, more), (c + 1) * size + min(c + 1, more)))


def place(
  strategy: Strategy,
  num_layers: int,
  num_experts: int,
  *,
  devices_per_host: int = 8,
  chunks: int = 1,
  both_ways: bool = False,
) -> Placements:
  """Every device in rank order, by default rank = ((data * stages + stage) * experts + expert) * tensors + tensor.

  Args:
    chunks: chunks of layers that each stage holds, as an interleaved pipeline has.
    both_ways: whether each stage holds two stages' layers, as in `dualpipe`.

  Raises:
    UsageError: fewer layers than chunks of stages, or experts that do not divide over the axes that carry them.
  """
  if num_layers < strategy.stage * chunks:
    each = f" of {chunks} chunks" if chunks > 1 else ""
    least = strategy.stage * chunks
    raise UsageError(
      f"num_layers={num_layers} must be at least one for each of {STAGE} = {strategy.stage}{each};"
      f" the nearest legal num_layers is {least}"
    )
  return Placements(
    strategy=strategy,
    num_layers=num_layers,
    chunks=chunks,
    both_ways=both_ways,
    experts=_part_size("num_experts", num_experts, strategy, strategy.experts_over),
    devices_per_host=devices_per_host,
  )


def rank_of(strategy: Strategy, coordinates: Mapping[str, int]) -> int:
  """The rank at these coordinates, the inverse of `place`."""
  return _part(strategy, coordinates, strategy.order)


def _coordinates(strategy: Strategy, rank: int) -> Mapping[str, int]:
  """The index on every axis, in mesh order."""
  at: dict[str, int] = {}
  for axis in reversed(strategy.order):
    rank, at[axis] = divmod(rank, strategy.size(axis))
  return {axis: at[axis] for axis in AXES}


def _part(strategy: Strategy, coordinates: Mapping[str, int], axes: tuple[str, ...]) -> int:
  """The index along several axes taken as one, the first of them slowest; 0 along none."""
  index = 0
  for axis in axes:
    index = index * strategy.size(axis) + coordinates[axis]
  return index


def _block(part: int, size: int) -> tuple[int, ...]:
  return tuple(range(part * size, (part + 1) * size))


def _part_size(field: str, total: int, strategy: Strategy, axes: tuple[str, ...]) -> int:
  parts = strategy.size(*axes)
  if total % parts:
    raise UsageError(
      f"{field}={total} must be a multiple of {' x '.join(axes)} = {parts};"
      f" the nearest legal {field} is {max(1, round(total / parts)) * parts}"
    )
  return total // parts
