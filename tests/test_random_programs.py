"""Nested loops, remat, calls, branches and collectives at random: counts equal those known by construction."""

import collections

import jax
import jax.numpy as jnp
import pytest
import random_programs
from compiled_modules import STAGES, TARGETS, mesh, modules_on
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from random_programs import AXES, blocks, counts, run

from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.elementwise import elementwise_work
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.rewrites import explain

ON_TARGETS = pytest.mark.parametrize("target", TARGETS)
WIDTHS = st.integers(1, 9)
PROGRAMS = {"cpu": 40, "tpu": 8, "cuda": 8}  # for accelerators a program takes about a second


def drawn(target, **strategies):
  """Calls a test with as many programs as its target gets."""

  def decorate(test):
    settings(max_examples=PROGRAMS[target], deadline=None, derandomize=True)(given(**strategies)(test))()

  return decorate


def payload(found):
  totals = collections.Counter()
  for c in found:
    totals[c.kind, "+".join(c.axes)] += c.payload_bytes * c.count
  return totals


def shape(on, dims, *axes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(on, PartitionSpec(*axes)))


@ON_TARGETS
def test_a_program_on_eight_devices(target):
  @drawn(target, program=blocks(collectives=True), rows=st.integers(1, 3), width=WIDTHS)
  def check(program, rows, width):
    rows *= max(AXES.values())  # an all-to-all deals rows out evenly
    on, matrices = mesh(target, **AXES), random_programs.weights(program, width)
    spec = PartitionSpec
    sharded = jax.shard_map(
      lambda x, flag, *matrices: run(program, x, list(matrices), flag),
      mesh=on,
      in_specs=(spec(tuple(AXES)), spec(), *[spec()] * len(matrices)),
      out_specs=spec(tuple(AXES)),
      check_vma=False,
    )
    x, flag = shape(on, (8 * rows, width), tuple(AXES)), shape(on, (), dtype=jnp.int32)
    made = modules_on(target, sharded, x, flag, *(shape(on, matrix.shape) for matrix in matrices))
    known = counts(program, rows, width)
    for stage in STAGES:
      assert matmul_flops(made[stage]).total == known.flops
    assert elementwise_work(made["partitioned"]).transcendentals == known.transcendentals
    planned, executed = (collectives(made[stage], AXES) for stage in STAGES)
    assert payload(planned) == known.payload
    assert all(rewrite.planned_for for rewrite in explain(planned, executed))


@ON_TARGETS
def test_a_gradient(target):
  """On TPU the product of two numbers is an elementwise operation, for it bears no name."""

  @drawn(target, program=blocks(collectives=False), rows=st.integers(1, 9), width=WIDTHS)
  def check(program, rows, width):
    matrices = random_programs.weights(program, width)

    def loss(x, matrices, flag):
      return jnp.sin(run(program, x, list(matrices), flag)).sum()

    made = modules_on(target, jax.grad(loss, (0, 1)), jnp.ones((rows, width)), matrices, jnp.int32(1))
    known = counts(program, rows, width, gradient=True)
    assert matmul_flops(made["partitioned"]).total == known.flops
    if min(rows, *(size for matrix in matrices for size in matrix.shape)) > 1:
      assert matmul_flops(made["optimised"]).total == known.flops
    elif target != "tpu":  # a dot with nothing to sum is a multiply, which every fusion that needs it may compute again
      assert matmul_flops(made["optimised"]).total >= known.flops
