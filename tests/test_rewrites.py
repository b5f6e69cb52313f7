"""What the CPU compiler does to collectives is named; what no rewrite explains is unplanned."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import mesh, modules
from jax import lax
from jax.sharding import PartitionSpec

from jaxmoe.xla.collectives import Collective, collectives
from jaxmoe.xla.rewrites import explain

SIZES = {"x": 2, "y": 4}


def rewrites(body, *arguments):
  """(kind, axes) -> names, for a body on every device of a 2 x 4 mesh."""
  mapped = jax.shard_map(
    body, mesh=mesh(**SIZES), in_specs=PartitionSpec(), out_specs=PartitionSpec(tuple(SIZES)), check_vma=False
  )
  found = [collectives(module, SIZES) for module in modules(mapped, *arguments).values()]
  return {(rewrite.kind, rewrite.axes): rewrite.names for rewrite in explain(*found)}


def all_kinds(x):
  x = lax.psum(x, "x")
  x = lax.all_gather(x, "y", tiled=True)
  x = lax.psum_scatter(x * x, "y", tiled=True)
  x = lax.all_to_all(x, "y", 0, 0, tiled=True)
  return lax.ppermute(x, "x", [(0, 1), (1, 0)])


@pytest.mark.parametrize(
  "dtype, names",
  [
    (jnp.float32, "same"), (jnp.int32, "same"), (jnp.float16, "same"), (jnp.bfloat16, "widened"),
    (jnp.float8_e4m3fn, "widened"),
  ],
)  # fmt: skip
def test_cpu_widens_what_it_cannot_compute_in(dtype, names):
  assert rewrites(all_kinds, jnp.ones((16, 8), dtype)) == {
    ("all-reduce", ("x",)): (names,),
    ("all-gather", ("y",)): (names,),
    ("reduce-scatter", ("y",)): (names,),
    ("all-to-all", ("y",)): (names,),
    ("collective-permute", ("x",)): (names,),
  }


def test_cpu_combines_all_reduces():
  found = rewrites(lambda x, y: lax.psum(jnp.sin(x), "x") + lax.psum(jnp.cos(y), "x"), jnp.ones(8), jnp.ones(8))
  assert found == {("all-reduce", ("x",)): ("combined",)}


def test_cpu_combines_and_widens():
  x = jnp.ones(8, jnp.bfloat16)
  found = rewrites(lambda x, y: lax.psum(jnp.sin(x), "x") + lax.psum(jnp.cos(y), "x"), x, x)
  assert found == {("all-reduce", ("x",)): ("widened", "combined")}


def one(kind, axes, elements, *, dtype="f32", item_bytes=4, count=1.0, group_size=2, asynchronous=False):
  return Collective(
    name="c", kind=kind, axes=axes, group_size=group_size, payload_bytes=elements * item_bytes,
    elements=elements, dtype=dtype, count=count, op_name="", bound=False,
    asynchronous=asynchronous,
  )  # fmt: skip


A, B = ("a",), ("b",)
REDUCE, SCATTER, GATHER = "all-reduce", "reduce-scatter", "all-gather"


@pytest.mark.parametrize(
  "planned, actual, names",
  [
    ([one(REDUCE, A, 64)], [one(REDUCE, A, 64)], {(REDUCE, A): ("same",)}),
    ([one(REDUCE, A, 64)], [], {(REDUCE, A): ("removed",)}),
    ([one(REDUCE, A, 64, count=3)], [one(REDUCE, A, 192)], {(REDUCE, A): ("combined",)}),
    ([one(REDUCE, A, 64)], [one(REDUCE, A, 16, count=4)], {(REDUCE, A): ("split",)}),
    ([one(REDUCE, A, 64, count=8)], [one(REDUCE, A, 64, count=7), one(REDUCE, A, 64)], {(REDUCE, A): ("peeled",)}),
    ([one(REDUCE, A, 64)] * 2, [one(REDUCE, A, 64)] * 2, {(REDUCE, A): ("same",)}),
    ([one(REDUCE, A, 64)], [one(REDUCE, A, 64, asynchronous=True)], {(REDUCE, A): ("async",)}),
    ([one(REDUCE, A, 8)] * 2, [one(REDUCE, A, 16, asynchronous=True)], {(REDUCE, A): ("combined", "async")}),
    ([], [one(REDUCE, A, 64)], {(REDUCE, A): ("unplanned",)}),
    ([one(REDUCE, A, 64)], [one(REDUCE, A, 65)], {(REDUCE, A): ("unplanned",)}),
    ([one(REDUCE, A, 64)], [one(REDUCE, B, 64)], {(REDUCE, A): ("removed",), (REDUCE, B): ("unplanned",)}),
    (
      [one(REDUCE, A, 64)],
      [one(REDUCE, ("?",), 64)],
      {(REDUCE, A): ("removed",), (REDUCE, ("?",)): ("unplanned",)},
    ),
    (
      [one(REDUCE, A, 64)],
      [one(REDUCE, A, 64, dtype="f64", item_bytes=8)],  # nobody widens 32 bits
      {(REDUCE, A): ("unplanned",)},
    ),
    (
      [one(GATHER, A, 64, dtype="f8e4m3fn", item_bytes=1)],
      [one(GATHER, A, 64, dtype="f16", item_bytes=2)],
      {(GATHER, A): ("widened",)},
    ),
    (
      [one(SCATTER, A, 64)],
      [one(REDUCE, A, 64)],
      {(SCATTER, A): ("reduce_scatter_as_all_reduce",), (REDUCE, A): ("reduce_scatter_as_all_reduce",)},
    ),
    (
      [one(REDUCE, B, 64), one(SCATTER, A, 64, group_size=4)],
      [one(REDUCE, B, 16), one(SCATTER, A, 64, group_size=4)],
      {(REDUCE, B): ("reordered",), (SCATTER, A): ("same",)},
    ),
  ],
)
def test_rewrites_by_name(planned, actual, names):
  assert {(rewrite.kind, rewrite.axes): rewrite.names for rewrite in explain(planned, actual)} == names


def test_copies_that_rematerialisation_makes_are_recomputed_and_nothing_else_is():
  """Names as XLA gives them; the original may be gone, and one loop body may be walked twice."""

  def named(*names):
    return [dataclasses.replace(one(GATHER, A, 64), name=name) for name in names]

  def found(planned, actual):
    (rewrite,) = explain(named(*planned), named(*actual))
    return rewrite.names, rewrite.actual.operations

  assert found(["g.1", "g.2"], ["g.1", "g.1.remat", "g.2.remat", "g.2.remat2"]) == (("recomputed",), 4)
  assert found(["g.1", "g.1"], ["g.1", "g.1"]) == (("same",), 2)
  assert found(["g.1"], ["g.1", "g.11.remat"]) == (("unplanned",), 2)
  assert found(["g.1"], ["g.1", "g.1.clone"]) == (("unplanned",), 2)


def test_unplanned_is_flagged():
  (rewrite,) = explain([], [one(GATHER, A, 64)])
  assert not rewrite.planned_for
  assert dataclasses.asdict(rewrite.actual)["payload_bytes"] == 256
