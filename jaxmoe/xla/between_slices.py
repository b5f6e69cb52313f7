"""Collectives between TPU slices: a program for several slices hands them to hosts, as sends and receives.

The compiler writes one program for all slices. In it, devices of one slice are numbered from 0, as are their replica
groups; a transfer to other slices names devices by ids of all slices, and the kind of collective that the hosts do.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from jaxmoe.xla import groups
from jaxmoe.xla.hlo import Instruction

KINDS = {
  "ALL_REDUCE": "all-reduce",
  "ALL_GATHER": "all-gather",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}
_ID_OF_A_SLICE = 100_000  # a device's id is this times the number of its slice, from 1, and its number in there
_TYPE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_PRODUCT = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x\{([\d,:]+)\}"')
_LISTED = re.compile(r"_xla_megascale_target=\{((?:\{[\d,>\-]*\},?)*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Slices:
  """Where the ranks of a mesh lie.

  Attributes:
    ids: of each rank's device.
    slices: number of each rank's slice.
  """

  ids: tuple[int, ...]
  slices: tuple[int, ...]

  @property
  def count(self) -> int:
    return len(set(self.slices))

  def everywhere(self, local: np.ndarray) -> np.ndarray:
    """Ranks, for groups `(groups, size)` of numbers within a slice; every slice has the same ones."""
    ranks = np.array([[r for r, at in enumerate(self.slices) if at == one] for one in sorted(set(self.slices))])
    return np.concatenate([members[local] for members in ranks])

  def ranks(self, ids: np.ndarray) -> np.ndarray:
    """Raises NotImplementedError for an id of no device."""
    known = {number: rank for rank, number in enumerate(self.ids)}
    if unknown := {int(number) for number in ids.flat} - known.keys():
      raise NotImplementedError(
        f"a transfer between slices names devices {sorted(unknown)}, which are none of the mesh's"
      )
    return np.vectorize(known.__getitem__)(ids)

  def split(self, axes: tuple[str, ...], axis_sizes: Mapping[str, int]) -> "Split":
    """How groups over `axes` lie in slices."""
    grid = np.arange(len(self.slices)).reshape(tuple(axis_sizes.values()))
    inner = [i for i, axis in enumerate(axis_sizes) if axis in axes]
    outer = [i for i in range(grid.ndim) if i not in inner]
    members = grid.transpose(outer + inner).reshape(-1, np.prod([grid.shape[i] for i in inner], dtype=int))
    at = np.array(self.slices)[members]
    within = _varying_where(members, at[:, :, None] == at[:, None, :], axis_sizes)
    between = tuple(axis for axis in axes if axis not in within or self._crosses(axis, axis_sizes))
    return Split(int((at[0] == at[0][0]).sum()), len(set(at[0])), within, between)

  def _crosses(self, axis: str, axis_sizes: Mapping[str, int]) -> bool:
    """Whether neighbours along an axis lie in different slices somewhere."""
    grid = np.array(self.slices).reshape(tuple(axis_sizes.values()))
    dim = list(axis_sizes).index(axis)
    return bool((grid != grid.take([0], axis=dim)).any())


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
  """Groups of devices, each in several slices.

  Attributes:
    within: members of a group in one slice.
    between: slices of a group.
    axes_within, axes_between: along which members within a slice differ, and members in different slices.
  """

  within: int
  between: int
  axes_within: tuple[str, ...]
  axes_between: tuple[str, ...]


def _varying_where(members: np.ndarray, together: np.ndarray, axis_sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Axes along which two members that are `together` differ."""
  places = np.unravel_index(members, tuple(axis_sizes.values()))
  differ = ((place[:, :, None] != place[:, None, :]) & together for place in places)
  return tuple(axis for axis, found in zip(axis_sizes, differ, strict=True) if found.any())


def is_transfer(x: Instruction) -> bool:
  """A send to other slices; the receive that belongs to it is the same transfer."""
  return x.opcode == "send" and _TYPE.search(x.attributes) is not None


def kind(x: Instruction) -> str:
  """The collective that the hosts do. Raises NotImplementedError for one that is not known."""
  found = _TYPE.search(x.attributes)
  if found is None or found[1] not in KINDS:
    raise NotImplementedError(f"cannot read what {x.name} does between slices: {x.attributes[:300]}")
  return KINDS[found[1]]


def rendezvous(x: Instruction) -> str:
  """What a send and the receive of the same transfer have in common; empty without."""
  found = _RENDEZVOUS.search(x.attributes)
  return found[1] if found else ""


def members(x: Instruction) -> np.ndarray:
  """Device ids of `(groups, size)`, or of `(pairs, 2)` for a permute.

  Raises:
    NotImplementedError: a spelling that is not known.
  """
  if product := _PRODUCT.search(x.attributes):
    slices, local = (np.array(_numbers(part)) for part in product.groups())
    return local[:, None] + _ID_OF_A_SLICE * slices[None, :]
  if listed := _LISTED.search(x.attributes):
    found = [_numbers(group.replace("->", ",")) for group in re.findall(r"\{([\d,>\-]*)\}", listed[1])]
    if len({len(group) for group in found}) == 1:
      return np.array(found)
  raise NotImplementedError(f"cannot read between which slices {x.name} sends: {x.attributes[:300]}")


def part_axes(found: np.ndarray, axis_sizes: Mapping[str, int], slices: Slices) -> tuple[str, ...]:
  """Axes over which groups are sub-meshes, or parts of such: all members in one slice, or as many in each.

  `("?",)` if they are neither.
  """
  if found.shape[1] == 1:
    return ()
  axes = groups.varying(found, axis_sizes)
  if sorted(found.flat) != list(range(len(slices.slices))):
    return (groups.UNMAPPED,)
  split, at = slices.split(axes, axis_sizes), np.array(slices.slices)[found]
  each = {tuple(np.unique(row, return_counts=True)[1]) for row in at}
  fitting = {(split.within,), (split.within,) * split.between, (1,) * split.between}
  return axes if len(each) == 1 and each <= fitting else (groups.UNMAPPED,)


def _numbers(text: str) -> list[int]:
  """`0,2` or the range `0:3`, its end included."""
  found: list[int] = []
  for part in text.split(","):
    first, _, last = part.partition(":")
    found += range(int(first), int(last or first) + 1)
  return found
