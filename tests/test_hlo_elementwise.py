"""Elementwise FLOPs and transcendentals against XLA's own analysis without loops, and against hand arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import STAGES, modules
from jax import lax
from loop_free import LOOP_FREE

from jaxmoe.xla import opcodes
from jaxmoe.xla.declared import Declared
from jaxmoe.xla.elementwise import elementwise_work
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module

X = jnp.ones((64, 32))


def work(function, *arguments, stage="partitioned"):
  found = elementwise_work(modules(function, *arguments)[stage])
  return found.flops, found.transcendentals


@pytest.mark.parametrize("name", LOOP_FREE)
def test_as_xla_counts_without_loops(name):
  function, *arguments = LOOP_FREE[name]
  program = jax.jit(function).lower(*arguments).compile()
  module, counted = Module.from_compiled(program), program.cost_analysis() or {}
  found = elementwise_work(module)
  assert found.flops + matmul_flops(module).total == counted.get("flops", 0)
  assert found.transcendentals == counted.get("transcendentals", 0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
  "function, flops, transcendentals",
  [
    (lambda x: x + x * x, 2 * 2048, 0),
    (lambda x: jnp.exp(jnp.sin(x)), 0, 2 * 2048),
    (lambda x: jnp.where(x > 0, x, -x), 3 * 2048, 0),  # compare, negate, select
    (lambda x: x.sum(), 2047, 0),  # as many sums as elements, less one
    (lambda x: x.max(0), 63 * 32, 0),
    (lambda x: lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x), x), None, 5 * 2048),
    (lambda x: x @ x.T, 0, 0),
    (lambda x: jnp.einsum("bk,bk->b", x, x), 0, 0),  # a multiply and a reduce that stand for a dot
    (lambda x: x.astype(jnp.bfloat16), 2048, 0),
  ],
)
def test_by_hand(function, flops, transcendentals, stage):
  found = work(function, X, stage=stage)
  assert (found[0] if flops is not None else None, found[1]) == (flops, transcendentals)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loop_counts_as_often_as_it_runs(stage):
  def program(times):
    return lambda x: lax.scan(lambda x, _: (jnp.tanh(x) * 3, None), x, None, length=times)[0]

  few, many = (work(program(times), X, stage=stage) for times in (10, 20))
  assert many[1] - few[1] == 10 * 2048
  assert 0 <= many[0] - few[0] - 10 * 2048 <= 10 * 8  # a loop counts its iterations


def test_scopes():
  def program(x):
    with jax.named_scope("first"):
      x = jnp.exp(x)
    with jax.named_scope("second"):
      return x + x

  found = elementwise_work(modules(program, X)["partitioned"])
  assert found.by_scope == {"first": (0, 2048), "second": (2048, 0)}


def test_the_heaviest_branch_counts():
  def program(x):
    with jax.named_scope("slot"):
      return lax.cond(x[0, 0] > 0, lambda x: jnp.exp(jnp.exp(x)), lambda x: x, x)

  module = modules(program, X)["partitioned"]
  assert elementwise_work(module).transcendentals == 2 * 2048
  assert elementwise_work(module, Declared(branch_shares={"slot": (0.5, 0.5)})).transcendentals == 2048


def test_every_operation_is_of_one_class():
  classes = (
    opcodes.TRANSCENDENTALS, opcodes.ARITHMETIC, opcodes.APPLYING, opcodes.FREE, opcodes.MOVES, opcodes.MATMULS,
    opcodes.COLLECTIVES, opcodes.CALLS, {"custom-call"},
  )  # fmt: skip
  assert sum(map(len, classes)) == len(opcodes.KNOWN)
