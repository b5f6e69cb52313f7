"""Kernels that a compiler cannot look into count by their declared work, on every target, and never as zero."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import WITH_CUDA, WITH_TPU, mesh, modules_on
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.kernels import ragged, work
from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.grouped_matmul import grouped_matmul
from jaxmoe.xla.declared import AT_MOST
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.traffic import memory_traffic
from jaxmoe.xla.walk import UnknownOperation

DEVICES, N, E, D, F = 8, 512, 4, 256, 512  # rows and experts of one device
SPEC = PartitionSpec
KERNELS = [
  ("cpu", "cpu_tiles"),
  pytest.param("tpu", "tpu", marks=WITH_TPU),
  pytest.param("tpu", "ragged", marks=WITH_TPU),
  pytest.param("cuda", "hopper", marks=WITH_CUDA),
]


def shards(on, shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(on, SPEC("x")))


def on_eight(target, function, *shapes):
  """The modules of `function` on each of eight devices; shapes are one device's."""
  on = mesh(target, x=DEVICES)
  with jax.set_mesh(on):
    sharded = jax.shard_map(lambda *arrays: function(*(x[0] for x in arrays)), in_specs=SPEC("x"), out_specs=SPEC("x"))
    return modules_on(target, sharded, *(shards(on, (DEVICES, *shape), dtype) for shape, dtype in shapes))


@pytest.mark.parametrize("target, implementation", KERNELS)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_feed_forward_with_gradients(target, implementation, batch):
  """Three matmuls forward and six backward; half of the rows are expected, and all may come. Under `vmap` as often."""

  def both_passes(x, gate, up, down, sizes):
    options = {"activation": "silu", "implementation": implementation, "expected_rows": N / 2}
    y, pull = jax.vjp(lambda *arrays: expert_ffn(*arrays, sizes, **options), x, gate, up, down)
    return y, pull(y)

  def loss(*operands):
    run = jax.vmap(both_passes, in_axes=(0, None, None, None, 0)) if batch else both_passes
    return jax.tree.map(lambda array: array[None], run(*operands))

  b, times = jnp.bfloat16, math.prod(batch)
  weights = ((E, D, F), b), ((E, D, F), b), ((E, F, D), b)
  made = on_eight(target, loss, ((*batch, N, D), b), *weights, ((*batch, E), jnp.int32))
  with work.expecting(N / 2):
    rows = work.multiplied_rows(implementation, N, E)
  assert rows == (N / 2, N) or implementation == "cpu_tiles"
  for module in made.values():
    assert matmul_flops(module).total == pytest.approx(times * 9 * 2 * D * F * rows.expected, rel=1e-5)
    assert matmul_flops(module, AT_MOST).total == pytest.approx(times * 9 * 2 * D * F * rows.most, rel=1e-5)


@WITH_TPU
def test_the_compiler_keeps_the_name_of_every_ragged_dot():
  """Of one by transposed weights too, which it would otherwise forget, see `kernels/ragged.py`."""
  b = jnp.bfloat16
  arguments = ((N, F), b), ((E, D, F), b), ((E,), jnp.int32)
  module = on_eight("tpu", lambda *a: ragged.matmul_transposed(*a)[None], *arguments)["optimised"]
  kernels = [x for c in module.computations.values() for x in c.instructions if x.name.startswith("ragged-dot-none")]
  assert [bool(re.search(r"/kernel\[expected=.*\]/", x.op_name)) for x in kernels] == [True]


@pytest.mark.parametrize("library", ["__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8", "__onednn$matmul"])
@pytest.mark.parametrize("right", ["32,48", "48,32"])
def test_a_librarys_matmul_by_its_shapes(right, library):
  """With room to work in beside the result, as cuBLAS has it."""
  module = Module.from_text(f"""HloModule m
ENTRY main {{
  x = bf16[5,16,32] parameter(0)
  w = bf16[5,{right}] parameter(1)
  both = (bf16[5,16,48], s8[4096]) custom-call(x, w), custom_call_target="{library}"
  ROOT y = bf16[5,16,48] get-tuple-element(both), index=0
}}""")
  assert matmul_flops(module).total == 2 * 5 * 16 * 48 * 32


LONG_KERNEL = """HloModule m

%fused (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %k = f32[8]{0} custom-call(%x), custom_call_target="k", metadata={op_name="SCOPE/k"}, backend_config={"a": {
"bytes_accessed":64,
"flops":[
1
]
}, "format": 1}
}, execution_thread="other"

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} fusion(%x.1), kind=kCustom, calls=%fused
}"""


def test_a_kernels_configuration_may_take_several_lines():
  """As the TPU compiler leaves it within a fusion; each computation still ends where it ends."""
  module = Module.from_canonical(LONG_KERNEL.replace("SCOPE", SCOPE))
  assert [len(c.instructions) for c in module.computations.values()] == [2, 2]
  assert matmul_flops(module).total == 2


EQUAL_KERNELS = """HloModule equal_kernels
ENTRY main {
  x = f32[8,8] parameter(0)
  y = f32[8,8] custom-call(x), custom_call_target="k", backend_config="code", metadata={op_name="jit(f)/SCOPE/k"}
  z = f32[8,8] custom-call(y), custom_call_target="k", backend_config="code", metadata={op_name="jit(f)/OTHER/k"}
  ROOT LOST
}"""
SCOPE, OTHER = "experts/kernel[expected=2,max=7,bytes=300]", "experts/kernel[expected=3,max=7,bytes=300]"
LOST = (
  'w = f32[8,8] custom-call(z), custom_call_target="k", backend_config="code", metadata={op_name="k" source_line=3}'
)


def equal_kernels(lost=LOST, other=SCOPE):
  return Module.from_text(EQUAL_KERNELS.replace("SCOPE", SCOPE).replace("OTHER", other).replace("LOST", lost))


def test_a_kernel_that_lost_its_name_does_what_its_equals_declare():
  assert matmul_flops(equal_kernels()).total == 3 * 2
  assert matmul_flops(equal_kernels(), AT_MOST).total == 3 * 7
  assert memory_traffic(equal_kernels()).total == 3 * 300


@pytest.mark.parametrize(
  "here, there",
  [
    ('backend_config="code"', 'backend_config="other code"'),
    ('target="k"', 'target="another"'),
    ("w = f32[8,8]", "w = f32[8,4]"),
    ("(z)", "(z, z)"),
    ('op_name="k"', 'op_name="jit(f)/router/k"'),  # it has a name, and that declares nothing
  ],
)
def test_no_other_kernel_speaks_for_it(here, there):
  with pytest.raises(UnknownOperation, match=r"custom call '(k|another)' \(w, .*\) declares no work; declare it"):
    matmul_flops(equal_kernels(LOST.replace(here, there)))


def test_equals_that_differ_do_not_speak_for_it():
  differing = r"\(w, k\) declares no work, and kernels equal to it .* differing .*expected=2,.*expected=3,"
  with pytest.raises(UnknownOperation, match=differing):
    matmul_flops(equal_kernels(other=OTHER))


RECOMPUTED = """HloModule recomputed
product {
  a = f32[8,8] parameter(0)
  ROOT dot.1 = f32[8,8] dot(a, a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
product.2 {
  a.2 = f32[8,8] parameter(0)
  ROOT dot.2 = f32[8,8] dot(a.2, a.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY main {
  x = f32[8,8] parameter(0)
  one = f32[8,8] fusion(x), kind=kLoop, calls=product
  FIRST = f32[8,8] fusion(one), kind=kLoop, calls=product
  again.remat2.1 = f32[8,8] fusion(FIRST), kind=kLoop, calls=product.2
  ROOT all = (f32[8,8], f32[8,8]) tuple(FIRST, again.remat2.1)
}"""


@pytest.mark.parametrize("first", ["again", "again.remat"])
def test_what_the_compiler_computes_again_is_told_apart(first):
  """The original may be gone: of an operation and its copies all but one are added."""
  count = matmul_flops(Module.from_text(RECOMPUTED.replace("FIRST", first)))
  assert (count.total, count.recomputed) == (3 * 2 * 8**3, 2 * 8**3)


@WITH_CUDA
@pytest.mark.parametrize("manual", [(), ("x",), ("x", "y")])
def test_hopper_refuses_what_the_compiler_would_split(manual):
  """It would gather all rows on every device; `shard_map` over all axes gives each its own."""
  on = mesh("cuda", x=2, y=4)
  shapes = ((8 * N, D), jnp.bfloat16), ((E, D, F), jnp.bfloat16), ((E,), jnp.int32)
  specs = SPEC(("x", "y")), SPEC(), SPEC()
  arrays = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(on, spec))
    for (shape, dtype), spec in zip(shapes, specs, strict=True)
  ]
  run = functools.partial(grouped_matmul, implementation="hopper")
  with jax.set_mesh(on):
    if manual:
      local = SPEC(manual)
      run = jax.shard_map(run, in_specs=(local, SPEC(), SPEC()), out_specs=local, axis_names=set(manual))
    lowered = functools.partial(jax.jit(run).lower, *arrays)
    if len(manual) == 2:
      assert "all-gather" not in lowered().compile().as_text()
      return
    with pytest.raises(NotImplementedError, match=r"one device's rows and weights, .* splits over several devices"):
      lowered()


@WITH_CUDA
def test_a_program_that_the_compiler_makes_smaller():
  """Six results of 34 GB are kept for the way back, on a GPU of 141 GB."""
  T, D, L = 2**24, 1024, 6

  def program(x, w):
    kept = [x := jnp.sin(x @ w) for _ in range(L)]
    for y in reversed(kept):
      x = jnp.cos((x * y) @ w)
    return x.sum()

  shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((T, D), (D, D)))
  count = matmul_flops(modules_on("cuda", program, *shapes)["optimised"])
  assert count.recomputed > 0
  assert count.total - count.recomputed == 2 * L * 2 * T * D * D
