"""The expert feed-forward and all its gradients against a float64 loop over experts; rows past the sum hold NaN."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels.buffer_ffn import buffer_ffn
from jaxmoe.kernels.expert_ffn import expert_ffn, expert_ffn_reference

IMPLEMENTATIONS = ["cpu_tiles", "ragged"]
KINDS = [("silu", True), ("gelu", True), ("clamped", True), ("silu", False), ("gelu", False)]
MIXED = "empty, one row, odd sizes, sum below N"
D, F = 16, 24


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_gradients(implementation, activation, x_ND, weights, sizes_E, dy_ND):
  """y_ND and gradients of rows, gate, up and down."""

  def run(x_ND, weights):
    return expert_ffn(x_ND, *weights, sizes_E, activation=activation, implementation=implementation)

  y_ND, pull = jax.vjp(run, x_ND, weights)
  dx_ND, d_weights = pull(dy_ND)
  return y_ND, dx_ND, *d_weights


def operands(pattern, dtype, gated):
  """x_ND, (gate, up, down), sizes, dy_ND; pre-activations spread past the clamp at 7."""
  N, sizes = oracle.PATTERNS[pattern]
  E = len(sizes)
  x_ND, gate_EDF, up_EDF, down_EFD, dy_ND = oracle.draw(0, dtype, (N, D), (E, D, F), (E, D, F), (E, F, D), (N, D))
  owned = jnp.arange(N)[:, None] < sum(sizes)
  weights = gate_EDF if gated else None, up_EDF, down_EFD
  return jnp.where(owned, x_ND, jnp.nan), weights, jnp.array(sizes), jnp.where(owned, dy_ND, jnp.nan)


def check_against_oracle(implementation, activation, arrays, dtype):
  x_ND, weights, sizes_E, dy_ND = arrays
  got = with_gradients(implementation, activation, x_ND, weights, sizes_E, dy_ND)
  sizes, total = sizes_E.tolist(), int(sizes_E.sum())
  want_y_ND = oracle.expert_ffn(x_ND, *weights, sizes, activation)
  want = want_y_ND, *oracle.expert_ffn_gradients(x_ND, *weights, sizes, activation, dy_ND)
  for mine, wanted in zip(got, want, strict=True):
    assert (mine is None) == (wanted is None)
    if mine is not None:
      assert mine.dtype == jnp.dtype(dtype)
      # Rounded hidden rows and pre-activations enter a second matmul, and tanh is worth 3e-7; differences 1e-8.
      oracle.assert_close(mine, wanted, dtype, factor=3, floor=1e-8)
  y_ND, dx_ND, *_ = got
  assert not np.any(y_ND[total:]) and not np.any(dx_ND[total:])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("activation,gated", KINDS)
def test_activations(implementation, activation, gated):
  check_against_oracle(implementation, activation, operands(MIXED, "float32", gated), "float32")


@pytest.mark.parametrize("pattern", [pattern for pattern in oracle.PATTERNS if pattern != MIXED])
def test_patterns(pattern):
  check_against_oracle("cpu_tiles", "silu", operands(pattern, "float32", True), "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(implementation, dtype):
  with jax.enable_x64(dtype == "float64"):
    check_against_oracle(implementation, "silu", operands(MIXED, dtype, True), dtype)


@pytest.mark.parametrize("activation,gated", KINDS)
def test_reference(activation, gated):
  x_ND, weights, sizes_E, _ = operands(MIXED, "float32", gated)
  got = expert_ffn_reference(x_ND, *weights, sizes_E, activation=activation)
  oracle.assert_close(got, oracle.expert_ffn(x_ND, *weights, sizes_E.tolist(), activation), "float32", factor=2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_fp8_weights_with_scales(implementation, gated):
  x_ND, weights, sizes_E, _ = operands(MIXED, "bfloat16", gated)
  weights = [None if w is None else w.astype("float8_e4m3fn") for w in weights]
  E = sizes_E.shape[0]
  scales = tuple(jnp.exp(s / 2) for s in oracle.draw(1, "float32", (E,), (E, F), (E, D)))
  scales = scales if gated else (None, *scales[1:])
  arguments = x_ND, *weights, sizes_E
  got = expert_ffn(*arguments, activation="silu", scales=scales, implementation=implementation)
  wide = [
    w if w is None else np.asarray(w.astype("float32") * s.reshape(E, 1, -1))
    for w, s in zip(weights, scales, strict=True)
  ]
  want = oracle.expert_ffn(x_ND, *wide, sizes_E.tolist(), "silu")
  oracle.assert_close(got, want, "bfloat16", factor=2)
  oracle.assert_close(expert_ffn_reference(*arguments, activation="silu", scales=scales), want, "bfloat16", factor=2)


@pytest.mark.parametrize("weights_dtype", ["bfloat16", "float8_e4m3fn"])
def test_loops_declare_the_rows_that_are_expected(weights_dtype):
  x_ND, weights, sizes_E, _ = operands(MIXED, "bfloat16", True)
  scales = {"scales": (jnp.ones(len(sizes_E)),) * 3} if weights_dtype != "bfloat16" else {}
  arguments = x_ND, *(w.astype(weights_dtype) for w in weights), sizes_E

  def declared(rows):
    run = functools.partial(expert_ffn, activation="silu", implementation="cpu_tiles", expected_rows=rows, **scales)
    return set(re.findall(r"loop\[expected=[^]]*\]", jax.jit(run).lower(*arguments).as_text(debug_info=True)))

  assert declared(None) == declared(x_ND.shape[0]) != declared(8) != set()


@pytest.mark.parametrize("gated,bytes_a_row", [(True, 2 * D + 4 * F), (False, 2 * D + 2 * F)])
def test_backward_keeps_only_rows_and_pre_activations(gated, bytes_a_row):
  x_ND, weights, sizes_E, _ = operands("one expert", "bfloat16", gated)
  run = lambda x_ND, weights: expert_ffn(x_ND, *weights, sizes_E, activation="silu")  # noqa: E731
  _, pull = jax.eval_shape(lambda *arrays: jax.vjp(run, *arrays), x_ND, weights)
  kept = sorted(leaf.shape for leaf in jax.tree.leaves(pull) if leaf.ndim)
  per_row = [shape for shape in kept if shape[0] == x_ND.shape[0]]
  assert sum(2 * math.prod(shape) for shape in per_row) == bytes_a_row * x_ND.shape[0]
  assert sorted(set(kept) - set(per_row)) == sorted({(1,), *(w.shape for w in weights if w is not None)})


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_same_bits_every_time(implementation):
  arrays = implementation, "silu", *operands(MIXED, "float32", True)
  first, second = with_gradients(*arrays), with_gradients(*arrays)
  assert [a.tobytes() for a in first] == [b.tobytes() for b in second]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_and_width_split_over_devices(implementation):
  """Four groups of rows, each on two devices that hold half of the width; one checkpointed `jit`."""
  mesh = jax.make_mesh((4, 2), ("rows", "width"), axis_types=(AxisType.Auto,) * 2)
  E, n = 3, 20
  x_ND, gate_EDF, up_EDF, down_EFD, dy_ND = oracle.draw(
    5, "float32", (4 * n, D), (E, D, F), (E, D, F), (E, F, D), (4 * n, D)
  )
  sizes_dE = jnp.array([[20, 0, 0], [3, 9, 8], [0, 0, 0], [1, 0, 12]])

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P("rows"), (P(None, None, "width"), P(None, None, "width"), P(None, "width")), P("rows")),
    out_specs=P("rows"),
  )
  def sharded(x_ND, weights, sizes_dE):
    run = lambda *arrays: expert_ffn(*arrays, sizes_dE[0], activation="silu", implementation=implementation)  # noqa: E731
    return lax.psum(jax.checkpoint(run)(x_ND, *weights), "width")

  @jax.jit
  def run(x_ND, weights):
    y_ND, pull = jax.vjp(lambda x_ND, weights: sharded(x_ND, weights, sizes_dE), x_ND, weights)
    return y_ND, pull(dy_ND)

  weights = gate_EDF, up_EDF, down_EFD
  y_ND, (dx_ND, d_weights) = run(x_ND, weights)
  want = [0, 0, 0]
  for d, sizes in enumerate(sizes_dE.tolist()):
    mine = slice(n * d, n * d + n)
    oracle.assert_close(y_ND[mine], oracle.expert_ffn(x_ND[mine], *weights, sizes, "silu"), "float32", factor=2)
    dx, *dw = oracle.expert_ffn_gradients(x_ND[mine], *weights, sizes, "silu", dy_ND[mine])
    oracle.assert_close(dx_ND[mine], dx, "float32", factor=2)
    want = [total + part for total, part in zip(want, dw, strict=True)]
  for got, wanted in zip(d_weights, want, strict=True):
    oracle.assert_close(got, wanted, "float32", factor=2)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "tpu"])
@pytest.mark.parametrize("D,F", [(0, 128), (128, 0)])
def test_widths_of_nothing(implementation, D, F):
  """Sums of nothing are 0, and so are their gradients; for a TPU the program is lowered."""
  shapes = (8, D), (2, D, F), (2, D, F), (2, F, D), (8, D)
  x_ND, gate_EDF, up_EDF, down_EFD, dy_ND = (jnp.ones(shape, "bfloat16") for shape in shapes)
  weights = gate_EDF, up_EDF, down_EFD
  traced = with_gradients.trace(implementation, "silu", x_ND, weights, jnp.array([5, 2]), dy_ND)
  lowered = traced.lower(lowering_platforms=("tpu" if implementation == "tpu" else "cpu",))
  if implementation != "tpu":
    got = lowered.compile()(x_ND, weights, jnp.array([5, 2]), dy_ND)
    assert [array.shape for array in got] == [shapes[-1], *shapes[:-1]]
    assert not any(np.any(array) for array in got)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("activation,gated", KINDS)
def test_sums_that_float16_cannot_hold(activation, gated, implementation):
  """What activates to 0 is kept as minus infinity, whose gradient is 0 as well."""
  x_ND, up_EDF, down_EFD = jnp.full((3, 8), 300.0), jnp.full((2, 8, 16), -200.0), jnp.ones((2, 16, 8))
  x_ND, up_EDF, down_EFD = (array.astype("float16") for array in (x_ND, up_EDF, down_EFD))
  weights = (up_EDF, up_EDF / 4096, down_EFD) if gated else (None, up_EDF, down_EFD)
  with np.errstate(over="ignore"):  # of the oracle's exponentials, which then divide
    check_against_oracle(implementation, activation, (x_ND, weights, jnp.array([1, 2]), x_ND), "float16")


@pytest.mark.parametrize("activation,gated", KINDS)
def test_buffers_whose_sums_float16_cannot_hold(activation, gated):
  """Batched matmuls too activate sums before float16 makes them infinite; 96 cubed is infinite there as well."""
  E, R = 2, 3
  x_ERD, dy_ERD, down_EFD = (jnp.ones(shape, "float16") for shape in ((E, R, 8), (E, R, 8), (E, 16, 8)))
  up_EDF = jnp.broadcast_to(jnp.array([-480000.0, 96.0])[:, None, None] / 8, (E, 8, 16)).astype("float16")
  weights = (up_EDF, up_EDF / 4096, down_EFD) if gated else (None, up_EDF, down_EFD)
  run = functools.partial(buffer_ffn, activation=activation, implementation="einsum")
  y_ERD, pull = jax.vjp(run, x_ERD, *weights)
  rows = [array.reshape(E * R, 8) for array in (x_ERD, dy_ERD)]
  with np.errstate(over="ignore"):  # of the oracle's exponentials, which then divide
    want = oracle.expert_ffn(rows[0], *weights, [R] * E, activation)
    wanted = oracle.expert_ffn_gradients(rows[0], *weights, [R] * E, activation, rows[1])
  for mine, other in zip((y_ERD, *pull(dy_ERD)), (want, *wanted), strict=True):
    if mine is not None:
      oracle.assert_close(mine.reshape(other.shape), other, "float16", factor=3, floor=1e-8)


def test_lowering_for_tpu_uses_its_ragged_matmul():
  arrays = operands(MIXED, "bfloat16", True)
  text = with_gradients.trace("ragged", "silu", *arrays).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count('"chlo.ragged_dot"(') == 9 and "dot_general" not in text
  assert text.count("stablehlo.transpose") == 3  # of the weights, for the gradients of rows
