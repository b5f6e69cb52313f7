"""Grouped matmul and its gradients against a float64 loop over experts; rows past the sum hold NaN throughout."""

import functools
import re

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels import work
from jaxmoe.kernels.grouped_matmul import grouped_matmul, grouped_matmul_reference
from jaxmoe.xla import scopes

IMPLEMENTATIONS = ["cpu_tiles", "ragged"]
D, F = 16, 24


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(implementation, x_ND, w_EDF, sizes_E, dy_NF):
  y_NF, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E, implementation=implementation), x_ND, w_EDF)
  return y_NF, *pull(dy_NF)


def operands(pattern, dtype):
  """x_ND, w_EDF, sizes, dy_NF, with NaN in rows that no expert owns."""
  N, sizes = oracle.PATTERNS[pattern]
  x_ND, w_EDF, dy_NF = oracle.draw(0, dtype, (N, D), (len(sizes), D, F), (N, F))
  owned = jnp.arange(N)[:, None] < sum(sizes)
  return jnp.where(owned, x_ND, jnp.nan), w_EDF, jnp.array(sizes), jnp.where(owned, dy_NF, jnp.nan)


def check_against_oracle(implementation, pattern, dtype):
  x_ND, w_EDF, sizes_E, dy_NF = operands(pattern, dtype)
  y_NF, dx_ND, dw_EDF = with_gradients(implementation, x_ND, w_EDF, sizes_E, dy_NF)
  sizes, total = sizes_E.tolist(), int(sizes_E.sum())
  oracle.assert_close(y_NF, oracle.grouped_matmul(x_ND, w_EDF, sizes), dtype)
  for got, want in zip((dx_ND, dw_EDF), oracle.grouped_matmul_gradients(x_ND, w_EDF, sizes, dy_NF), strict=True):
    oracle.assert_close(got, want, dtype)
  assert not np.any(y_NF[total:]) and not np.any(dx_ND[total:])
  assert {y_NF.dtype, dx_ND.dtype, dw_EDF.dtype} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("pattern", oracle.PATTERNS)
def test_patterns(implementation, pattern):
  check_against_oracle(implementation, pattern, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(implementation, dtype):
  with jax.enable_x64(dtype == "float64"):
    check_against_oracle(implementation, "empty, one row, odd sizes, sum below N", dtype)


@pytest.mark.parametrize("pattern", oracle.PATTERNS)
def test_reference(pattern):
  x_ND, w_EDF, sizes_E, _ = operands(pattern, "float32")
  want = oracle.grouped_matmul(x_ND, w_EDF, sizes_E.tolist())
  oracle.assert_close(grouped_matmul_reference(x_ND, w_EDF, sizes_E), want, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_long_sums_of_bfloat16_are_taken_in_float32(implementation):
  """Many terms of one sign: a bfloat16 sum of ones stops at 256, one of the sums of tiles loses whole percents."""
  N, K = 4000, 4096
  x_ND, w_EDF, dy_NF = (jnp.abs(a) for a in oracle.draw(6, "bfloat16", (N, 8), (1, 8, 8), (N, 8)))
  _, _, dw_EDF = with_gradients(implementation, x_ND, w_EDF, jnp.array([N]), dy_NF)
  oracle.assert_close(dw_EDF, oracle.grouped_matmul_gradients(x_ND, w_EDF, [N], dy_NF)[1], "bfloat16")
  ones = grouped_matmul(
    jnp.ones((64, K), "bfloat16"), jnp.ones((1, K, 8), "bfloat16"), jnp.array([64]), implementation=implementation
  )
  assert np.all(ones == K)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_weights_with_scales(implementation, per_column, dtype):
  N, sizes = oracle.PATTERNS["empty, one row, odd sizes, sum below N"]
  E = len(sizes)
  x_ND, w_EDF = oracle.draw(1, "bfloat16", (N, D), (E, D, F))
  w_EDF = w_EDF.astype(dtype)
  scale = jnp.exp(oracle.draw(2, "float32", (E, F) if per_column else (E,))[0])
  got = grouped_matmul(x_ND, w_EDF, jnp.array(sizes), scale=scale, implementation=implementation)
  wide = np.asarray(w_EDF.astype("float64" if jax.config.jax_enable_x64 else "float32"), np.float64)
  want = oracle.grouped_matmul(x_ND, wide * np.asarray(scale, np.float64).reshape(E, 1, -1), sizes)
  oracle.assert_close(got, want, "bfloat16")
  reference = grouped_matmul_reference(x_ND, w_EDF, jnp.array(sizes), scale=scale)
  oracle.assert_close(reference, want, "bfloat16")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_same_bits_every_time(implementation):
  arrays = operands("several tiles", "float32")
  for first, second in zip(
    with_gradients(implementation, *arrays), with_gradients(implementation, *arrays), strict=True
  ):
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_devices_with_their_own_groups_and_shared_weights(implementation):
  """Rows over eight devices, weights on all: under `shard_map` their gradient is the sum over devices."""
  mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
  x_ND, w_EDF, dy_NF = oracle.draw(3, "float32", (8 * 12, D), (4, D, F), (8 * 12, F))
  sizes_dE = np.random.default_rng(0).multinomial(10, [0.5, 0, 0.2, 0.3], size=8)

  def local(x_ND, w_EDF, sizes_dE):
    return grouped_matmul(x_ND, w_EDF, sizes_dE[0], implementation=implementation)

  sharded = jax.shard_map(local, mesh=mesh, in_specs=(P("rows"), P(), P("rows")), out_specs=P("rows"))

  @jax.jit
  def run(x_ND, w_EDF, sizes_dE):
    y_NF, pull = jax.vjp(lambda x, w: sharded(x, w, sizes_dE), x_ND, w_EDF)
    return y_NF, *pull(dy_NF)

  y_NF, dx_ND, dw_EDF = run(x_ND, w_EDF, jnp.asarray(sizes_dE))
  wanted_dw_EDF = 0
  for d, sizes in enumerate(sizes_dE):
    mine = slice(12 * d, 12 * d + 12)
    oracle.assert_close(y_NF[mine], oracle.grouped_matmul(x_ND[mine], w_EDF, sizes), "float32")
    dx, dw = oracle.grouped_matmul_gradients(x_ND[mine], w_EDF, sizes, dy_NF[mine])
    oracle.assert_close(dx_ND[mine], dx, "float32")
    wanted_dw_EDF = wanted_dw_EDF + dw
  oracle.assert_close(dw_EDF, wanted_dw_EDF, "float32")


def test_weights_of_an_expert_without_rows_are_not_read():
  N, sizes = 12, [4, 0, 6]
  x_ND, w_EDF = oracle.draw(7, "float32", (N, D), (3, D, F))
  got = grouped_matmul(x_ND, w_EDF.at[1].set(jnp.nan), jnp.array(sizes), implementation="cpu_tiles")
  oracle.assert_close(got, oracle.grouped_matmul(x_ND, w_EDF, sizes), "float32")


def test_float32_follows_the_precision_that_jax_is_set_to():
  """Forward, and both gradients."""
  arrays = operands("several tiles", "float32")
  for precision, count in (("highest", 3), ("default", 0)):
    with jax.default_matmul_precision(precision):
      text = with_gradients.trace("ragged", *arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("[#chlo<precision HIGHEST>, #chlo<precision HIGHEST>]") == count


def test_scan_and_checkpoint():
  """Layers under `lax.scan` with recomputation give the gradient of the layers written out."""
  x_ND, w_LEDD = oracle.draw(4, "float32", (40, D), (2, 3, D, D))
  sizes_E = jnp.array([5, 0, 30])

  def loss(w_LEDD, scanned):
    layer = lambda x, w: (jnp.tanh(grouped_matmul(x, w, sizes_E)), None)  # noqa: E731
    if scanned:
      return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x_ND, w_LEDD)[0] ** 2)
    return jnp.sum(layer(layer(x_ND, w_LEDD[0])[0], w_LEDD[1])[0] ** 2)

  scanned, written_out = (jax.jit(jax.grad(loss), static_argnums=1)(w_LEDD, s) for s in (True, False))
  oracle.assert_close(scanned, np.asarray(written_out, np.float64), "float32")


def test_loops_say_in_the_compiled_program_how_often_they_run():
  text = with_gradients.lower("cpu_tiles", *operands("several tiles", "float32")).compile().as_text()
  names = [re.search('op_name="([^"]*)"', line)[1] for line in text.splitlines() if " while(" in line]
  experts, tiles = "loop[expected=3,max=3]", "loop[expected=1.74375,max=2]"
  assert sorted(map(scopes.path, names)) == [(experts,)] * 3 + [(experts, tiles)] * 3


@pytest.mark.parametrize("N,E", [(1, 1), (4096, 8), (4096, 64), (300, 256), (9, 16), (50, 3)])
def test_declared_trips(N, E):
  """No sizes give more tiles than the declared most, some give as many, and random routing gives what is expected."""
  tile, random = work.tile_rows(N, E), np.random.default_rng(0)
  trips = work.tile_trips(N, E, tile)
  experts = work.expert_trips(N, E)
  tiles = lambda sizes: np.sum(-(-sizes // tile))  # noqa: E731
  drawn = [random.multinomial(N, random.dirichlet(np.full(E, 2.0))) for _ in range(200)]
  assert all(tiles(sizes) <= trips.most * experts.most + 1e-9 for sizes in drawn)
  worst = np.minimum(1, np.maximum(0, N - np.arange(E)))
  worst[0] += N - worst.sum()
  assert tiles(worst) == pytest.approx(trips.most * experts.most)
  uniform = [random.multinomial(N, np.full(E, 1 / E)) for _ in range(200)]
  assert np.mean([np.sum(sizes > 0) for sizes in uniform]) == pytest.approx(experts.expected, rel=0.05)
  assert np.mean([tiles(sizes) for sizes in uniform]) == pytest.approx(trips.expected * experts.expected, rel=0.2)


def test_lowering_for_tpu_uses_its_ragged_matmul():
  arrays = operands("several tiles", "bfloat16")
  text = with_gradients.trace("ragged", *arrays).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count('"chlo.ragged_dot"(') == 3 and "dot_general" not in text
  assert text.count("stablehlo.transpose") == 1  # of the weights, for the gradient of rows


@pytest.mark.parametrize("implementation", ["cpu_tiles", "ragged"])
@pytest.mark.parametrize("batched", ["x w sizes", "x sizes", "w", "sizes", "x"])
def test_vmap_takes_one_after_the_other(implementation, batched):
  """As one loop of several lengths, each turn would choose between old and new for every row of every result."""
  axes = tuple(0 if name in batched.split() else None for name in ("x", "w", "sizes"))
  all_ = *oracle.draw(11, "float32", (3, 12, 8), (3, 3, 8, 16)), jnp.array([[3, 0, 9], [0, 12, 0], [1, 1, 2]])
  operands = [array if axis == 0 else array[1] for array, axis in zip(all_, axes, strict=True)]

  def both_passes(x_ND, w_EDF, sizes_E):
    y_ND, pull = jax.vjp(lambda *arrays: grouped_matmul(*arrays, sizes_E, implementation=implementation), x_ND, w_EDF)
    return y_ND, *pull(y_ND)

  together = jax.jit(jax.vmap(both_passes, in_axes=axes))
  for row, got in enumerate(zip(*together(*operands), strict=True)):
    x_ND, w_EDF, sizes_E = (array[row] if axis == 0 else array for array, axis in zip(operands, axes, strict=True))
    y_ND = oracle.grouped_matmul(x_ND, w_EDF, sizes_E.tolist())
    wanted = y_ND, *oracle.grouped_matmul_gradients(x_ND, w_EDF, sizes_E.tolist(), y_ND)
    for one, want in zip(got, wanted, strict=True):
      oracle.assert_close(one, want, "float32")
  if implementation == "cpu_tiles":
    chosen = re.findall(r"stablehlo.select .*tensor<3x(\d+)x(\d+)xf32>", together.lower(*operands).as_text())
    assert not chosen, chosen
