"""Memory traffic against XLA's own analysis of programs without loops, and against hand arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import mesh, modules
from jax import lax
from jax.sharding import PartitionSpec
from loop_free import LOOP_FREE

from jaxmoe.kernels import expert_ffn, work
from jaxmoe.kernels.grouped_matmul import grouped_matmul
from jaxmoe.xla.declared import Declared
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.traffic import memory_traffic

X = jnp.ones((64, 32))
BYTES = 4
TABLE_ENTRY_BYTES = 4  # XLA counts the table of pointers of a tuple


def compiled(function, *arguments, **jit_options):
  return jax.jit(function, **jit_options).lower(*arguments).compile()


def traffic(function, *arguments, **jit_options):
  return memory_traffic(Module.from_compiled(compiled(function, *arguments, **jit_options)))


@pytest.mark.parametrize("name", LOOP_FREE)
def test_as_xla_counts_without_loops(name):
  function, *arguments = LOOP_FREE[name]
  program = compiled(function, *arguments)
  module = Module.from_compiled(program)
  tables = sum(len(x.operands) for x in module.entry.instructions if x.opcode == "tuple")
  expected = (program.cost_analysis() or {})["bytes accessed"] - TABLE_ENTRY_BYTES * tables
  assert memory_traffic(module).total == expected > 0


def test_a_matmul_by_hand():
  found = traffic(lambda x, w: x @ w, X, jnp.ones((32, 48)))
  assert (found.read_bytes, found.written_bytes) == (BYTES * (64 * 32 + 32 * 48), BYTES * 64 * 48)
  assert found.of_arguments == {0: BYTES * 64 * 32, 1: BYTES * 32 * 48}


def test_a_scan_reads_of_stacked_weights_one_layer_at_a_time():
  def program(x, w_LDF):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_LDF)[0]

  L, T, D = 6, 8, 32
  found = traffic(program, jnp.ones((T, D)), jnp.ones((L, D, D)))
  weights, activations = BYTES * L * D * D, BYTES * L * T * D
  assert found.of_arguments[1] == weights
  # A slice may be copied before it is multiplied; never are all layers read in each iteration.
  assert weights + 4 * activations <= found.total <= 3 * weights + 6 * activations


def test_a_loop_counts_as_often_as_it_runs():
  def program(times):
    return lambda x: lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, None, length=times)[0]

  square = jnp.ones((32, 32))
  one, two, five = (traffic(program(times), square).total for times in (10, 20, 50))
  assert five - two == 3 * (two - one)
  # A matmul reads its operand once or twice and writes; a sine reads and writes; and there is the counter.
  assert 4 * square.nbytes <= (two - one) / 10 <= 5 * square.nbytes + 64


@pytest.mark.parametrize("donated", [False, True])
def test_a_cache_that_is_donated_is_updated_in_place(donated):
  def write(cache_TD, row_1D, at):
    return lax.dynamic_update_slice_in_dim(cache_TD, row_1D, at, 0)

  cache, row = jnp.ones((1024, 32)), jnp.ones((1, 32))
  total = traffic(write, cache, row, 7, donate_argnums=(0,) if donated else ()).total
  indices = total - 2 * row.nbytes - (0 if donated else 2 * cache.nbytes)
  assert 0 <= indices <= 24


def test_rows_that_are_gathered_are_all_that_is_read_of_a_table():
  table, ids = jnp.ones((1024, 32)), jnp.arange(5)
  found = traffic(lambda table, ids: jnp.sin(jnp.take(table, ids, axis=0, mode="clip")), table, ids)
  assert found.of_arguments == {0: 5 * 32 * BYTES, 1: ids.nbytes}
  assert found.total == 2 * 5 * 32 * BYTES + ids.nbytes


def test_what_is_sliced_after_arithmetic_is_read_in_slices_too():
  found = traffic(lambda x, i: lax.dynamic_slice_in_dim(jnp.sin(x) + x, i, 4), X, 3)
  assert found.of_arguments[0] == 4 * 32 * BYTES


def test_copies_of_weights_in_another_dtype_are_reads_of_weights():
  def program(x, w_LDF):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w.astype(x.dtype)), None), x, w_LDF)[0]

  w = jnp.ones((6, 32, 32), jnp.float8_e4m3fn)
  found = traffic(program, jnp.ones((8, 32)), w)
  assert found.of_arguments[1] >= w.nbytes


def test_scopes():
  def program(x, w):
    with jax.named_scope("first"):
      x = x @ w
    with jax.named_scope("second"):
      return x @ w

  found = memory_traffic(modules(program, X, jnp.ones((32, 32)))["partitioned"])
  one = BYTES * (2 * 64 * 32 + 32 * 32)
  assert found.by_scope == {"first": one, "second": one}
  assert found.within("first") == one


def test_the_branch_that_moves_most_counts():
  def program(x):
    with jax.named_scope("slot"):
      return lax.cond(x[0, 0] > 0, lambda x: x[::-1] @ x.T, lambda x: jnp.zeros((64, 64)), x)

  module = Module.from_compiled(compiled(program, X))
  most, share = memory_traffic(module), memory_traffic(module, Declared(branch_shares={"slot": (1.0, 0.0)}))
  assert most.bound > share.total - (most.total - most.bound)
  assert share.bound == 0


def test_collectives_read_and_write_their_own_buffers():
  spec = PartitionSpec
  sharded = jax.shard_map(
    lambda x: lax.all_gather(x, "x", tiled=True), mesh=mesh(x=8), in_specs=spec("x"), out_specs=spec(), check_vma=False
  )
  found = memory_traffic(modules(sharded, X)["optimised"])
  assert found.total >= X.nbytes + X.nbytes // 8
  assert found.of_arguments[0] >= X.nbytes // 8


FUSED = """HloModule m
fused {{
  cache = f32[64,32] parameter(0)
  row = f32[2,32] parameter(1)
  i = s32[] parameter(2)
  zero = s32[] constant(0)
  twice = f32[2,32] add(row, row)
  {body}
}}
ENTRY main {{
  cache = f32[64,32] parameter(0)
  row = f32[2,32] parameter(1)
  i = s32[] parameter(2)
  ROOT y = {result} fusion(cache, row, i), kind=kLoop, calls=fused
}}"""
UPDATE = "dynamic-update-slice(cache, twice, i, zero)"
ROW, CACHE = 2 * 32 * BYTES, 64 * 32 * BYTES
FUSIONS = {
  "updated in place": ("f32[64,32]", f"ROOT y = f32[64,32] {UPDATE}", 0, ROW),
  "renamed": ("f32[2048]", f"y = f32[64,32] {UPDATE}\n  ROOT z = f32[2048] bitcast(y)", 0, ROW),
  "not in place, for it is computed before": (
    "f32[64,32]", f"c = f32[64,32] negate(cache)\n  ROOT y = f32[64,32] {UPDATE.replace('cache', 'c')}", CACHE, CACHE,
  ),
  "not in place, for it is computed with": (
    "f32[64,32]", f"y = f32[64,32] {UPDATE}\n  ROOT z = f32[64,32] negate(y)", CACHE, CACHE,
  ),
  "beside a second result": (
    "(f32[64,32], f32[2,32])", f"y = f32[64,32] {UPDATE}\n  ROOT z = (f32[64,32], f32[2,32]) tuple(y, twice)",
    0, 2 * ROW,
  ),
  "one slice": ("f32[3,32]", "ROOT y = f32[3,32] slice(cache), slice={[1:4], [0:32]}", 3 * 32 * BYTES, 3 * 32 * BYTES),
  "two slices": (
    "f32[3,32]",
    "a = f32[3,32] slice(cache), slice={[1:4], [0:32]}\n  b = f32[3,32] slice(cache), slice={[5:8], [0:32]}\n"
    "  ROOT y = f32[3,32] add(a, b)", 2 * 3 * 32 * BYTES, 3 * 32 * BYTES,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_by_hand(name):
  result, body, read_of_cache, written = FUSIONS[name]
  found = memory_traffic(Module.from_text(FUSED.format(result=result, body=body)))
  assert found.of_arguments.get(0, 0) == read_of_cache
  assert found.written_bytes == written


def test_an_asynchronous_fusion_writes_what_the_same_fusion_writes():
  text = FUSED.format(result="f32[64,32]", body=f"ROOT y = f32[64,32] {UPDATE}")
  started = "started = ((f32[64,32], f32[2,32], s32[]), f32[64,32], u32[]) fusion-start(cache, row, i)"
  text = text.replace("ROOT y = f32[64,32] fusion(cache, row, i)", started)
  text = text.replace("calls=fused\n}", "calls=fused\n  ROOT y = f32[64,32] fusion-done(started)\n}")
  assert memory_traffic(Module.from_text(text)).written_bytes == ROW


OPERATIONS = {
  "gather": (
    "s32[2,1] constant({{0},{3}})\n  ROOT z = f32[2,4] gather(x, y), offset_dims={1}, collapsed_slice_dims={0},"
    " start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}", 2 * 32 + 8,
  ),
  "slice": ("f32[2,4] slice(x), slice={[0:2], [0:4]}\n  ROOT z = f32[8] bitcast(y)", 2 * 32),
  "copy-start": ("(f32[8,4], f32[8,4], u32[]) copy-start(x)\n  ROOT z = f32[8,4] copy-done(y)", 2 * 128),
  "all-gather-start": (
    "(f32[8,4], f32[32,4]) all-gather-start(x), replica_groups={{0,1,2,3}}, dimensions={0}\n"
    "  ROOT z = f32[32,4] all-gather-done(y)", 128 + 512,
  ),
  "all-reduce-start": (
    "f32[8,4] all-reduce-start(x), replica_groups={{0,1,2,3}}, to_apply=add\n  ROOT z = f32[8,4] all-reduce-done(y)",
    2 * 128,
  ),
  "collective-permute-start": (
    "(f32[8,4], f32[8,4], u32[], u32[]) collective-permute-start(x), source_target_pairs={{0,1}}\n"
    "  ROOT z = f32[8,4] collective-permute-done(y)", 2 * 128,
  ),
  "broadcast": ("f32[2,8,4] broadcast(x), dimensions={1,2}\n  ROOT z = f32[64] bitcast(y)", 128 + 256),
  "on the chip": ("f32[8,4]{1,0:S(1)} copy(x)\n  ROOT z = f32[8,4] negate(y)", 128 + 128),
  "nothing": ("f32[32] bitcast(x)\n  ROOT z = (f32[32], f32[32]) tuple(y, y)", 0),
}  # fmt: skip
ADD = "add {\n  a = f32[] parameter(0)\n  b = f32[] parameter(1)\n  ROOT c = f32[] add(a, b)\n}\n"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_by_hand(name):
  body, total = OPERATIONS[name]
  text = f"HloModule m, num_partitions=4\n{ADD}ENTRY main {{\n  x = f32[8,4] parameter(0)\n  y = {body}\n}}"
  assert memory_traffic(Module.from_text(text)).total == total


KERNEL = """HloModule kernel
ENTRY main {
  x = f32[64,32] parameter(0)
  w = f32[4,32,16] parameter(1)
  ROOT y = f32[64,16] custom-call(x, w), custom_call_target="k", metadata={op_name="jit(f)/SCOPE/pallas_call"}
}"""


def test_a_kernel_moves_what_it_declares():
  found = memory_traffic(Module.from_text(KERNEL.replace("SCOPE", "experts/kernel[expected=1,max=2,bytes=9000]")))
  assert (found.total, found.written_bytes) == (9000, 64 * 16 * BYTES)
  silent = memory_traffic(Module.from_text(KERNEL.replace("SCOPE", "experts/kernel[expected=1,max=2]")))
  assert silent.total == BYTES * (64 * 32 + 4 * 32 * 16 + 64 * 16)


def test_a_grouped_matmul_declares_its_bytes_by_hand():
  """Half the rows, so not all experts: 64 rows of 32 and 16 numbers, 4 experts of 32 x 16."""
  with work.expecting(3):
    expected = 3 * 32 * BYTES + (1 - 0.75**3) * 4 * 32 * 16 * BYTES + 64 * 16 * BYTES
    found = work.kernel_bytes(
      64, 4, row_bytes=32 * BYTES, weight_bytes=4 * 32 * 16 * BYTES, result_bytes=64 * 16 * BYTES
    )
  assert found == pytest.approx(expected)


# The tile loop copies each expert's weights once before its tiles, and reads results back to write part of a tile.
TILE_LOOP_FACTOR = 6


@pytest.mark.parametrize("N, E, D, F", [(512, 8, 64, 128), (2048, 4, 128, 64)])
def test_the_tile_loop_moves_little_more_than_a_kernel_would_declare(N, E, D, F):
  x, w, sizes = jnp.ones((N, D)), jnp.ones((E, D, F)), jnp.full(E, N // E, jnp.int32)
  found = traffic(lambda *x: grouped_matmul(*x, implementation="cpu_tiles"), x, w, sizes).total
  declared = work.kernel_bytes(N, E, row_bytes=BYTES * D, weight_bytes=w.nbytes, result_bytes=BYTES * N * F)
  assert declared <= found <= TILE_LOOP_FACTOR * declared


@pytest.mark.parametrize("rows", [None, 100])
def test_expected_rows_decide_the_tile_loops_traffic(rows):
  N, E, D, F = 1024, 8, 64, 128
  x, gate, down = jnp.ones((N, D)), jnp.ones((E, D, F)), jnp.ones((E, F, D))
  sizes = jnp.full(E, N // E, jnp.int32)

  def program(x, gate, down, sizes):
    return expert_ffn.expert_ffn(
      x, gate, gate, down, sizes, activation="silu", implementation="cpu_tiles", expected_rows=rows
    )

  found = traffic(program, x, gate, down, sizes).total
  weights = 3 * gate.nbytes
  moved = (N if rows is None else rows) * BYTES * (2 * D + 4 * F)
  zeros = N * BYTES * (3 * F + D)  # results start as zeros
  assert weights + moved <= found <= TILE_LOOP_FACTOR * (weights + moved + zeros)
