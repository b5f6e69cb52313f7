"""What one device stores of the model, grouped by the devices that store the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxmoe.config.arrays import ceil_div
from jaxmoe.config.job import ITEM_BYTES, Precision
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import INT_BYTES
from jaxmoe.cost.parameters import Stack, parameter_tensors
from jaxmoe.cost.stage import StageLayers


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
  """Parameters of one stage that all devices along `axes` hold alike: replicas, whose gradients are summed.

  Attributes:
    count: parameters on one device.
    weight_bytes: as stored.
  """

  axes: tuple[str, ...]
  count: Any
  weight_bytes: Any


type Stacked = dict[Stack, list[Holding]]


def stacked_holdings(d: Shares) -> Stacked:
  """Of one layer of each stack, and of what stands outside layers: no stage changes them."""
  stacks: dict[Stack, None] = dict.fromkeys(tensor.stack for tensor in parameter_tensors(d.model))
  return {stack: _grouped(d, stack) for stack in stacks}


def in_layers(stacked: Stacked) -> Stacked:
  """Without what stands outside layers: embedding, head and last norm."""
  return {stack: held for stack, held in stacked.items() if stack != "none"}


def _grouped(d: Shares, stack: Stack) -> list[Holding]:
  groups: dict[tuple[str, ...], tuple[Any, Any]] = {}
  for tensor in parameter_tensors(d.model):
    if tensor.stack == stack:
      axes, count = tensor.replica_axes(d.strategy), tensor.layer_count(d.rules)
      counts, sizes = groups.get(axes, (0, 0))
      groups[axes] = (counts + count, sizes + count * ITEM_BYTES[tensor.dtype(d.job.precision)])
  return [Holding(axes, *held) for axes, held in groups.items()]


def holdings(d: Shares, stage: StageLayers, stacked: Stacked | None = None) -> list[Holding]:
  """All parameters of a device's stages, or those in `stacked`; one entry for each group of replicas."""
  groups: dict[tuple[str, ...], tuple[Any, Any]] = {}
  for stack, layer in (stacked or stacked_holdings(d)).items():
    layers = stage.of(stack) * (1 if stack == "none" else d.copies)
    for held in layer:
      counts, sizes = groups.get(held.axes, (0, 0))
      groups[held.axes] = (counts + held.count * layers, sizes + held.weight_bytes * layers)
  return [Holding(axes, counts, sizes) for axes, (counts, sizes) in groups.items()]


def weight_bytes(d: Shares, groups: list[Holding]) -> Any:
  """Weights that stay on one device: with zero 3 its part of them."""
  return _shared(d, groups, 3, lambda held: held.weight_bytes)


def gradient_bytes(d: Shares, groups: list[Holding]) -> Any:
  """Gradients that stay on one device: from zero 2 on its part of them."""
  return _shared(d, groups, 2, lambda held: stored_gradient_bytes(held, d.job.precision))


def optimizer_bytes(d: Shares, groups: list[Holding]) -> Any:
  """Adam's two moments and a counter: from zero 1 on this device's part of them."""
  each = 2 * ITEM_BYTES[d.job.precision.optimizer]
  return _shared(d, groups, 1, lambda held: held.count * each) + INT_BYTES


def master_bytes(d: Shares, groups: list[Holding]) -> Any:
  """A copy of the weights in a wider dtype, if the job keeps one: from zero 1 on this device's part of it."""
  master = d.job.precision.master
  return 0 if master is None else _shared(d, groups, 1, lambda held: held.count * ITEM_BYTES[master])


def stored_gradient_bytes(held: Holding, precision: Precision) -> Any:
  """Gradients of these parameters, before anything is split among replicas."""
  return held.weight_bytes if precision.gradients is None else held.count * ITEM_BYTES[precision.gradients]


def _shared(d: Shares, groups: list[Holding], level: int, size: Callable[[Holding], Any]) -> Any:
  """Sum over groups; each is dealt out to its replicas if `zero` reaches `level`."""
  return sum(_part(size(held), d.zero >= level, d.strategy.size(*held.axes)) for held in groups)


def _part(size: Any, split: Any, replicas: Any) -> Any:
  if isinstance(split, bool):
    return ceil_div(size, replicas) if split else size
  return size * (1 - split * (1 - 1 / replicas))
