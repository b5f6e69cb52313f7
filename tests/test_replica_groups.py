"""Replica groups in every spelling that XLA prints, against groups counted out coordinate by coordinate."""

import itertools
import random

import numpy as np
import pytest

from jaxmoe.xla.groups import group_axes, pair_axes, replica_groups, replicas, source_target_pairs
from jaxmoe.xla.hlo import Module

MESHES = [
  {"a": 8},
  {"a": 2, "b": 3},
  {"a": 4, "b": 2, "c": 2},
  {"a": 1, "b": 4, "c": 3},
  {"a": 2, "b": 2, "c": 2, "d": 2},
]
CASES = [
  (mesh, axes) for mesh in MESHES for count in range(1, len(mesh) + 1) for axes in itertools.permutations(mesh, count)
]

REDUCE = """HloModule m, replica_count=%d, num_partitions=%d
add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}
ENTRY main {
  x = f32[4] parameter(0)
  ROOT y = f32[4] all-reduce(x), %s to_apply=add, replica_groups=%s
}"""
GLOBAL = "channel_id=1, use_global_device_ids=true,"


def counted(sizes, axes):
  """Groups over `axes`, in their order: one for each choice of the other coordinates, by nested counting."""
  names, groups = list(sizes), []
  others = [name for name in names if name not in axes]
  for fixed in itertools.product(*(range(sizes[name]) for name in others)):
    group = []
    for moving in itertools.product(*(range(sizes[name]) for name in axes)):
      at = dict(zip(others, fixed, strict=True)) | dict(zip(axes, moving, strict=True))
      rank = 0
      for name in names:
        rank = rank * sizes[name] + at[name]
      group.append(rank)
    groups.append(group)
  return groups


def listed(numbers):
  return ",".join(map(str, numbers))


def raw(groups):
  return "{" + ",".join("{" + listed(group) + "}" for group in groups) + "}"


def iota(sizes, axes):
  names = list(sizes)
  order = [names.index(name) for name in names if name not in axes] + [names.index(name) for name in axes]
  size = int(np.prod([sizes[name] for name in axes]))
  devices = int(np.prod(list(sizes.values())))
  shape = f"[{devices // size},{size}]<="
  return f"{shape}[{devices}]" if order == sorted(order) else f"{shape}[{listed(sizes.values())}]T({listed(order)})"


def by_mesh(sizes, axes, ids=""):
  said = ",".join(f"'{name}'={size}" for name, size in sizes.items())
  return f"mesh[{said}]{ids} {{{','.join(repr(name) for name in axes)}}}"


def read(spelling, devices, *, replica_count=1, mode=GLOBAL):
  text = REDUCE % (replica_count, devices // replica_count, mode, spelling)
  module = Module.from_text(text)  # XLA's own parser must take it
  assert (module.devices, replicas(module)) == (devices, replica_count)
  return replica_groups(module.entry.root, module.devices, replicas(module)).tolist()


@pytest.mark.parametrize(
  "spelling, groups",
  [
    ("{{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("{{0,2,4,6},{1,3,5,7}}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['e'=4,'t'=2] {'t'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("mesh['e'=4,'t'=2] {'e'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['e'=4,'t'=2] {'e','t'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("mesh['e'=4,'t'=2] {'t','e'}", [[0, 2, 4, 6, 1, 3, 5, 7]]),
    ("mesh['e'=4,'t'=2] {'e':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['e'=4,'t'=2] {'e':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['e'=4,'t'=2] {'e':(2)2,'t'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("mesh['e'=4,'t'=2], device_ids=(0,2,4,6,1,3,5,7) {'t'}", [[0, 2], [4, 6], [1, 3], [5, 7]]),
    ("mesh['e'=4,'t'=2], device_ids=([2,4]T(1,0)) {'t'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['d'=1,'e'=8] {'d'}", [[i] for i in range(8)]),
  ],
)  # fmt: skip
def test_spellings_by_hand(spelling, groups):
  assert read(spelling, 8) == groups


@pytest.mark.parametrize("sizes, axes", CASES, ids=str)
def test_lists_iotas_and_meshes_mean_what_counting_says(sizes, axes):
  devices, groups = int(np.prod(list(sizes.values()))), counted(sizes, axes)
  assert read(raw(groups), devices) == groups
  assert read(iota(sizes, axes), devices) == groups
  assert read(by_mesh(sizes, axes), devices) == groups
  full = tuple(axis for axis in sizes if axis in axes and sizes[axis] > 1)
  assert group_axes(np.array(groups), sizes) == full


@pytest.mark.parametrize("seed", range(10))
def test_a_mesh_may_number_its_devices_in_any_order(seed):
  """As a list of ids, or as an iota that is transposed."""
  rng = random.Random(seed)
  sizes, axes = rng.choice(CASES)
  devices = int(np.prod(list(sizes.values())))
  ids = rng.sample(range(devices), devices)
  named = [[ids[place] for place in group] for group in counted(sizes, axes)]
  assert read(by_mesh(sizes, axes, f", device_ids=({listed(ids)})"), devices) == named
  shape, order = list(sizes.values()), rng.sample(range(len(sizes)), len(sizes))
  strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
  turned = [
    sum(c * strides[dim] for c, dim in zip(at, order, strict=True))
    for at in itertools.product(*(range(shape[dim]) for dim in order))
  ]
  spelt = f", device_ids=([{listed(shape)}]T({listed(order)}))"
  assert read(by_mesh(sizes, axes, spelt), devices) == [[turned[i] for i in group] for group in counted(sizes, axes)]


@pytest.mark.parametrize("before, size", [(1, 2), (2, 2), (4, 2), (1, 4), (2, 4)])
def test_a_part_of_an_axis(before, size):
  """`'a':(2)2` of an axis of 8: of its digits 2 x 2 x 2, those that have 2 before them."""
  digits = {"l": before, "m": size, "r": 8 // before // size, "t": 2}
  assert read(f"mesh['a'=8,'t'=2] {{'a':({before}){size}}}", 16) == counted(digits, ["m"])
  assert read(f"mesh['a'=8,'t'=2] {{'a':({before}){size},'t'}}", 16) == counted(digits, ["m", "t"])


MODES = {
  "global ids count ranks": (GLOBAL, "{{0,5},{1,4},{2,7},{3,6}}", [[0, 5], [1, 4], [2, 7], [3, 6]]),
  "global ids, none listed": (GLOBAL, "{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
  "without a channel, replicas": ("", "{{0,1}}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
  "without a channel, alone": ("", "{{0},{1}}", [[at] for at in (0, 4, 1, 5, 2, 6, 3, 7)]),
  "without a channel, none listed": ("", "{}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
  "a channel alone, replicas with all partitions": ("channel_id=1,", "{{0},{1}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
  "a channel alone, all": ("channel_id=1,", "{{0,1}}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
}


@pytest.mark.parametrize("case", MODES)
def test_what_the_numbers_count(case):
  """Two replicas of four partitions: rank = 4 x replica + partition."""
  mode, spelling, groups = MODES[case]
  assert read(spelling, 8, replica_count=2, mode=mode) == groups


EXCHANGE = """HloModule m, replica_count=2, num_partitions=4
ENTRY main {
  x = f32[4,2] parameter(0)
  ROOT y = f32[4,2] %s
}"""


def test_an_exchange_with_a_channel_is_of_partitions():
  text = EXCHANGE % "all-to-all(x), channel_id=1, dimensions={0}, replica_groups={{0,2},{1,3}}"
  root = Module.from_text(text).entry.root
  assert replica_groups(root, 8, 2).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]


@pytest.mark.parametrize(
  "channel, pairs",
  [
    ("channel_id=1, ", [[0, 1], [3, 0], [4, 5], [7, 4]]),
    ("", [[0, 4], [4, 0], [1, 5], [5, 1], [2, 6], [6, 2], [3, 7], [7, 3]]),
  ],
)
def test_pairs_of_a_permute(channel, pairs):
  spelt = "{{0,1},{3,0}}" if channel else "{{0,1},{1,0}}"
  root = Module.from_text(EXCHANGE % f"collective-permute(x), {channel}source_target_pairs={spelt}").entry.root
  assert source_target_pairs(root, 8, 2).tolist() == pairs
  assert pair_axes(np.array(pairs), {"r": 2, "p": 4}) == (("p",) if channel else ("r",))


@pytest.mark.parametrize("spelling", ["{{0,1},{2}}", "{{0},{1,2}}"])
def test_groups_of_different_sizes_are_refused(spelling):
  with pytest.raises(NotImplementedError, match="differ in size"):
    read(spelling, 3)
