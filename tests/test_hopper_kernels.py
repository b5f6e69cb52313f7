"""Every leg of the Hopper kernels in the interpreter, which looks for races, against the float64 loop over groups."""

import functools

import hopper
import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.hopper import compat, config, legs, rows, weights
from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.kernels.hopper.device import Device
from jaxmoe.kernels.hopper.parts import products

LEGS = ("matmul", "matmul_scaled", "matmul_transposed", "matmuls_transposed", "weight_gradient", "gated_up", "up")
MIXED = (100, [30, 0, 1, 50, 7])
PATTERNS = {
  "nothing": (40, [0, 0, 0]),
  "one row": (1, [1]),
  "all in one": (136, [0, 136, 0]),
  "several tiles": (300, [201, 3, 96]),
  "more groups than rows": (9, [0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0]),
}
SHAPES = {
  "narrow": TileShape(width=128),
  "low": TileShape(height=64, width=256, split_columns=True),
  "high": TileShape(height=256, width=128),
  "few stages": TileShape(width=128, stages=2, band=1),
}
LAGS = {
  "lag": TileShape(width=128, stages=3, lag=1),
  "halves": TileShape(width=128, depth=32, stages=5, lag=3),
  "too shallow to lag": TileShape(width=128, stages=6, lag=1),
}


@pytest.fixture(autouse=True)
def interpreter():
  with compat.interpreted(detect_races=True):
    yield


@pytest.mark.parametrize("leg", LEGS)
def test_legs(leg):
  hopper.check(leg, *MIXED)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("leg", ["gated_up", "weight_gradient"])
def test_patterns(leg, pattern):
  hopper.check(leg, *PATTERNS[pattern])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [pattern for pattern, (rows, _) in oracle.PATTERNS.items() if rows])
@pytest.mark.parametrize("leg", LEGS)
def test_all_patterns(leg, pattern):
  hopper.check(leg, *oracle.PATTERNS[pattern])


@pytest.mark.parametrize("leg", config.LEGS)
@pytest.mark.parametrize("name", ["low", "few stages"])
def test_tile_shapes(leg, name, monkeypatch):
  monkeypatch.setattr(hopper, "F", 256)
  monkeypatch.setattr(hopper, "D", 128 if leg != "matmul_transposed" else 256)
  hopper.check(leg, *MIXED, shape=SHAPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("leg", config.LEGS)
@pytest.mark.parametrize("name", ["narrow", "high"])
def test_more_tile_shapes(leg, name, monkeypatch):
  monkeypatch.setattr(hopper, "F", 256)
  monkeypatch.setattr(hopper, "D", 256)
  hopper.check(leg, *PATTERNS["several tiles"], shape=SHAPES[name])


@pytest.mark.parametrize("leg", ["gated_up", "matmul", "matmuls_transposed"])
@pytest.mark.parametrize("name", LAGS)
def test_lagging_tiles(leg, name, monkeypatch):
  monkeypatch.setattr(hopper, "F", 256)
  monkeypatch.setattr(hopper, "D", 256)
  hopper.check(leg, 300, [201, 3, 70], shape=LAGS[name])


@pytest.mark.parametrize("activation", ["gelu", "clamped"])
def test_gated_activations(activation):
  hopper.check("gated_up", *MIXED, activation=activation)


def test_activation_without_gate():
  hopper.check("up", *MIXED, activation="gelu")


@pytest.mark.parametrize("leg", ["gated_up", "matmul_scaled", "weight_gradient"])
def test_float16(leg):
  hopper.check(leg, *MIXED, dtype="float16")


@pytest.mark.parametrize("leg", LEGS)
def test_float32(leg):
  hopper.check(leg, *MIXED, dtype="float32")


@pytest.mark.parametrize("leg", ["matmul", "weight_gradient"])
@pytest.mark.parametrize("left_out", products(3, 3))
def test_no_product_of_parts_can_be_left_out(leg, left_out, monkeypatch):
  kept = [pair for pair in products(3, 3) if pair != left_out]
  monkeypatch.setattr(rows if leg == "matmul" else weights, "products", lambda *_: kept)
  with pytest.raises(AssertionError, match=r"error .* above"):
    hopper.check(leg, *MIXED, dtype="float32")


@pytest.mark.parametrize("weights", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("rows", ["bfloat16", "float16"])
def test_every_fp8_value_is_widened_exactly(weights, rows):
  """Each row picks one of the 256 patterns of bits: what is finite comes back, twice as large."""
  patterns = jax.lax.bitcast_convert_type(jnp.arange(256, dtype="uint8"), weights)
  values = np.asarray(patterns).astype(np.float64)
  finite = np.isfinite(values) & (np.abs(values) < 2**15)  # twice the value must fit 16 bits
  w_EDF = jnp.zeros((1, 256, 128), weights).at[0, :, 5].set(jnp.where(finite, patterns, 0))
  arguments = jnp.eye(256, dtype=rows), w_EDF, jnp.full((1, 128), 2.0), jnp.array([256])
  (got,) = hopper.run("matmul_scaled", arguments)
  assert finite.sum() >= 240
  np.testing.assert_array_equal(np.asarray(got[:, 5]).astype(np.float64), np.where(finite, 2 * values, 0))


def test_feed_forward_of_fp8_weights():
  """The public function: a scale an expert for the gate, one a column for the others."""
  rows, sizes = MIXED
  E, D, F = len(sizes), 128, 128
  x_ND, gate, up, down = oracle.draw(0, "bfloat16", (rows, D), (E, D, F), (E, D, F), (E, F, D))
  weights = [w.astype("float8_e4m3fn") for w in (gate, up, down)]
  scales = tuple(jnp.exp(s / 2) / 8 for s in oracle.draw(1, "float32", (E,), (E, F), (E, D)))
  with hopper.target(processors=4):
    got = expert_ffn(x_ND, *weights, jnp.array(sizes), activation="silu", scales=scales, implementation="hopper")
  wide = [
    np.asarray(w).astype(np.float64) * np.asarray(s).reshape(E, 1, -1) for w, s in zip(weights, scales, strict=True)
  ]
  oracle.assert_close(got, oracle.expert_ffn(x_ND, *wide, sizes, "silu"), "bfloat16", factor=3)


def test_scale_of_the_last_expert_stays_out_of_rows_past_the_sum():
  x_ND, w_EDF, scale_EF, sizes_E = hopper.operands("matmul_scaled", *MIXED, "bfloat16")
  (y_NF,) = hopper.run("matmul_scaled", (x_ND, w_EDF, scale_EF.at[-1].set(jnp.nan), sizes_E))
  assert np.isnan(y_NF[81:88]).all() and not np.any(y_NF[88:]) and np.isfinite(y_NF[:81]).all()


@pytest.mark.parametrize("processors", [1, 8])
def test_processors(processors):
  hopper.check("matmul", *MIXED, device=Device("NVIDIA H200", processors))
  hopper.check("weight_gradient", *MIXED, device=Device("NVIDIA H200", processors))


@pytest.mark.parametrize("leg", LEGS)
def test_no_rows(leg):
  arguments = hopper.operands(leg, 0, [0, 0], "bfloat16")
  for mine, want in zip(hopper.run(leg, arguments), hopper.wanted(leg, arguments), strict=True):
    oracle.assert_close(mine, want, "bfloat16")


def test_same_bits_with_other_processors():
  arguments = hopper.operands("weight_gradient", *MIXED, "bfloat16")
  results = [hopper.run("weight_gradient", arguments, device=Device("NVIDIA H200", n))[0] for n in (2, 5)]
  assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_expert_ffn_and_its_gradients(dtype):
  """The public function on these legs: both passes, every gradient."""
  rows, sizes = MIXED
  E, D, F = len(sizes), 128, 128
  x_ND, gate, up, down, dy_ND = oracle.draw(0, dtype, (rows, D), (E, D, F), (E, D, F), (E, F, D), (rows, D))
  weights = gate / 8, up / 8, down / 8

  @jax.jit
  def both(x_ND, weights, dy_ND):
    run = functools.partial(expert_ffn, activation="silu", implementation="hopper")
    y_ND, pull = jax.vjp(lambda x, w: run(x, *w, jnp.array(sizes)), x_ND, weights)
    return y_ND, pull(dy_ND)

  with hopper.target(processors=4):
    y_ND, (dx_ND, d_weights) = jax.block_until_ready(both(x_ND, weights, dy_ND))
  want = oracle.expert_ffn(x_ND, *weights, sizes, "silu")
  wants = oracle.expert_ffn_gradients(x_ND, *weights, sizes, "silu", dy_ND)
  for mine, wanted in zip([y_ND, dx_ND, *d_weights], [want, *wants], strict=True):
    oracle.assert_close(mine, wanted, dtype, factor=3)  # rounded hidden rows enter a second matmul


def test_varies_over_the_mesh_as_its_operands():
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  x_ND, w_EDF, sizes_E = hopper.operands("matmul", 64, [20, 44], "bfloat16")
  both = lambda array: jnp.concatenate([array, array])  # noqa: E731

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
  def run(x_ND, w_EDF, sizes_E):
    return legs.matmul(x_ND, w_EDF, sizes_E, device=hopper.SMALL)

  typed = jax.eval_shape(run, both(x_ND), both(w_EDF), both(sizes_E))
  assert typed.shape == (128, hopper.F)


def test_refusals():
  x_ND, w_EDF, sizes_E = hopper.operands("matmul", *MIXED, "float32")
  with pytest.raises(NotImplementedError, match="bfloat16, float16, float32, got bfloat16 and float32; cast"):
    legs.matmul(x_ND, w_EDF.astype("bfloat16"), sizes_E, device=hopper.SMALL)
  with jax.enable_x64(True), pytest.raises(NotImplementedError, match="float32, got float64; cast"):
    legs.matmul(x_ND.astype("float64"), w_EDF.astype("float64"), sizes_E, device=hopper.SMALL)
  half = (array.astype("bfloat16") for array in (x_ND, w_EDF))
  with pytest.raises(NotImplementedError, match=r"need an NVIDIA .*H200.*, got cpu"):
    legs.matmul(*half, sizes_E)
  with pytest.raises(NotImplementedError, match=r"to columns that are a multiple of 128, got 128 and 192"):
    rows = jnp.ones(x_ND.shape, "bfloat16")
    legs.matmul_scaled(rows, w_EDF.astype("float8_e4m3fn"), np.ones((5, hopper.F)), sizes_E, device=hopper.SMALL)
  with pytest.raises(ValueError, match="does not divide"):
    hopper.run("matmul", hopper.operands("matmul", *MIXED, "bfloat16"), shape=TileShape(width=256))
