"""Programs for several TPU slices: what hosts pass on is read, mapped to mesh axes, and explained."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from compiled_modules import WITH_TPU, modules
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.axes import DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.build import topology_devices
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report.html import page
from jaxmoe.report.verification import document
from jaxmoe.xla import cache
from jaxmoe.xla.between_slices import Slices, kind, members, part_axes
from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.rewrites import explain
from jaxmoe.xla.target import Target

REDUCE, SCATTER, GATHER, EXCHANGE = "all-reduce", "reduce-scatter", "all-gather", "all-to-all"
PERMUTE = "collective-permute"
SIZES = {"a": 2, "b": 2, "c": 2, "d": 2}  # a and b number four slices of 2 x 2 chips
FOUR = Slices(tuple(100_000 * (1 + rank // 4) + rank % 4 for rank in range(16)), tuple(rank // 4 for rank in range(16)))

SEND = """HloModule m, num_partitions=4
ENTRY main {
  x = f32[64,256] parameter(0)
  after = token[] after-all()
  sent = (f32[64,256], u32[], token[]) send(x, after), channel_id=1, is_host_transfer=true, frontend_attributes={
    _xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="r_0",
    _xla_megascale_target=TARGET,_xla_megascale_transfer_type="TYPE"}
  ROOT done = token[] send-done(sent), channel_id=1, is_host_transfer=true, frontend_attributes={
    _xla_host_transfer_handler_name="xla_megascale_runtime"}
}"""


def transfer(target, type_="ALL_REDUCE"):
  return Module.from_text(SEND.replace("TARGET", target).replace("TYPE", type_))


def send(module):
  return next(x for x in module.entry.instructions if x.opcode == "send")


def across(*slices, local=range(4)):
  return [[100_000 * number + at for number in slices] for at in local]


@pytest.mark.parametrize(
  "target, groups",
  [
    ('"{1,2}x{0:3}"', across(1, 2)),
    ('"{1,2,3,4}x{0:3}"', across(1, 2, 3, 4)),
    ('"{3,1}x{0,2}"', across(3, 1, local=(0, 2))),
    ("{{100000,300000},{100001,300001}}", across(1, 3, local=(0, 1))),
    ("{{100002->200000},{200002->100000}}", [[100002, 200000], [200002, 100000]]),
  ],
)
def test_spellings(target, groups):
  assert members(send(transfer(target))).tolist() == groups


@pytest.mark.parametrize("target", ['"everywhere"', "{{100000,300000},{100001}}"])
def test_an_unknown_spelling_is_refused(target):
  with pytest.raises(NotImplementedError, match="cannot read between which slices"):
    members(send(transfer(target)))


def test_an_unknown_kind_or_device_is_refused():
  with pytest.raises(NotImplementedError, match=r"cannot read what \S+ does between slices"):
    kind(send(transfer('"{1,2}x{0:3}"', "ALL_BUT_ONE")))
  with pytest.raises(NotImplementedError, match=r"names devices \[500000\], which are none of the mesh's"):
    collectives(transfer("{{500000,100000}}"), SIZES, slices=FOUR)
  with pytest.raises(NotImplementedError, match="nobody says where they lie"):
    collectives(transfer('"{1,2}x{0:3}"'), {"a": 2, "b": 2})


def test_groups_of_one_slice_are_those_of_every_slice():
  """By hand, where slices interleave: slice 0 holds the ranks 0 and 2, slice 1 holds 1 and 3."""
  slices = Slices((100_000, 200_000, 100_001, 200_001), (0, 1, 0, 1))
  assert slices.everywhere(np.array([[0, 1]])).tolist() == [[0, 2], [1, 3]]
  assert part_axes(np.array([[0, 2], [1, 3]]), {"x": 2, "y": 2}, slices) == ("x",)


@pytest.mark.parametrize("axes", [axes for n in (1, 2, 3, 4) for axes in itertools.combinations(SIZES, n)])
def test_how_groups_lie_in_slices(axes):
  """Counted: of the groups' members, how many share a slice, and along which axes those differ."""
  split = FOUR.split(axes, SIZES)
  within, between = set(axes) & {"c", "d"}, set(axes) & {"a", "b"}
  assert (split.within, split.between) == (2 ** len(within), 2 ** len(between))
  assert (set(split.axes_within), set(split.axes_between)) == (within, between)


def test_an_axis_that_slices_cut():
  slices = Slices(FOUR.ids[:8], FOUR.slices[:8])
  split = slices.split(("e",), {"e": 8})
  assert (split.within, split.between, split.axes_within, split.axes_between) == (4, 2, ("e",), ("e",))
  sizes = {"e": 8}
  assert part_axes(np.arange(8).reshape(2, 4), sizes, slices) == ("e",)  # each slice's members
  assert part_axes(np.arange(8).reshape(2, 4).T, sizes, slices) == ("e",)  # one member of each
  assert part_axes(np.array([[0, 1], [2, 3], [4, 5], [6, 7]]), sizes, slices) == ("?",)  # half of a slice's


BODIES = {
  "sum between": (lambda x: lax.psum(x, "a"), {(REDUCE, ("a",)): (1, ("async",))}),
  "sum within": (lambda x: lax.psum(x, "c"), {(REDUCE, ("c",)): (1, ("same",))}),
  "sum over both": (
    lambda x: lax.psum(x, ("a", "c")),
    {
      (SCATTER, ("c",)): (1, ("hierarchical",)),
      (REDUCE, ("a",)): (1 / 2, ("hierarchical", "async")),
      (GATHER, ("c",)): (1, ("hierarchical",)),
    },
  ),
  "gather": (
    lambda x: lax.all_gather(x, ("a", "c"), tiled=True),
    {(GATHER, ("a",)): (2, ("hierarchical", "async")), (GATHER, ("c",)): (4, ("hierarchical",))},
  ),
  "scatter": (
    lambda x: lax.psum_scatter(x, ("b", "d"), tiled=True),
    {
      (REDUCE, ("d",)): (1, ("reduce_scatter_as_all_reduce",)),
      (SCATTER, ("d",)): (0, ("reduce_scatter_as_all_reduce", "hierarchical")),
      (SCATTER, ("b",)): (1 / 2, ("hierarchical", "async")),
    },
  ),
  "exchange": (lambda x: lax.all_to_all(x, ("b", "c"), 0, 1, tiled=True), {(EXCHANGE, ("b", "c")): (1, ("async",))}),
  "permute": (
    lambda x: lax.ppermute(x, ("b", "c"), [(i, (i + 1) % 4) for i in range(4)]),
    {
      (PERMUTE, ("b", "c")): (1, ("hierarchical", "async")),
      (PERMUTE, ("c",)): (1, ("hierarchical", "async")),
    },
  ),
}


@WITH_TPU
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned"])
@pytest.mark.parametrize("name", BODIES)
def test_payload_over_each_axis(name, turned):
  """Of 64 x 256 floats on every device; also where a slice's devices, and slices, come in another order."""
  body, expected = BODIES[name]
  devices = np.array(topology_devices("v5e:2x2", 4)).reshape(4, 4)
  if turned:
    devices = devices[[2, 0, 3, 1]][:, [0, 1, 3, 2]]
  grid = Mesh(devices.reshape(2, 2, 2, 2), tuple(SIZES), axis_types=(AxisType.Auto,) * 4)
  x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=NamedSharding(grid, PartitionSpec()))
  made = modules(
    jax.shard_map(body, mesh=grid, in_specs=PartitionSpec(), out_specs=PartitionSpec(tuple(SIZES)), check_vma=False), x
  )
  slices = Slices(*zip(*((device.id, device.slice_index) for device in grid.devices.flat), strict=True))
  actual = collectives(made["optimised"], SIZES, slices=slices)
  found = {
    (r.kind, r.axes): (r.actual.elements / (64 * 256), r.names)
    for r in explain(collectives(made["partitioned"], SIZES), actual, SIZES, slices)
  }
  assert found == expected
  crosses = {one.kind: one.between_slices for one in actual if {"a", "b"} & set(one.axes)}
  assert all(crosses.values())
  assert all(one.overlap is not None for one in actual if one.asynchronous)


STEPS = {
  "data between, training": (Strategy(data=2, expert=2, tensor=2), {"remat": "full"}),
  "stages between, training": (Strategy(stage=2, expert=2, tensor=2), {"remat": "full"}),
  "experts cut, prefill": (Strategy(expert=8), {"kind": "prefill"}),
  "stages cut, prefill": (Strategy(stage=4, expert=2), {"kind": "prefill"}),
  "data between, decode": (Strategy(data=2, expert=2, tensor=2), {"kind": "decode"}),
}


@functools.cache
def step(name):
  """A deployment and its step on two slices of 2 x 2 chips."""
  strategy, job = STEPS[name]
  d = tiny.whole_tiles(strategy, **job)
  return d, compile_step(d, Target.parse("tpu:v5e:2x2:2").on(d))


@WITH_TPU
@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_steps_on_two_slices_are_explained(name):
  """Every collective of the real step, with what pads and splits it; payload to the byte where nothing does."""
  d, made = step(name)
  found = compare(d, "tpu:v5e:2x2:2", made)
  assert found.agrees and found.unplanned == []
  assert any(one.between_slices and one.axes for one in found.compiled.optimised)
  assert any("hierarchical" in rewrite.names for rewrite in found.rewrites)


@WITH_TPU
@pytest.mark.slow
def test_a_sum_that_nobody_planned_is_seen_between_slices():
  """The partitioned program's sums over data are taken away: what hosts do is then unplanned, with its axis."""
  _, made = step("data between, training")
  sizes = {DATA: 2, STAGE: 1, EXPERT: 2, TENSOR: 2}
  fewer = [one for one in made.partitioned if one.axes != (DATA,)]
  unplanned = [r for r in explain(fewer, made.optimised, sizes, made.slices) if not r.planned_for]
  assert [(r.kind, r.axes) for r in unplanned] == [(REDUCE, (DATA,))]


@WITH_TPU
@pytest.mark.slow
def test_what_is_read_is_kept(monkeypatch, tmp_path):
  """Slices and overlaps come out of the cache as they went in."""
  monkeypatch.setenv("JAXMOE_CACHE_DIR", str(tmp_path))
  _, made = step("data between, decode")
  assert made.slices and any(one.overlap for one in made.optimised)
  cache.store("made", made)
  assert cache.load("made") == made


@WITH_TPU
@pytest.mark.slow
def test_reports_show_both_levels():
  """The planned sum over both axes is taken apart on the page; JSON says which part hosts do."""
  d, made = step("data between, decode")
  found = compare(d, "tpu:v5e:2x2:2", made)
  assert "taken apart" in page(found, estimate(d))
  listed = json.loads(json.dumps(document(found)))["collectives"]
  between = [one for one in listed if one["between_slices"]]
  assert between and all(one["axis"] == DATA and one["asynchronous"] for one in between)
