"""Nested loops, remat, calls, branches and collectives at random: counts equal those known by construction."""

import collections

import jax
import random_programs
from compiled_modules import STAGES, mesh, modules
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from random_programs import AXES, blocks, counts, run

from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.elementwise import elementwise_work
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.rewrites import explain

jnp = jax.numpy
WIDTHS = st.integers(1, 9)
BOUNDED = settings(max_examples=40, deadline=None, derandomize=True)


def payload(found):
  totals = collections.Counter()
  for c in found:
    totals[c.kind, "+".join(c.axes)] += c.payload_bytes * c.count
  return totals


@BOUNDED
@given(blocks(collectives=True), st.integers(1, 3), WIDTHS)
def test_a_program_on_eight_devices(program, rows, width):
  rows *= max(AXES.values())  # an all-to-all deals rows out evenly
  matrices = random_programs.weights(program, width)

  def local(x, flag, *matrices):
    return run(program, x, list(matrices), flag)

  spec = PartitionSpec
  sharded = jax.shard_map(
    local,
    mesh=mesh(**AXES),
    in_specs=(spec(tuple(AXES)), spec(), *[spec()] * len(matrices)),
    out_specs=spec(tuple(AXES)),
    check_vma=False,
  )
  made = modules(sharded, jnp.ones((8 * rows, width)), jnp.int32(1), *matrices)
  known = counts(program, rows, width)
  for stage in STAGES:
    assert matmul_flops(made[stage]).total == known.flops
  assert elementwise_work(made["partitioned"]).transcendentals == known.transcendentals
  planned, executed = (collectives(made[stage], AXES) for stage in STAGES)
  assert payload(planned) == known.payload
  assert all(rewrite.planned_for for rewrite in explain(planned, executed))


@BOUNDED
@given(blocks(collectives=False), st.integers(1, 9), WIDTHS)
def test_a_gradient(program, rows, width):
  matrices = random_programs.weights(program, width)

  def loss(x, matrices, flag):
    return jnp.sin(run(program, x, list(matrices), flag)).sum()

  made = modules(jax.grad(loss, (0, 1)), jnp.ones((rows, width)), matrices, jnp.int32(1))
  known = counts(program, rows, width, gradient=True)
  assert matmul_flops(made["partitioned"]).total == known.flops
  if min(rows, *(size for matrix in matrices for size in matrix.shape)) > 1:
    assert matmul_flops(made["optimised"]).total == known.flops
  else:  # a dot with nothing to sum is a multiply, which every fusion that needs it may compute again
    assert matmul_flops(made["optimised"]).total >= known.flops
