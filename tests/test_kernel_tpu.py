"""The TPU kernel in the interpreter against the float64 loop, lowered for TPU, and compiled for TPUs without one."""

import functools
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import kernels_tpu as benchmark
import numpy as np
import pytest
import tpu_compiler
import tpu_devices
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels import tpu, tpu_blocks, tpu_chip, tpu_ragged
from jaxmoe.kernels.buffer_ffn import buffer_ffn
from jaxmoe.kernels.expert_ffn import expert_ffn

LEGS_COMPILED = pathlib.Path(__file__).parent / "tpu_legs_compiled.py"

D, F = 256, 384
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
SMALL, NARROW_LAST, LOW = (32, 128), (64, 256), (96, 128)


@pytest.mark.parametrize("pattern, blocks, rows, columns, apart, depth", [
  *((pattern, None, 128, 256, False, None) for pattern in PATTERNS),
  *((MIXED, blocks, 32, 128, apart, None) for blocks in (SMALL, NARROW_LAST, LOW) for apart in (False, True)),
  ("several tiles", NARROW_LAST, 256, 256, False, None), ("256 experts", SMALL, 16, 128, False, None),
  *((MIXED, blocks, 32, 128, False, 128) for blocks in (SMALL, NARROW_LAST, LOW)),
  *((pattern, NARROW_LAST, 256, 256, False, 128) for pattern in PATTERNS), (MIXED, SMALL, 32, 128, True, 128),
])  # fmt: skip
def test_own_legs(pattern, blocks, rows, columns, apart, depth, monkeypatch):
  """With the blocks of the rule and with others: several, the last one narrower or beyond the array, K in parts.

  The legs sum over 256 and 384: in multiplications of 128, and in blocks of all of K or of 128.
  """
  if blocks is not None:

    def choice(job, chip):
      return tpu_blocks.Choice(tpu_blocks.Blocks(*blocks, depth or job.K), apart, 0)

    monkeypatch.setattr(tpu, "choose", choice)
    monkeypatch.setattr(tpu, "chip_in_use", lambda: tpu_chip.Chip(rows, 1, 0, 0))
    monkeypatch.setattr(tpu_blocks, "COLUMNS", columns)
    monkeypatch.setattr(tpu_blocks, "DEPTH", 128)
  monkeypatch.setattr(tpu, "tpu_ragged", None)
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


@pytest.mark.parametrize("depth", [None, 128])
def test_where_integers_have_64_bits(depth, monkeypatch):
  """Mosaic has none such; the same bits in the interpreter, and lowered for a TPU."""
  if depth:
    choice = tpu_blocks.Choice(tpu_blocks.Blocks(*NARROW_LAST, depth), False, 0)
    monkeypatch.setattr(tpu, "choose", lambda job, chip: choice)
  x_ND, *weights, sizes_E, _ = operands(MIXED)
  with pltpu.force_tpu_interpret_mode():
    wanted = jax.tree.leaves(with_gradients("tpu", x_ND, weights, sizes_E, x_ND))
  with jax.enable_x64(True):
    arguments = "tpu", x_ND, weights, sizes_E.astype("int64"), x_ND
    lowered = with_gradients.trace(*arguments).lower(lowering_platforms=("tpu",))
    with pltpu.force_tpu_interpret_mode():
      got = jax.tree.leaves(with_gradients(*arguments))
  assert lowered.as_text().count("tpu_custom_call") >= 3
  assert all(np.array_equal(mine, want) for mine, want in zip(got, wanted, strict=True))


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
  # The compiler's kernel rounds both pre-activations before their product.
  oracle.assert_close(hidden_NF, oracle.hidden("silu", *wanted), "bfloat16", factor=3)


@pytest.mark.parametrize("dtype,own", [("bfloat16", 3), ("float32", 0)])
def test_lowering(dtype, own):
  """In bfloat16 the own kernel serves the fused up leg and two input gradients; elsewhere the compiler serves all."""
  x_ND, *weights, sizes_E, _ = operands(MIXED, dtype)
  text = with_gradients.trace("tpu", x_ND, weights, sizes_E, x_ND).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("@tpu_custom_call") == own
  assert text.count('"chlo.ragged_dot"(') == (4 if own else 9)


@pytest.mark.parametrize("N, rows", [(1, 8), (9, 16), (100, 128), (128, 128), (130, 256), (4100, 4224)])
def test_the_compilers_legs_get_whole_tiles(N, rows):
  """Rows are added up to tiles that the compiler has; results are as of the rows there were, whatever those hold."""
  sizes = [N // 3, 0, N // 2]
  owned = jnp.arange(N)[:, None] < sum(sizes)
  x_ND, gate_EDF, up_EDF, dy_NF = oracle.draw(4, "float32", (N, 8), (3, 8, 16), (3, 8, 16), (N, 16))
  x_ND, dy_NF = (jnp.where(owned, rows, jnp.nan) for rows in (x_ND, dy_NF))
  sizes_E, scale_EF = jnp.array(sizes), jnp.ones((3, 16))
  runs = {
    "matmul": (tpu_ragged.matmul, x_ND, gate_EDF, sizes_E),
    "scaled": (tpu_ragged.matmul_scaled, x_ND, gate_EDF, scale_EF, sizes_E),
    "up": (lambda *a: tpu_ragged.up(*a, "silu")[1], x_ND, gate_EDF, sizes_E),
    "gated_up": (lambda *a: tpu_ragged.gated_up(*a, "silu")[2], x_ND, up_EDF, gate_EDF, sizes_E),
  }
  for name, (leg, *arguments) in runs.items():
    got = leg(*arguments)
    oracle.assert_close(got, oracle.grouped_matmul(x_ND, gate_EDF, sizes), "float32")
    assert not np.any(got[sum(sizes) :]), name
    text = jax.jit(leg).lower(*arguments).as_text()
    assert f"tensor<{rows}x8xf32>" in text, name
  x_grad, w_grad = oracle.grouped_matmul_gradients(x_ND, gate_EDF, sizes, dy_NF)
  oracle.assert_close(tpu_ragged.matmuls_transposed([dy_NF], [gate_EDF], sizes_E), x_grad, "float32")
  clean = jnp.where(owned, x_ND, 0), jnp.where(owned, dy_NF, 0)  # only TPU's own kernel masks both operands
  oracle.assert_close(tpu_ragged.weight_gradient(*clean, sizes_E), w_grad, "float32")


@pytest.mark.parametrize("asked, dtype, given", [
  (None, "bfloat16", "DEFAULT"), ("high", "bfloat16", "DEFAULT"), ("highest", "bfloat16", "DEFAULT"),
  (None, "float32", "DEFAULT"), ("high", "float32", "HIGHEST"), ("highest", "float32", "HIGHEST"),
  (None, "float16", "HIGHEST"),
])  # fmt: skip
def test_precision(asked, dtype, given):
  """bfloat16 in one pass, for its products are exact; float32 as asked, but never "high", which has no kernel."""
  x_ND, w_EDF = oracle.draw(7, dtype, (16, 8), (2, 8, 16))
  with jax.default_matmul_precision(asked):
    jaxpr = jax.make_jaxpr(tpu_ragged.matmul)(x_ND, w_EDF, jnp.array([5, 9]))
  found = re.findall(r"Precision\.(\w+)", str(jaxpr))
  assert found and set(found) == {given}, jaxpr


@pytest.mark.parametrize("rows", [1, 2, 128])
def test_equal_groups_declare_what_they_read(rows):
  """All weights, however few rows an expert has, also where rows are added; as `ragged` does."""
  E = 8
  arrays = oracle.draw(8, "float32", (E, rows, D), (E, D, F), (E, D, F), (E, F, D))

  def declared(implementation):
    run = functools.partial(buffer_ffn, activation="silu", implementation=implementation)
    text = jax.jit(run).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text(debug_info=True)
    return {float(bytes_) for bytes_ in re.findall(r"kernel\[.*?bytes=([^\]]*)\]", text)}

  assert declared("tpu") == declared("ragged") and min(declared("tpu")) > E * D * F * 4


def test_float64_is_refused():
  with jax.enable_x64(True):
    x_ND, w_EDF = oracle.draw(7, "float64", (16, 8), (2, 8, 16))
    with pytest.raises(NotImplementedError, match="expected bfloat16, float16 or float32 on TPU, got float64; cast"):
      tpu_ragged.matmul(x_ND, w_EDF, jnp.array([5, 9]))


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
  assert own["vmem"] <= own["vmem_expected"] <= benchmark.chip_of(row["device"]).fast_bytes, row
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


@COMPILES
@pytest.mark.parametrize("device", tpu_devices.DEVICES)
def test_what_the_compiler_does(device):
  """Its `ragged_dot` takes the tiles that the rule compares with, in whole tiles at least; without, some are none.

  What it sets aside for a kernel that asks for none holds no arrays, however little of it the kernel uses.
  """
  done = subprocess.run([sys.executable, tpu_compiler.__file__, device], capture_output=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["set_aside_mib"] == found["expected_mib"]
  assert all(tile["padded"] == tile["expected"] for tile in found["tiles"]), found["tiles"]
  assert {tuple(tile["shape"]) for tile in found["tiles"] if tile["tile"] is None} == {
    (4100, 1024, 2048), (100, 7168, 2048), (9, 512, 8192)}  # fmt: skip
  if device in ("v5e", "v6e", "tpu7x"):  # the others keep no such array there
    beside_little, beside_much = found["array_mib_beside"].values()
    assert beside_little == beside_much > found["set_aside_mib"]


@COMPILES
@pytest.mark.parametrize("device", ["v5e", "v6e"])
def test_no_work_of_other_experts(device):
  """FLOPs of compiled legs are those of the rows, whatever their number, dtype and jax's precision."""
  paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, LEGS_COMPILED, device]
  done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
  assert done.returncode == 0, done.stderr[-2000:]
  ratios = {name: float(ratio) for name, ratio in (line.split() for line in done.stdout.splitlines())}
  assert len(ratios) == 8 and all(1 <= ratio <= 1.1 for ratio in ratios.values()), ratios


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
