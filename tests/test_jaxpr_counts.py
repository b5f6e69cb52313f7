"""Matmuls and collectives of a traced program equal hand arithmetic, and jax's own count where that has one."""

import collections
import functools

import compiled_modules
import jax
import jax.numpy as jnp
import pytest
import random_programs
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental.roofline import roofline
from jax.sharding import PartitionSpec as P
from random_programs import blocks

from jaxmoe.meshes.axes import DATA, EXPERT, TENSOR
from jaxmoe.xla.declared import AT_MOST, NOTHING, Declared
from jaxmoe.xla.jaxpr_counts import count
from jaxmoe.xla.unknown import UnknownOperation, UnknownTripCount

SQUARE = 2 * 8**3  # FLOPs of x @ x
SPLIT = P((DATA, EXPERT))
X = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def flops(function, *arguments, declared=NOTHING):
  return count(jax.jit(function).trace(*(arguments or (X,))).jaxpr, declared).flops


def times(body, number):
  return lambda x: lax.scan(lambda c, _: (body(c), None), x, None, length=number)[0]


@jax.custom_vjp
def twice(x):
  """Forward one product; its own backward does three."""
  return x @ x


twice.defvjp(lambda x: (twice(x), x), lambda x, g: (x @ (x @ (x @ g)),))


def either(x):
  with jax.named_scope("either"):
    return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


def until(x):
  with jax.named_scope("loop[expected=2.5,max=7]"):
    return lax.fori_loop(0, x[0, 0].astype(int), lambda _, c: c @ c, x)


def kernel(x):
  with jax.named_scope("kernel[expected=100,max=300,bytes=1]"):
    return lax.ragged_dot(x, x[None], jnp.array([8]))


PROGRAMS = {
  "one product": (lambda x: x @ x, 1),
  "scan of scan": (times(lambda c: times(lambda d: d @ d, 3)(c) @ c, 5), 20),
  "gradient": (jax.value_and_grad(lambda x: (x @ x).sum()), 3),  # forward, and one product for each operand
  "gradient alone": (jax.grad(lambda x: (x @ x).sum()), 2),  # whose forward nothing needs
  "recomputed": (jax.value_and_grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ x))(x).sum()), 4),
  "custom gradient, forward": (twice, 1),
  "custom gradient, backward": (jax.value_and_grad(lambda x: twice(x).sum()), 4),
  "the branch with the most": (either, 2),
  "batched": (jax.vmap(lambda row: row @ jnp.ones((8, 8))), 1),
  "a product of nothing": (lambda x: jnp.einsum("ab,cd->abcd", x, x), 8),  # 2 x 8^4
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_by_hand(name):
  program, products = PROGRAMS[name]
  assert flops(program) == products * SQUARE


def test_what_scopes_and_callers_declare():
  assert (flops(until), flops(until, declared=AT_MOST)) == (2.5 * SQUARE, 7 * SQUARE)
  assert (flops(kernel), flops(kernel, declared=AT_MOST)) == (100, 300)
  shares = Declared(branch_shares={"either": (0.75, 0.25)})  # false first: one product in three of four
  assert flops(either, declared=shares) == (0.75 * 1 + 0.25 * 2) * SQUARE


def test_a_kernel_counts_by_its_own_estimate():
  from jax.experimental import pallas as pl

  def copy(source, target):
    target[...] = source[...]

  estimate = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
  assert flops(pl.pallas_call(copy, out_shape=X, cost_estimate=estimate)) == 77
  with pytest.raises(UnknownOperation, match="pallas_call"):
    flops(pl.pallas_call(copy, out_shape=X))


def test_work_that_cannot_be_counted_is_an_error():
  with pytest.raises(UnknownTripCount, match="loop\\[expected"):
    flops(lambda x: lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ c, x))
  assert flops(lambda x: lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c - 1, x)) == 0
  with pytest.raises(UnknownOperation, match="conv_general_dilated"):
    flops(lambda x: lax.conv(x[None, None], x[None, None], (1, 1), "SAME"))
  with pytest.raises(UnknownOperation, match="outside shard_map"):
    count(jax.jit(lambda x: x @ x).trace(X).jaxpr, devices=2)


def test_without_loops_jax_counts_the_same():
  def layer(x):
    return jax.nn.softmax(x @ x.T) @ jnp.einsum("ab,bc->ac", x, x)

  for program in (layer, jax.grad(lambda x: layer(x).sum())):
    assert flops(program) == roofline(program)(X)[1].flops > 0


def mesh():
  return jax.make_mesh(
    (2, 2, 2), (DATA, EXPERT, TENSOR), devices=jax.devices()[:8], axis_types=(jax.sharding.AxisType.Auto,) * 3
  )


def moved(function, out=None):
  """(kind, axes) -> (payload bytes, count) of a function of a device's 4 x 8 floats, 128 bytes."""
  mapped = jax.shard_map(function, mesh=mesh(), in_specs=SPLIT, out_specs=SPLIT if out is None else out)
  traced = jax.jit(mapped).trace(jax.ShapeDtypeStruct((16, 8), jnp.float32))
  found = count(traced.jaxpr, devices=8).collectives
  assert len({(one.kind, one.axes) for one in found}) == len(found)
  return {(one.kind, one.axes): (one.payload_bytes, one.count) for one in found}


COLLECTIVES = {
  "sum": (lambda x: lax.psum(x, (EXPERT, DATA)), P(), ("all-reduce", (DATA, EXPERT)), (128, 1)),
  "largest": (lambda x: lax.pmax(x, EXPERT), P(DATA), ("all-reduce", (EXPERT,)), (128, 1)),
  "gathered": (lambda x: lax.all_gather(x, EXPERT, tiled=True), None, ("all-gather", (EXPERT,)), (256, 1)),
  "scattered": (lambda x: lax.psum_scatter(x, DATA, tiled=True), None, ("reduce-scatter", (DATA,)), (128, 1)),
  "exchanged": (lambda x: lax.all_to_all(x, EXPERT, 0, 0, tiled=True), None, ("all-to-all", (EXPERT,)), (128, 1)),
  "handed on": (lambda x: lax.ppermute(x, DATA, [(0, 1)]), None, ("collective-permute", (DATA,)), (128, 1)),
  "over two axes, one changes": (
    lambda x: lax.ppermute(x, (DATA, EXPERT), [(0, 1), (2, 3)]), None, ("collective-permute", (EXPERT,)), (128, 1)
  ),
  "in a loop": (
    lambda x: times(lambda c: lax.ppermute(c, DATA, [(0, 1)]), 6)(x), None, ("collective-permute", (DATA,)), (128, 6)
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_by_hand(name):
  function, out, key, amounts = COLLECTIVES[name]
  assert moved(function, out) == {key: amounts}


def test_what_moves_nothing_is_left_out():
  assert moved(lambda x: lax.ppermute(x, DATA, [(0, 0), (1, 1)])) == {}
  assert moved(lambda x: x + lax.axis_index(DATA) + lax.pcast(jnp.ones(x.shape), DATA, to="varying")) == {}


def test_a_gradient_has_the_transposed_collectives():
  """Of a gather a scatter, and where a weight meets tokens, the sum of its gradient."""

  def loss(x, w):
    return lax.psum((lax.all_gather(x, EXPERT, tiled=True) @ w).sum(), (DATA, EXPERT))

  mapped = jax.shard_map(
    jax.value_and_grad(loss, (0, 1)),
    mesh=mesh(),
    in_specs=(P((DATA, EXPERT)), P()),
    out_specs=(P(), (P((DATA, EXPERT)), P())),
  )
  traced = jax.jit(mapped).trace(jax.ShapeDtypeStruct((16, 8), jnp.float32), X)
  found = count(traced.jaxpr, devices=8)
  by_kind = {one.kind: one.payload_bytes for one in found.collectives}
  assert by_kind["reduce-scatter"] == 256 and by_kind["all-gather"] == 256
  sums = {one.payload_bytes for one in found.collectives if one.kind == "all-reduce"}
  assert 256 in sums  # of the weight's 8 x 8 floats
  assert found.flops == 3 * SQUARE


def test_parts_are_told_apart_by_scope():
  def program(x):
    with jax.named_scope("attention"):
      y = times(lambda c: c @ c, 3)(x)
    with jax.named_scope("head"):
      return y @ x + functools.partial(jnp.dot, x)(x)

  # Of each product a gradient for either operand.
  found = count(jax.jit(jax.value_and_grad(lambda x: program(x).sum())).trace(X).jaxpr).by_part(
    ("attention", "head", "experts")
  )
  assert found == {"attention": 9 * SQUARE, "head": 6 * SQUARE, "experts": 0, "other": 0}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(program=blocks(collectives=True), rows=st.integers(1, 3), width=st.integers(1, 9))
def test_random_programs_count_as_they_were_built(program, rows, width):
  """Nested loops, remat, calls, branches and collectives; without `check_vma` a sum is jax's plain `psum`."""
  rows *= max(random_programs.AXES.values())  # an all-to-all deals rows out evenly
  matrices, split = random_programs.weights(program, width), P(tuple(random_programs.AXES))
  mapped = jax.shard_map(
    lambda x, flag, *matrices: random_programs.run(program, x, list(matrices), flag),
    mesh=compiled_modules.mesh("cpu", **random_programs.AXES),
    in_specs=(split, P(), *[P()] * len(matrices)),
    out_specs=split,
    check_vma=False,
  )
  traced = jax.jit(mapped).trace(jnp.zeros((8 * rows, width)), jnp.int32(1), *matrices)
  found, known = count(traced.jaxpr, devices=8), random_programs.counts(program, rows, width)
  moved = collections.Counter()
  for one in found.collectives:
    moved[one.kind, "+".join(one.axes)] += one.payload_bytes * one.count
  assert (found.flops, moved) == (known.flops, known.payload)
