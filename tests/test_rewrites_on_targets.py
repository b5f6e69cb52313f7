"""Rewrites that the compilers for TPU and NVIDIA do, each shown by a program that makes them do it."""

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import SIZES, WITH_CUDA, WITH_TPU, mesh, modules_on, two_layers
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.report.rules import REWRITES
from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.rewrites import explain
from jaxmoe.xla.totals import totals

REDUCE, SCATTER, GATHER, PERMUTE = "all-reduce", "reduce-scatter", "all-gather", "collective-permute"


def explained(made):
  """(kind, axes) -> names, and the totals of the optimised module."""
  sides = [collectives(made[stage], SIZES) for stage in ("partitioned", "optimised")]
  return {(r.kind, r.axes): r.names for r in explain(*sides)}, totals(sides[1])


def everywhere(target, body, shape, dtype):
  """On every device the whole argument."""
  grid = mesh(target, **SIZES)
  mapped = jax.shard_map(
    body, mesh=grid, in_specs=PartitionSpec(), out_specs=PartitionSpec(tuple(SIZES)), check_vma=False
  )
  x = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(grid, PartitionSpec()))
  return explained(modules_on(target, mapped, x))


@WITH_TPU
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float8_e4m3fn, jnp.int8], ids=lambda dtype: dtype.__name__)
def test_tpu_packs_sums_of_narrow_numbers_into_words(dtype):
  """Elements as planned, as many bytes, sent as 32-bit words; and the scatter is a sum of all."""

  def body(x):
    return lax.psum_scatter(lax.all_gather(lax.psum(x, "x"), "y", tiled=True), "y", tiled=True)

  names, found = everywhere("tpu", body, (1024, 512), dtype)
  assert names[REDUCE, ("x",)] == ("packed",)
  assert names[REDUCE, ("y",)] == names[SCATTER, ("y",)] == ("reduce_scatter_as_all_reduce", "packed")
  assert found[REDUCE, ("x",)].payload_bytes == 1024 * 512 * jnp.dtype(dtype).itemsize


@WITH_TPU
def test_tpu_sends_a_whole_tile_of_words():
  """20 x 100 f16 lie in tiles of 8 x 128, as pairs in words: 24 x 128 elements."""
  names, found = everywhere("tpu", lambda x: lax.psum_scatter(x, "y", tiled=True), (20, 100), jnp.float16)
  expected = ("reduce_scatter_as_all_reduce", "padded", "packed")
  assert names == {(REDUCE, ("y",)): expected, (SCATTER, ("y",)): expected}
  assert (found[REDUCE, ("y",)].elements, found[REDUCE, ("y",)].padding) == (24 * 128, 24 * 128 - 2000)


@WITH_TPU
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16])
def test_tpu_does_a_small_reduce_scatter_as_an_all_reduce(dtype):
  names, _ = everywhere("tpu", lambda x: lax.psum_scatter(x, "y", tiled=True), (16, 8), dtype)
  assert set(names.values()) == {("reduce_scatter_as_all_reduce",)}


@WITH_TPU
def test_tpu_moves_a_sum_behind_the_scatter():
  """A quarter of it is left to add."""

  def body(x):
    return lax.psum_scatter(lax.psum(x, "x"), "y", tiled=True)

  names, found = everywhere("tpu", body, (1024, 512), jnp.bfloat16)
  assert names == {(REDUCE, ("x",)): ("reordered",), (SCATTER, ("y",)): ("same",)}
  assert found[REDUCE, ("x",)].elements == 1024 * 512 / 4


@WITH_TPU
@pytest.mark.parametrize("width, hidden, over", [(520, 2080, "y"), (1040, 2048, "y")])
def test_tpu_pads_shares_and_hands_on_the_rest(width, hidden, over):
  """Shares are whole tiles of rows: what they have too much, neighbours pass on."""
  names, found = explained(two_layers("tpu", width, hidden, over=over))
  reduce, permute = found[REDUCE, ("y",)], found[PERMUTE, ("y",)]
  assert "padded" in names[REDUCE, ("y",)] and names[PERMUTE, ("y",)] == ("halo", "async")
  assert reduce.elements == 2 * width * hidden + reduce.padding
  assert 0 < permute.elements < reduce.padding


@WITH_TPU
def test_tpu_gathers_what_a_matmul_rounds_anyway_in_16_bits():
  names, found = explained(two_layers("tpu", dtype=jnp.float32))
  assert names[GATHER, ("y",)] == ("narrowed", "async")
  gathers = found[GATHER, ("y",)]
  assert 2 * gathers.elements <= gathers.payload_bytes < 4 * gathers.elements


@WITH_CUDA
def test_nvidia_scatters_a_sum_of_which_each_keeps_its_part():
  names, found = explained(two_layers("cuda"))
  expected = ("all_reduce_as_reduce_scatter", "combined")
  assert names[REDUCE, ("y",)] == names[SCATTER, ("y",)] == expected
  assert (REDUCE, ("y",)) not in found and found[SCATTER, ("y",)].elements == 2 * 512 * 2048


@WITH_CUDA
def test_nvidia_peels_a_loop():
  """Of seven scatters the loop does six, one comes after it."""

  def loss(weights, x):
    def layer(x, w):
      return jax.nn.relu(x @ lax.all_gather(w, "y", tiled=True)), None

    return jnp.sum(lax.scan(layer, x, weights)[0].astype(jnp.float32))

  grid = mesh("cuda", **SIZES)
  mapped = jax.shard_map(
    jax.grad(loss), mesh=grid, in_specs=PartitionSpec(), out_specs=PartitionSpec(None, tuple(SIZES)), check_vma=False
  )
  whole = NamedSharding(grid, PartitionSpec())
  shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=whole) for shape in ((7, 128, 512), (1024, 512))]
  names, found = explained(modules_on("cuda", mapped, *shapes))
  assert names[SCATTER, ("y",)] == ("peeled", "async")
  assert (found[SCATTER, ("y",)].operations, found[SCATTER, ("y",)].asynchronous) == (7, 6)


SHOWN = {
  "same", "widened", "combined",  # on CPU, test_rewrites.py
  "removed", "split",  # on counts, test_rewrites.py
  "packed", "padded", "reduce_scatter_as_all_reduce", "reordered", "halo", "async", "narrowed",  # on TPU, above
  "all_reduce_as_reduce_scatter", "peeled",  # on NVIDIA, above
  "recomputed",  # on counts, test_rewrites.py
  "hierarchical",  # on TPU slices, test_between_slices.py
  "unplanned",  # planted, test_unplanned.py
}  # fmt: skip


def test_every_name_is_explained_and_shown():
  assert REWRITES.keys() == SHOWN
