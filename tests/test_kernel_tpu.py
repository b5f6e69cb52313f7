"""The TPU kernel in the interpreter against the float64 loop, lowered for TPU, and compiled for TPUs without one."""

import functools
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels import tpu, tpu_blocks, tpu_rows
from jaxmoe.kernels.expert_ffn import expert_ffn

_spec = importlib.util.spec_from_file_location(
  "kernels_tpu", pathlib.Path(__file__).parents[1] / "benchmarks" / "kernels_tpu.py"
)
assert _spec is not None and _spec.loader is not None
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

D, F = 256, 256
MIXED = "empty, one row, odd sizes, sum below N"
TABLE_BYTES = 2 * 2**20  # of visits


def operands(pattern, dtype="bfloat16"):
  """x_ND, gate_EDF, up_EDF, down_EFD, sizes, dy_NF, with NaN in rows that no expert owns."""
  N, sizes = oracle.PATTERNS[pattern]
  E = len(sizes)
  x_ND, *weights, dy_NF = oracle.draw(0, dtype, (N, D), (E, D, F), (E, D, F), (E, F, D), (N, F))
  owned = jnp.arange(N)[:, None] < sum(sizes)
  return jnp.where(owned, x_ND, jnp.nan), *weights, jnp.array(sizes), jnp.where(owned, dy_NF, jnp.nan)


PATTERNS = [MIXED, "nothing", "several tiles", "256 experts"]
SMALL = [tpu_blocks.Blocks(height, width) for height, width in ((32, 128), (64, 256), (96, 128))]


@pytest.mark.parametrize("pattern, blocks, chunk, apart", [
  *((pattern, None, 128, False) for pattern in PATTERNS), *((MIXED, blocks, 32, False) for blocks in SMALL),
  (MIXED, SMALL[0], 32, True), ("several tiles", SMALL[1], 256, False), ("256 experts", SMALL[0], 16, False),
])  # fmt: skip
def test_own_legs(pattern, blocks, chunk, apart, monkeypatch):
  """With the blocks of the rule and with others: several of columns, two parts of K, tiles of several chunks."""
  if blocks is not None:
    monkeypatch.setattr(tpu, "choose", lambda job, kind: tpu_blocks.Choice(blocks, apart, 0))
    monkeypatch.setattr(tpu, "chip_of", lambda kind: tpu_blocks.Chip(chunk, 0, 0))
    monkeypatch.setattr(tpu_blocks, "COLUMNS", 128)
    monkeypatch.setattr(tpu_blocks, "DEPTH", 128)
  monkeypatch.setattr(tpu, "ragged", None)
  x_ND, gate_EDF, up_EDF, _, sizes_E, dy_NF = operands(pattern)
  with pltpu.force_tpu_interpret_mode():
    hidden_NF, *pre = tpu.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, "silu")
    one_ND = tpu.matmul_transposed(dy_NF, gate_EDF, sizes_E)
    both_ND = tpu.matmuls_transposed([dy_NF, dy_NF], [gate_EDF, up_EDF], sizes_E)
  sizes, total = sizes_E.tolist(), int(sizes_E.sum())
  wanted = [oracle.grouped_matmul(x_ND, w, sizes) for w in (gate_EDF, up_EDF)]
  parts = [oracle.grouped_matmul_gradients(x_ND, w, sizes, dy_NF)[0] for w in (gate_EDF, up_EDF)]
  for got, want in zip(
    (hidden_NF, *pre, one_ND, both_ND), (oracle.hidden("silu", *wanted), *wanted, parts[0], sum(parts)), strict=True
  ):
    oracle.assert_close(got, want, "bfloat16", factor=2 if apart else 1)  # each term's result is rounded
    assert not np.any(got[total:])


def test_feed_forward_and_gradients():
  x_ND, *weights, sizes_E, _ = operands(MIXED)
  dy_ND = oracle.draw(1, "bfloat16", x_ND.shape)[0]
  run = lambda *arrays: expert_ffn(*arrays, sizes_E, activation="silu", implementation="tpu")  # noqa: E731
  with pltpu.force_tpu_interpret_mode():
    y_ND, pull = jax.vjp(run, x_ND, *weights)
    gradients = pull(dy_ND)
  arguments = x_ND, *weights, sizes_E.tolist(), "silu"
  oracle.assert_close(y_ND, oracle.expert_ffn(*arguments), "bfloat16", factor=3)
  for got, want in zip(gradients, oracle.expert_ffn_gradients(*arguments, dy_ND), strict=True):
    oracle.assert_close(
      got, want, "bfloat16", factor=5
    )  # hidden rows, pre-activations and their gradients are rounded too


def test_devices_with_their_own_groups_and_shared_weights():
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  x_ND, w_EDF, dy_NF = oracle.draw(3, "bfloat16", (2 * 16, D), (2, D, F), (2 * 16, F))
  sizes_dE = [[5, 9], [0, 16]]

  local = lambda dy_NF, w_EDF, sizes_dE: tpu.matmul_transposed(  # noqa: E731
    dy_NF, jax.lax.pcast(w_EDF, "rows", to="varying"), sizes_dE[0]
  )
  sharded = jax.shard_map(local, mesh=mesh, in_specs=(P("rows"), P(), P("rows")), out_specs=P("rows"))
  with pltpu.force_tpu_interpret_mode():
    got = sharded(dy_NF, w_EDF, jnp.array(sizes_dE, jnp.int32))
  for d, sizes in enumerate(sizes_dE):
    mine = slice(16 * d, 16 * d + 16)
    want = oracle.grouped_matmul_gradients(x_ND[mine], w_EDF, sizes, dy_NF[mine])[0]
    oracle.assert_close(got[mine], want, "bfloat16")


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(implementation, x_ND, weights, sizes_E, dy_ND):
  run = functools.partial(expert_ffn, activation="silu", implementation=implementation)
  y_ND, pull = jax.vjp(lambda x_ND, weights: run(x_ND, *weights, sizes_E), x_ND, weights)
  return y_ND, pull(dy_ND)


def test_too_few_rows_for_a_tile():
  x_ND, gate_EDF, up_EDF, _, sizes_E, _ = operands("more experts than rows")
  with pltpu.force_tpu_interpret_mode():
    hidden_NF, *_ = tpu.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, "silu")
  wanted = [oracle.grouped_matmul(x_ND, w, sizes_E.tolist()) for w in (gate_EDF, up_EDF)]
  oracle.assert_close(hidden_NF, oracle.hidden("silu", *wanted), "bfloat16")


@pytest.mark.parametrize("dtype,own", [("bfloat16", 3), ("float32", 0)])
def test_lowering(dtype, own):
  """In bfloat16 the own kernel serves the fused up leg and two input gradients; elsewhere the compiler serves all."""
  x_ND, *weights, sizes_E, _ = operands(MIXED, dtype)
  text = with_gradients.trace("tpu", x_ND, weights, sizes_E, x_ND).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("@tpu_custom_call") == own
  assert text.count('"chlo.ragged_dot"(') == (4 if own else 9)


COMPILES = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the extra jaxmoe[tpu] is not installed"
)
OWN_AT = {"seeds": 512, "mixtral": 512, "qwen3": 4096, "deepseek": 16_384}  # fewest rows here where all legs are own


def compiled(device, shapes, rows, legs=benchmark.LEGS):
  """What `benchmarks/kernels_tpu.py` prints, a process for each device."""
  lists = "--devices", device, "--shapes", *shapes, "--rows", *map(str, rows), "--legs", *legs
  done = subprocess.run([sys.executable, benchmark.__file__, *lists], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(row):
  """No more bytes, FLOPs, temporaries, padding or fast memory than the compiler's kernel, and FLOPs those of the rows.

  Of fast memory both ask for none, so the compiler sets aside as much for the one as for the other.
  """
  own, other, job = row["own"], row["compiler"], benchmark.job_of(row["shape"], row["rows"], row["leg"])
  ideal = 2 * job.N * job.K * job.F * job.weights
  assert ideal <= own["flops"] <= 1.05 * ideal, row
  reserved = tpu_blocks.chip_of(benchmark.DEVICES[row["device"]][2]).reserved
  assert own["vmem"] <= own["vmem_expected"] <= reserved == tpu_blocks.MIB * row["reserved_mib"], row
  assert own["vmem_asked"] == 0, row
  assert job.N > 64 * job.E or row["busy"] < 1, row
  assert own["moved"] <= other["moved"] and own["multiplied"] <= other["multiplied"], row
  if "too_large" in other:
    return
  assert other["vmem_asked"] == 0 and other["tile"] == other["tile_expected"], row
  assert own["bytes"] <= other["bytes"] and own["flops"] <= 1.001 * other["flops"], row
  assert own["temporary"] <= other["temporary"] + TABLE_BYTES, row


@COMPILES
def test_compiled_for_a_tpu():
  """Deep sums, which leave the least fast memory for columns."""
  rows = compiled("v5p", ["mixtral"], [16_384])
  assert all(row["blocks"] for row in rows)
  for row in rows:
    check(row)


@pytest.mark.slow
@COMPILES
@pytest.mark.parametrize("device", benchmark.DEVICES)
@pytest.mark.parametrize("shape", benchmark.SHAPES)
def test_compiled_for_every_tpu(device, shape):
  rows = compiled(device, [shape], benchmark.ROWS)
  for row in rows:
    if row["blocks"] is not None and "too_large" not in row["own"]:
      check(row)
  declined = {(row["rows"], row["leg"]) for row in rows if row["blocks"] is None}
  assert not {(N, leg) for N, leg in declined if OWN_AT[shape] <= N}


@pytest.mark.parametrize("device", benchmark.DEVICES)
def test_taken_only_where_bytes_are_no_more(device):
  """Bytes counted here anew, tile by tile, the compiler's with the tiles that it was seen to choose."""
  tiles = {(4096, 14_336): (128, 256), (1024, 2048): (128, 1280), (2048, 768): (128, 640), (7168, 2048): (128, 128)}
  if device == "v6e":
    tiles = {(4096, 14_336): (256, 1024), (1024, 2048): (256, 2048), (2048, 768): (256, 768), (7168, 2048): (256, 512)}
  for shape, N, leg in itertools.product(benchmark.SHAPES, benchmark.ROWS, ("gated_up", "matmul_transposed")):
    job = benchmark.job_of(shape, N, leg)
    choice = tpu_blocks.choose(job, benchmark.DEVICES[device][2])
    if choice is None:
      continue
    weights, results = 2 * job.weights * job.E * job.K * job.F, 2 * N * job.F
    own = rows_read(job, *choice.blocks) + weights + job.outputs * results
    dots = job.weights * (rows_read(job, *tiles[job.K, job.F]) + results) + (3 if job.transposed else 1) * weights
    assert own <= dots + (job.weights + job.outputs) * results, (shape, N, leg)


def rows_read(job, height, width):
  """Bytes of rows that a grid of tiles reads: a tile anew whenever it is another one than before."""
  tiles, columns = -(-job.N // height), -(-job.F // width)
  return 2 * job.K * (job.N if tiles == 1 else columns * job.N)


def test_two_cores_get_as_many_blocks_each():
  for shape, N, leg in itertools.product(benchmark.SHAPES, benchmark.ROWS, benchmark.LEGS):
    job = benchmark.job_of(shape, N, leg)
    if choice := tpu_blocks.choose(job, "TPU v5"):
      assert job.F // choice.blocks.width % 2 == 0, (shape, N, leg)


def test_declines_where_nothing_fits_or_nothing_is_won():
  """Sums over 65,536 leave room for no columns; where only weights count, an up leg saves nothing."""
  deep = tpu_blocks.Job(4096, 8, 65_536, 4096, terms=2, beside=1, outputs=1, transposed=True, itemsize=2)
  assert tpu_blocks.choose(deep, "TPU v5") is None
  assert tpu_blocks.choose(benchmark.job_of("deepseek", 512, "gated_up"), "TPU v6 lite") is None
  assert tpu_blocks.choose(benchmark.job_of("deepseek", 16_384, "gated_up"), "TPU v6 lite")


# Rows and experts, chunk of the device: most rows multiplied of the rows that there are.
PADDING = [(131_072, 8, 128, 1.01), (131_072, 64, 128, 1.05), (131_072, 128, 128, 1.05), (131_072, 256, 128, 1.1),
           (131_072, 8, 256, 1.01), (131_072, 64, 256, 1.05), (131_072, 128, 256, 1.1), (8192, 64, 128, 1.3),
           (4096, 64, 128, 1.8), (512, 256, 128, 8.5)]  # fmt: skip


@pytest.mark.parametrize("N, E, chunk, most", PADDING)
def test_padding(N, E, chunk, most):
  """Rows multiplied, by the table that the kernel goes by; never more than the compiler's tiles hold."""
  sizes = benchmark.uniform_sizes(N, E)
  for height in tpu_blocks.TILES:
    multiplied = benchmark.own_multiplied(sizes, height, chunk) / N
    assert 1 <= multiplied <= min(most, benchmark.compiler_multiplied(sizes, chunk) / N)


def test_a_visit_multiplies_as_many_rows_as_its_table_says():
  """Each row of an expert lies in its visits' rows, at multiples of 16; the kernel's matmuls have those heights."""
  rng = np.random.default_rng(0)
  for N, E, height in ((640, 7, 128), (512, 40, 512), (300, 3, 288)):
    sizes = rng.multinomial(N - 30, rng.dirichlet(np.full(E, 0.3)))
    visits = jax.tree.map(np.asarray, tpu_rows.visits_of(jnp.array(sizes, jnp.int32), N, height, 128))
    expert = np.repeat(np.arange(E), sizes)
    covered = np.zeros(N - 30, int)
    for v in range(visits.count[0]):
      first = visits.tile[v] * height + min(visits.first[v], height - min(height, visits.rows[v]))
      here = np.arange(first, min(first + visits.rows[v], N - 30))
      covered[here] += expert[here] == visits.group[v]
      assert visits.first[v] % 16 == 0 and (visits.rows[v] == 0 or visits.source[v] == visits.tile[v])
    assert (covered == 1).all()


def test_the_kernels_matmuls():
  """Those of a chunk and of its tails, over all of K, and nothing else multiplies."""
  x_ND, gate_EDF, up_EDF, _, sizes_E, _ = operands("several tiles")
  jaxpr = jax.make_jaxpr(lambda *a: tpu.gated_up(*a, "silu"))(x_ND, gate_EDF, up_EDF, sizes_E)
  heights = [x.shape[0] for x in matmul_rows(jaxpr.jaxpr)]
  assert sorted(heights) == sorted(2 * [16, 32, 64, 128])


def matmul_rows(jaxpr):
  """Left operand of every matmul in a program, its loops, branches and kernels included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield equation.invars[0].aval
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
      if is_program(inner):
        yield from matmul_rows(getattr(inner, "jaxpr", inner))


def is_program(value):
  return hasattr(value, "eqns") or hasattr(value, "jaxpr")
