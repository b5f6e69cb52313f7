"""Matmul FLOPs against hand arithmetic: 2 x result elements x contracted elements, each matmul once."""

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import STAGES, mesh, modules
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.walk import Declared


def test_scopes_and_their_parts():
  def loss(x, w):
    @jax.checkpoint
    def layer(x, _):
      with jax.named_scope("layer"):
        with jax.named_scope("attention"):
          x = jnp.sin(x @ w)
        with jax.named_scope("experts"):
          x = jnp.sin(x @ w)
      return x, None

    x, _ = lax.scan(layer, x, None, length=5)
    with jax.named_scope("head"):
      return jnp.sin(x @ w).sum()

  x, w = jnp.ones((8, 16)), jnp.ones((16, 16))
  count = matmul_flops(modules(jax.grad(loss, (0, 1)), x, w)["partitioned"])
  one = 2 * 8 * 16 * 16
  assert count.by_scope == {
    "head": 3 * one,
    "layer/attention": 5 * 4 * one,  # forward, recomputed, and two of backward
    "layer/experts": 5 * 4 * one,
  }
  assert count.within("layer") == 40 * one
  assert count.within("experts") == 20 * one
  assert count.total == 43 * one


def test_scopes_around_calls_of_one_function():
  inner = jax.jit(lambda x: jnp.sin(x @ x))

  def program(x):
    with jax.named_scope("first"):
      x = inner(x)
    with jax.named_scope("second"):
      return inner(inner(x))

  count = matmul_flops(modules(program, jnp.ones((8, 8)))["partitioned"])
  assert count.by_scope == {"first": 2 * 8**3, "second": 2 * 2 * 8**3}


@pytest.mark.parametrize("stage", STAGES)
def test_shard_map_counts_one_device(stage):
  def local(x, w):
    with jax.named_scope("dense"):
      return lax.psum(x @ w, "y")

  spec = PartitionSpec
  sharded = jax.shard_map(local, mesh=mesh(x=4, y=2), in_specs=(spec("x", "y"), spec("y")), out_specs=spec("x"))
  count = matmul_flops(modules(sharded, jnp.ones((64, 32)), jnp.ones((32, 24)))[stage])
  assert count.total == 2 * (64 // 4) * 24 * (32 // 2)
  assert count.within("dense") == count.total


@pytest.mark.parametrize("stage", STAGES)
def test_automatic_partitioning_counts_one_device(stage):
  x = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh(x=8), PartitionSpec("x")))
  w = jax.device_put(jnp.ones((32, 24)), NamedSharding(mesh(x=8), PartitionSpec()))
  assert matmul_flops(modules(lambda x, w: x @ w, x, w)[stage]).total == 2 * 8 * 24 * 32


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("padding, positions", [("VALID", 14 * 14 * 9), ("SAME", (3 * 16 - 2) ** 2)])
def test_convolution_leaves_padding_out(padding, positions, stage):
  image, kernel = jnp.ones((2, 3, 16, 16)), jnp.ones((8, 3, 3, 3))
  module = modules(lambda x, w: lax.conv(x, w, (1, 1), padding), image, kernel)[stage]
  assert matmul_flops(module).total == 2 * 2 * 8 * 3 * positions


@pytest.mark.parametrize("stage", STAGES)
def test_strided_grouped_convolution(stage):
  image, kernel = jnp.ones((2, 4, 17)), jnp.ones((8, 2, 3))
  module = modules(lambda x, w: lax.conv_general_dilated(x, w, (2,), "VALID", feature_group_count=2), image, kernel)[
    stage
  ]
  assert matmul_flops(module).total == 2 * 2 * 8 * 2 * 3 * 8  # 8 outputs along the image


def test_declared_custom_call():
  module = Module.from_text("""HloModule m
ENTRY main {
  x = f32[16,32] parameter(0)
  ROOT y = f32[16,48] custom-call(x), custom_call_target="my_kernel"
}""")
  assert matmul_flops(module, Declared(custom_call_flops={"my_kernel": 1234.0})).total == 1234


def test_dot_summed_in_steps_counts_once():
  module = Module.from_text("""HloModule m
add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}
product {
  a = f32[4,64] parameter(0)
  b = f32[4,64] parameter(1)
  ROOT p = f32[4,64] multiply(a, b), metadata={op_name="dot_general"}
}
ENTRY main {
  x = f32[4,64] parameter(0)
  zero = f32[] constant(0)
  p = f32[4,64] fusion(x, x), kind=kLoop, calls=product
  q = f32[4,8,8] bitcast(p)
  rows = f32[4,8] reduce(q, zero), dimensions={2}, to_apply=add, metadata={op_name="dot_general"}
  ROOT y = f32[4] reduce(rows, zero), dimensions={1}, to_apply=add, metadata={op_name="dot_general"}
}""")
  assert matmul_flops(module).total == 2 * 4 * 64


def test_ragged_dot_counts_every_row_once():
  module = Module.from_text("""HloModule m
ENTRY main {
  x = f32[64,32] parameter(0)
  w = f32[4,32,48] parameter(1)
  rows = s32[4] parameter(2)
  ROOT y = f32[64,48] ragged-dot(x, w, rows), lhs_contracting_dims={1}, rhs_contracting_dims={1},
    lhs_ragged_dims={0}, rhs_group_dims={0}
}""")
  assert matmul_flops(module).total == 2 * 64 * 32 * 48


ROUNDED_SUM = """HloModule rounded, num_partitions=1

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f16[3,5], y: f16[3,5]) -> f16[3] {
  %x = f16[3,5] parameter(0)
  %y = f16[3,5] parameter(1)
  %multiply.1 = f16[3,5] multiply(%x, %y), metadata={op_name="multiply.1"}
  %convert.1 = f32[3,5] convert(%multiply.1), metadata={op_name="convert.1"}
  %zero = f32[] constant(0)
  %reduce.1 = f32[3] reduce(%convert.1, %zero), dimensions={1}, to_apply=%add, metadata={op_name="reduce.1"}
  ROOT %dot = f16[3] convert(%reduce.1), metadata={op_name="jit(f)/attention/bk,bk->b/dot_general"}
}
"""


def test_a_dot_that_rounds_its_sum_bears_its_name_on_the_convert_only():
  """As TPU spells one-row dots of 16-bit operands: multiply, widen, reduce, round."""
  found = matmul_flops(Module.from_text(ROUNDED_SUM))
  assert found.by_scope == {"attention": 2 * 3 * 5}
