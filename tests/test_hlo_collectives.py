"""Collectives: kind, axes, payload and executions, against hand arithmetic on a mesh of 2 x 2 x 2 devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_modules import STAGES, mesh, modules
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.xla.collectives import collectives, every_collective
from jaxmoe.xla.groups import group_axes, pair_axes
from jaxmoe.xla.hlo import Module

SIZES = {"x": 2, "y": 2, "z": 2}
SUBSETS = [axes for count in (1, 2, 3) for axes in itertools.combinations(SIZES, count)]
SHAPE = (16, 24)  # of one device, float32
BYTES = 16 * 24 * 4


def local_modules(body, *arguments, sizes=None):
  """The body runs on every device with the whole arguments."""
  spec = PartitionSpec()
  mapped = jax.shard_map(
    body,
    mesh=mesh(**(sizes or SIZES)),
    in_specs=spec,
    out_specs=PartitionSpec(tuple(sizes or SIZES)),
    check_vma=False,
  )
  return modules(mapped, *arguments)


def listed(module, sizes=None):
  return [(c.kind, c.axes, c.payload_bytes, c.count, c.dtype) for c in collectives(module, sizes or SIZES)]


def ring(size):
  return [(i, (i + 1) % size) for i in range(size)]


BODIES = {
  "all-reduce": (lambda x, axes: lax.psum(x, axes), 1),
  "all-gather": (lambda x, axes: lax.all_gather(x, axes, tiled=True), "group"),
  "reduce-scatter": (lambda x, axes: lax.psum_scatter(x, axes, tiled=True), 1),
  "all-to-all": (lambda x, axes: lax.all_to_all(x, axes, 0, 1, tiled=True), 1),
  "collective-permute": (lambda x, axes: lax.ppermute(x, axes, ring(2 ** len(axes))), 1),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("axes", SUBSETS, ids="".join)
@pytest.mark.parametrize("kind", BODIES)
def test_each_kind_over_each_set_of_axes(kind, axes, stage):
  body, factor = BODIES[kind]
  module = local_modules(lambda x: body(x, axes), jnp.ones(SHAPE))[stage]
  payload = BYTES * (2 ** len(axes) if factor == "group" else factor)
  assert listed(module) == [(kind, axes, payload, 1, "f32")]


@pytest.mark.parametrize("axes", [("y", "x"), ("z", "x"), ("z", "y", "x")])
def test_axes_come_in_mesh_order(axes):
  module = local_modules(lambda x: lax.all_gather(x, axes, tiled=True), jnp.ones(SHAPE))["optimised"]
  assert listed(module) == [("all-gather", tuple(sorted(axes)), BYTES * 2 ** len(axes), 1, "f32")]


@pytest.mark.parametrize("stage", STAGES)
def test_executions_in_nested_loops(stage):
  def body(x):
    def inner(x, _):
      return lax.psum(jnp.sin(x), "y"), None

    def outer(x, _):
      return lax.ppermute(lax.scan(inner, x, None, length=3)[0], "x", ring(2)), None

    return lax.scan(outer, x, None, length=5)[0]

  module = local_modules(body, jnp.ones(SHAPE))[stage]
  assert sorted(listed(module)) == [
    ("all-reduce", ("y",), BYTES, 15, "f32"),
    ("collective-permute", ("x",), BYTES, 5, "f32"),
  ]


@pytest.mark.parametrize("stage", STAGES)
def test_conditional_traffic_is_a_bound(stage):
  def body(x):
    return lax.cond(x[0, 0] > 0, lambda x: lax.psum(lax.psum(x, "y") * x, "y"), lambda x: lax.psum(x, "x"), x)

  found = collectives(local_modules(body, jnp.ones(SHAPE))[stage], SIZES)
  assert [(c.axes, c.count, c.bound) for c in found] == [(("y",), 1, True)] * 2


@pytest.mark.parametrize("stage", STAGES)
def test_op_name_keeps_the_user_scope(stage):
  def body(x):
    with jax.named_scope("combine"):
      return lax.psum(x, "x")

  (found,) = collectives(local_modules(body, jnp.ones(SHAPE))[stage], SIZES)
  assert "combine" in found.op_name.split("/")


@pytest.mark.parametrize("stage", STAGES)
def test_automatic_partitioning_inserts_an_all_reduce(stage):
  devices = mesh(**SIZES)
  x = jax.device_put(jnp.ones((32, 64)), NamedSharding(devices, PartitionSpec("x", ("y", "z"))))
  w = jax.device_put(jnp.ones((64, 8)), NamedSharding(devices, PartitionSpec(("y", "z"))))
  out = NamedSharding(devices, PartitionSpec("x"))
  module = modules(lambda x, w: x @ w, x, w, out_shardings=out)[stage]
  assert listed(module) == [("all-reduce", ("y", "z"), 16 * 8 * 4, 1, "f32")]


@pytest.mark.parametrize("stage", STAGES)
def test_automatic_partitioning_inserts_an_all_gather(stage):
  devices = mesh(**SIZES)
  x = jax.device_put(jnp.ones((32, 64)), NamedSharding(devices, PartitionSpec(None, "z")))
  module = modules(jnp.sin, x, out_shardings=NamedSharding(devices, PartitionSpec()))[stage]
  assert listed(module) == [("all-gather", ("z",), 32 * 64 * 4, 1, "f32")]


def test_axis_of_size_one_moves_nothing():
  sizes = {"x": 8, "y": 1}
  module = local_modules(lambda x: lax.psum(x, "y") + lax.psum(x, "x"), jnp.ones(SHAPE), sizes=sizes)["partitioned"]
  assert listed(module, sizes) == [("all-reduce", ("x",), BYTES, 1, "f32")]
  assert sorted(c.axes for c in every_collective(module, sizes)) in ([(), ("x",)], [("x",)])


def test_one_device():
  sizes = {"x": 1, "y": 1}
  module = local_modules(lambda x: lax.psum(x @ x.T, "x"), jnp.ones(SHAPE), sizes=sizes)["partitioned"]
  assert listed(module, sizes) == []
  assert [c.axes for c in every_collective(module, sizes)] == [()]


def test_axis_sizes_must_make_up_the_devices():
  module = local_modules(lambda x: lax.psum(x, "x"), jnp.ones(SHAPE))["optimised"]
  with pytest.raises(ValueError, match="8 devices"):
    collectives(module, {"x": 2, "y": 2})


def test_groups_that_fit_no_axes_are_unmapped():
  def body(x):
    return lax.psum(x, "x", axis_index_groups=[[0, 3], [1, 2], [4, 7], [5, 6]])

  module = local_modules(body, jnp.ones(SHAPE), sizes={"x": 8})["optimised"]
  assert [c.axes for c in collectives(module, SIZES)] == [("?",)]


@pytest.mark.parametrize(
  "groups, axes",
  [
    ([[0, 1], [2, 3], [4, 5], [6, 7]], ("z",)),
    ([[0, 2], [1, 3], [4, 6], [5, 7]], ("y",)),
    ([[4, 0], [1, 5], [2, 6], [3, 7]], ("x",)),
    ([[0, 1, 4, 5], [2, 3, 6, 7]], ("x", "z")),
    ([[0, 3], [1, 2], [4, 7], [5, 6]], ("?",)),  # diagonals
    ([[0, 1], [2, 3]], ("?",)),  # half of the devices
    ([[0, 1], [2, 3], [4, 6], [5, 7]], ("?",)),  # along z for some, along y for others
    ([[i] for i in range(8)], ()),
  ],
)
def test_axes_of_groups(groups, axes):
  assert group_axes(np.array(groups), SIZES) == axes


@pytest.mark.parametrize(
  "pairs, axes",
  [
    ([[0, 4], [4, 0]], ("x",)),
    ([[0, 1], [2, 3]], ("z",)),
    ([[0, 1], [1, 2]], ("y", "z")),
    ([[0, 0], [1, 1]], ()),
    ([[0, 8]], ("?",)),
  ],
)
def test_axes_of_pairs(pairs, axes):
  assert pair_axes(np.array(pairs), SIZES) == axes


def test_asynchronous_operations_count_once():
  module = Module.from_text("""HloModule m, num_partitions=8
add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}
scatter {
  full = bf16[16,4] parameter(0)
  ROOT part = bf16[8,4] reduce-scatter(full), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0},
  to_apply=add,
    use_global_device_ids=true
}
ENTRY main {
  x = bf16[8,4] parameter(0)
  gathering = (bf16[8,4], bf16[16,4]) all-gather-start(x), channel_id=1, replica_groups=[4,2]<=[8],
  dimensions={0},
    use_global_device_ids=true
  gathered = bf16[16,4] all-gather-done(gathering)
  scattering = ((bf16[16,4]), bf16[8,4]) async-start(gathered), calls=scatter
  scattered = bf16[8,4] async-done(scattering)
  sending = (bf16[8,4], bf16[8,4]) collective-permute-start(scattered), channel_id=2,
  source_target_pairs={{0,4},{4,0}} ROOT sent = bf16[8,4] collective-permute-done(sending)
}""")
  assert listed(module) == [
    ("all-gather", ("z",), 16 * 4 * 2, 1, "bf16"),
    ("reduce-scatter", ("z",), 16 * 4 * 2, 1, "bf16"),
    ("collective-permute", ("x",), 8 * 4 * 2, 1, "bf16"),
  ]
