"""Which devices talk to each other: HLO's spellings of replica groups, and the mesh axes they stand for."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmoe.xla import opcodes
from jaxmoe.xla.hlo import Instruction, Module

UNMAPPED = "?"

_EXCHANGES = frozenset({"all-to-all", "ragged-all-to-all", "collective-broadcast"})  # of partitions, given a channel

_IOTA = r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?"
_MESH = re.compile(r"replica_groups=mesh\[(?P<axes>[^\]]*)\](?:, device_ids=\((?P<ids>[^{]*)\))? \{(?P<over>[^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=" + _IOTA)
_RAW_GROUPS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def replicas(module: Module) -> int:
  """Copies of the partitioned program that run; jax makes one."""
  found = re.search(r"\breplica_count=(\d+)", module.header.partition("\n")[0])
  return int(found[1]) if found else 1


def replica_groups(x: Instruction, devices: int, replicas: int = 1) -> np.ndarray:
  """`(groups, group size)` of device ranks; a rank is `replica * partitions + partition`.

  An empty list means one group of all. What the numbers of a list count, the attributes say: with a channel and global
  ids, ranks; with a channel alone, partitions of each replica in an exchange, else replicas with all of their
  partitions; without a channel, replicas, for each partition apart.

  Raises:
    NotImplementedError: a spelling that is not known, or groups of different sizes.
  """
  partitions = devices // replicas
  grid = np.arange(devices).reshape(replicas, partitions)
  if "channel_id=" not in x.attributes:
    return np.concatenate([grid[_listed(x, replicas), at] for at in range(partitions)])
  if "use_global_device_ids=true" in x.attributes:
    return _listed(x, devices)
  if opcodes.base(x.opcode) in _EXCHANGES:
    listed = _listed(x, partitions)
    return np.concatenate([grid[at][listed] for at in range(replicas)])
  listed = _listed(x, replicas)
  return grid[listed].reshape(len(listed), -1)


def _listed(x: Instruction, count: int) -> np.ndarray:
  """The groups as spelled, `count` being what an empty list stands for."""
  if mesh := _MESH.search(x.attributes):
    return _mesh_groups(mesh["axes"], mesh["ids"], mesh["over"])
  if iota := _IOTA_GROUPS.search(x.attributes):
    return _iota(*iota.groups())
  if raw := _RAW_GROUPS.search(x.attributes):
    groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", raw.group(1))] or [tuple(range(count))]
    if len({len(group) for group in groups}) != 1:
      raise NotImplementedError(f"replica groups of {x.name} differ in size: {raw.group(0)}")
    return np.array(groups)
  raise NotImplementedError(f"cannot read the replica groups of {x.name}: {x.attributes[:200]}")


def source_target_pairs(x: Instruction, devices: int = 0, replicas: int = 1) -> np.ndarray:
  """`(pairs, 2)` of device ranks: of partitions in each replica, or without a channel the other way round."""
  listed = _PAIRS.search(x.attributes)
  if not listed:
    raise NotImplementedError(f"cannot read the source-target pairs of {x.name}: {x.attributes[:200]}")
  found = [_numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", listed.group(1))]
  pairs, partitions = np.array(found, dtype=int).reshape(-1, 2), devices // replicas
  if "channel_id=" not in x.attributes and partitions > 1:
    return np.concatenate([pairs * partitions + at for at in range(partitions)])
  return np.concatenate([pairs + partitions * at for at in range(replicas)])


def group_axes(groups: np.ndarray, axis_sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Axes over which every group is a full sub-mesh, in mesh order; `("?",)` if there are none such.

  `axis_sizes` lists the axes outermost first: rank = row-major index.
  """
  if groups.shape[1] == 1:
    return ()
  if sorted(groups.flat) != list(range(math.prod(axis_sizes.values()))):
    return (UNMAPPED,)
  axes = varying(groups, axis_sizes)
  full = math.prod(axis_sizes[axis] for axis in axes) == groups.shape[1]  # distinct ranks, so as many as the sub-mesh
  return axes if full else (UNMAPPED,)


def pair_axes(pairs: np.ndarray, axis_sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Axes whose coordinate changes from source to target in some pair; `()` if nothing moves."""
  if pairs.size and pairs.max() >= math.prod(axis_sizes.values()):
    return (UNMAPPED,)
  return varying(pairs, axis_sizes) if pairs.size else ()


def varying(groups: np.ndarray, axis_sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Axes along which members of some group differ, in mesh order."""
  coordinates = np.unravel_index(groups, tuple(axis_sizes.values()))
  return tuple(axis for axis, at in zip(axis_sizes, coordinates, strict=True) if (at != at[:, :1]).any())


def _iota(dims: str, base: str | None, order: str | None) -> np.ndarray:
  """`[2,4]<=[4,2]T(1,0)`: count up in shape [4,2], transpose, read as [2,4]."""
  ranks = np.arange(math.prod(_numbers(dims))).reshape(_numbers(base or dims))
  return (ranks.transpose(_numbers(order)) if order else ranks).reshape(_numbers(dims))


def _mesh_groups(axes: str, ids: str | None, over: str) -> np.ndarray:
  """`mesh['e'=4,'t'=2] {'t'}`; `'e':(2)2` is the part of size 2 of axis e that has 2 before it."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
  used = [
    (name, int(before or 1), int(size or sizes[name]))
    for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", over)
  ]
  cuts = {name: _cuts(size, [part for part in used if part[0] == name]) for name, size in sizes.items()}
  labels = [(name, before) for name in sizes for before, _ in cuts[name]]
  ranks = _device_ids(ids, math.prod(sizes.values())).reshape([size for name in sizes for _, size in cuts[name]])
  inner = [labels.index((name, before)) for name, before, _ in used]
  outer = [dim for dim in range(ranks.ndim) if dim not in inner]
  return ranks.transpose(outer + inner).reshape(-1, math.prod(size for _, _, size in used))


def _cuts(size: int, parts: Sequence[tuple[str, int, int]]) -> list[tuple[int, int]]:
  """`(product of what comes before, size)` of the pieces that `parts` cut an axis into."""
  edges = sorted({1, size} | {before for _, before, _ in parts} | {before * part for _, before, part in parts})
  return [(low, high // low) for low, high in itertools.pairwise(edges)] or [(1, 1)]


def _device_ids(ids: str | None, devices: int) -> np.ndarray:
  if ids is None:
    return np.arange(devices)
  iota = re.fullmatch(_IOTA, ids)
  if iota is None:
    return np.array(_numbers(ids))
  base, _, order = iota.groups()  # `[2,4]T(1,0)`: shape, then how to transpose it
  return np.arange(devices).reshape(_numbers(base)).transpose(_numbers(order) if order else None).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(",") if number)
