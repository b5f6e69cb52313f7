"""Bad calls of the expert kernels: what was expected, what came, what to do."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels import choose
from jaxmoe.kernels.buffer_ffn import buffer_ffn
from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.grouped_matmul import grouped_matmul

N, D, F, E = 12, 8, 16, 3
X, W, DOWN = jnp.ones((N, D)), jnp.ones((E, D, F)), jnp.ones((E, F, D))
SIZES = jnp.array([4, 0, 6])
FP8 = jnp.float8_e4m3fn

MATMULS = [
  ((X[None], W, SIZES), {}, "x_ND must have shape (N, 8) to meet w_EDF, got (1, 12, 8); flatten"),
  ((X[:, :4], W, SIZES), {}, "x_ND must have shape (N, 8) to meet w_EDF, got (12, 4)"),
  ((X, W[0], SIZES), {}, "w_EDF must have three dimensions and at least one expert, got shape (8, 16); stack"),
  ((X, W[:0], SIZES[:0]), {}, "at least one expert, got shape (0, 8, 16)"),
  ((X.astype(int), W, SIZES), {}, "x_ND must be bfloat16 or float16 or float32 or float64, got int32; cast"),
  ((X, W.astype("bfloat16"), SIZES), {}, "w_EDF must be float32, got bfloat16; cast it to the dtype of the rows"),
  (
    (X, W.astype(FP8), SIZES),
    {},
    "w_EDF must be float32, got float8_e4m3fn; cast it to the dtype of the rows, or pass scales",
  ),
  ((X, W, SIZES), {"scale": jnp.ones(E)}, "w_EDF must be float8_e4m3fn or float8_e5m2, got float32; pass no scale"),
  ((X, W.astype(FP8), SIZES), {"scale": jnp.ones(F)}, "scale must have shape (3,) or (3, 16), got (16,); give one"),
  ((X, W.astype(FP8), SIZES), {"scale": jnp.ones(E, int)}, "scale must be floating, got int32; cast"),
  (
    (X, W, SIZES[:2]),
    {},
    "group_sizes_E must have shape (3,), one an expert, got (2,); count the rows of every expert",
  ),
  ((X, W, SIZES.astype(float)), {}, "group_sizes_E must be integers, got float32; cast"),
  ((X, W, jnp.array([4, -1, 2])), {}, "group_sizes_E must not be negative, got -1 for expert 1; count the rows of"),
  ((X, W, np.array([4, 5, 6])), {}, "must sum to at most the 12 rows of x_ND, got 15; drop rows"),
  (
    (X, W, SIZES),
    {"implementation": "triton"},
    "implementation must be one of cpu_tiles, tpu, ragged, hopper, or None for the platform's, got 'triton'; choose",
  ),
  ((X.tolist(), W, SIZES), {}, "x_ND must be an array, got list; convert it with jax.numpy.asarray"),
  ((X, None, SIZES), {}, "w_EDF must be an array, got None; convert"),
  ((jax.ShapeDtypeStruct((N, D), "float32"), W, SIZES), {}, "x_ND must be an array, got ShapeDtypeStruct; convert"),
  ((X, W, [4, 0, 6]), {}, "group_sizes_E must be an array, got list; convert"),
  ((X, W, None), {}, "group_sizes_E must be an array, got None; convert"),
  ((X, W, 10), {}, "group_sizes_E must be an array, got int; convert"),
  ((X, W, np.int32(10)), {}, "group_sizes_E must have shape (3,), one an expert, got (); count"),
  ((X, W.astype(FP8), SIZES), {"scale": [1.0] * E}, "scale must be an array, got list; convert"),
]

FFNS = [
  ((X, W, W, DOWN, SIZES), {"activation": "relu"}, "must be silu or gelu or clamped with a gate, got 'relu'; choose"),
  ((X, None, W, DOWN, SIZES), {"activation": "clamped"}, "must be silu or gelu without a gate, got 'clamped'"),
  ((X, W[:2], W, DOWN, SIZES), {}, "gate_EDF must have shape (3, 8, 16), got (2, 8, 16)"),
  ((X, W, W, W, SIZES), {}, "down_EFD must have shape (3, 16, 8), got (3, 8, 16)"),
  ((X, W.astype("bfloat16"), W, DOWN, SIZES), {}, "gate_EDF must be float32, got bfloat16"),
  ((X, W, W, DOWN, SIZES), {"scales": (None, jnp.ones(E), jnp.ones(E))}, "a scale for every weight or for none"),
  ((X, None, W, DOWN, SIZES), {"scales": (jnp.ones(E),) * 3}, "give None for the gate"),
  ((X, W, W, DOWN, SIZES), {"scales": None}, "scales must be a tuple (gate, up, down), got None; leave it out"),
  ((X, W, W, DOWN, SIZES), {"scales": jnp.ones((3, E))}, "scales must be a tuple (gate, up, down), got ArrayImpl"),
  ((X, W, None, DOWN, SIZES), {}, "up_EDF must be an array, got None; convert"),
  ((X, W.tolist(), W, DOWN, SIZES), {}, "gate_EDF must be an array, got list; convert"),
  ((X, W, W, None, SIZES), {}, "down_EFD must be an array, got None; convert"),
  ((X, W, W, DOWN, SIZES), {"expected_rows": 0}, "expected_rows must be a positive number known while tracing"),
  ((X, W, W, DOWN, SIZES), {"expected_rows": -3}, "or None, got -3; leave it out"),
  ((X, W, W, DOWN, SIZES), {"expected_rows": float("nan")}, "or None, got nan; leave it out"),
  ((X, W, W, DOWN, SIZES), {"expected_rows": "all"}, "or None, got all; leave it out"),
  ((X, W, W, DOWN, SIZES), {"expected_rows": True}, "or None, got True; leave it out"),
]

BUFFERS = jnp.ones((E, 4, D))
IN_BUFFERS = [
  ((BUFFERS[0], W, W, DOWN), {}, "x_ERD must have shape (3, R, 8) to meet up_EDF, got (4, 8); give one buffer"),
  ((BUFFERS[:2], W, W, DOWN), {}, "x_ERD must have shape (3, R, 8) to meet up_EDF, got (2, 4, 8)"),
  ((BUFFERS[..., :4], W, W, DOWN), {}, "x_ERD must have shape (3, R, 8) to meet up_EDF, got (3, 4, 4)"),
  ((BUFFERS.astype(int), W, W, DOWN), {}, "x_ERD must be bfloat16 or float16 or float32 or float64, got int32; cast"),
  ((BUFFERS.tolist(), W, W, DOWN), {}, "x_ERD must be an array, got list; convert"),
  ((BUFFERS, W, None, DOWN), {}, "up_EDF must be an array, got None; convert"),
  ((BUFFERS, W, W, W), {}, "down_EFD must have shape (3, 16, 8), got (3, 8, 16)"),
  ((BUFFERS, W, W.astype("bfloat16"), DOWN), {}, "up_EDF must be float32, got bfloat16; cast it to the dtype of the"),
  ((BUFFERS, W, W, DOWN), {"activation": "relu"}, "must be silu or gelu or clamped with a gate, got 'relu'; choose"),
  ((BUFFERS, None, W, DOWN), {"activation": "clamped"}, "must be silu or gelu without a gate, got 'clamped'; choose"),
  ((BUFFERS, W, W, DOWN), {"implementation": "triton"}, "must be one of einsum, cpu_tiles, tpu, ragged, hopper, or"),
]


@pytest.mark.parametrize("arguments,options,message", MATMULS)
def test_grouped_matmul(arguments, options, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    grouped_matmul(*arguments, **options)


@pytest.mark.parametrize("arguments,options,message", FFNS)
def test_expert_ffn(arguments, options, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    expert_ffn(*arguments, **{"activation": "silu", **options})


@pytest.mark.parametrize("implementation", [None, "ragged"])
@pytest.mark.parametrize("arguments,options,message", IN_BUFFERS)
def test_buffer_ffn(arguments, options, message, implementation):
  with pytest.raises(ValueError, match=re.escape(message)):
    buffer_ffn(*arguments, **{"activation": "silu", "implementation": implementation, **options})


def test_expected_rows_that_only_the_program_knows():
  run = lambda rows: expert_ffn(X, W, W, DOWN, SIZES, activation="silu", expected_rows=rows)  # noqa: E731
  with pytest.raises(
    ValueError, match=r"expected_rows must be a positive number known while tracing, or None, got .*Tr"
  ):
    jax.jit(run)(10.0)
  oracle.assert_close(run(np.float32(0.5)), np.asarray(run(None), np.float64), "float32")


@pytest.mark.parametrize("implementation", ["cpu_tiles", "ragged"])
def test_operands_split_over_explicit_axes(implementation):
  """Which would give jax's complaint about a slice; replicated operands, and those of each device, are served."""
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
  run = functools.partial(grouped_matmul, implementation=implementation)
  ffn = lambda x, w, sizes: expert_ffn(x, None, w, DOWN, sizes, activation="silu")  # noqa: E731
  with jax.set_mesh(mesh):
    x_ND, w_EDF = jax.device_put(X, P("rows")), jax.device_put(W, P(None, None, "rows"))
    for function in (run, jax.jit(run), ffn):
      with pytest.raises(
        NotImplementedError, match=r"x_ND must not be split .* P\('rows', None\); call within jax.shard"
      ):
        function(x_ND, W, SIZES)
      with pytest.raises(NotImplementedError, match=r"(w|up)_EDF must not be split over explicit mesh axes, got P"):
        function(X, w_EDF, SIZES)
    anywhere = jax.sharding.auto_axes(run, out_sharding=P("rows"))(x_ND, w_EDF, SIZES)
    each = jax.shard_map(run, in_specs=(P("rows"), P(), P()), out_specs=P("rows"))(x_ND, W, jnp.array([1, 2, 3]))
  assert np.all(np.asarray(anywhere)[:10] == D) and np.all(each == D)


@pytest.mark.parametrize("implementation", ["cpu_tiles", "ragged"])
@pytest.mark.parametrize("shape,spec", [((2,), P("rows")), ((2, F), P(None, "rows"))])
def test_scales_split_over_explicit_axes(shape, spec, implementation):
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
  up_EDF, down_EFD, one_E = W[:2].astype(FP8), DOWN[:2].astype(FP8), jnp.ones(2)
  options = {"implementation": implementation}
  with jax.set_mesh(mesh):
    scale = jax.device_put(jnp.ones(shape), spec)
    with pytest.raises(NotImplementedError, match=r"^scale must not be split over explicit mesh axes, got P"):
      grouped_matmul(X, up_EDF, SIZES[:2], scale=scale, **options)
    with pytest.raises(NotImplementedError, match=r"^scales\[1\] must not be split .*; call within jax.shard_map"):
      scales = None, scale, one_E
      expert_ffn(X, None, up_EDF, down_EFD, SIZES[:2], activation="silu", scales=scales, **options)


TPU_CALLS = {
  "matmul": lambda x, sizes: grouped_matmul(x, W.astype(x.dtype), sizes, implementation="tpu"),
  "scaled": lambda x, sizes: grouped_matmul(x, W.astype(FP8), sizes, scale=jnp.ones(E), implementation="tpu"),
  "feed-forward": lambda x, sizes: expert_ffn(
    x, *(w.astype(x.dtype) for w in (W, W, DOWN)), sizes, activation="silu", implementation="tpu"
  ),
  "buffers": lambda x, _: buffer_ffn(
    x.reshape(E, 4, D), None, W.astype(x.dtype), DOWN.astype(x.dtype), activation="silu", implementation="tpu"
  ),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("call", TPU_CALLS)
def test_tpu_legs_are_for_tpus(call, dtype):
  """Refused on a CPU, eager or compiled; served where they are lowered for a TPU, and in the TPU interpreter."""
  run, x_ND = TPU_CALLS[call], X.astype(dtype)
  traced = jax.jit(run).trace(x_ND, SIZES)
  message = "implementation='tpu' needs a TPU, got a program for cpu; leave the implementation to the platform"
  without_jit = jax.disable_jit()(run)
  for refused in (
    lambda: run(x_ND, SIZES),
    lambda: jax.jit(run)(x_ND, SIZES),
    lambda: without_jit(x_ND, SIZES),
    traced.lower,
  ):
    with pytest.raises(NotImplementedError, match=re.escape(message)):
      refused()
  assert "ragged_dot" in traced.lower(lowering_platforms=("tpu",)).as_text()
  assert np.any(interpreted(run, x_ND, SIZES)) and np.any(interpreted(jax.jit(run), x_ND, SIZES))


HOPPER = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", 132, "gpu"))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "rocm"])
def test_hopper_legs_are_for_hopper(platform):
  """As where a GPU is jax's default, and the arrays lie on a CPU."""
  x_ND, w_EDF = jnp.ones((64, 64), "bfloat16"), jnp.ones((E, 64, 128), "bfloat16")
  run = functools.partial(grouped_matmul, implementation="hopper")
  with jax.sharding.use_abstract_mesh(HOPPER):
    traced = jax.jit(run).trace(x_ND, w_EDF, SIZES)
  message = f"implementation='hopper' needs a Hopper GPU (cuda), got a program for {platform}; leave the implementation"
  with pytest.raises(NotImplementedError, match=re.escape(message)):
    traced.lower(lowering_platforms=(platform,))


def test_expected_rows_may_be_next_to_none():
  y_ND = expert_ffn(X, W, W, DOWN, SIZES, activation="silu", expected_rows=1e-17)
  assert np.array_equal(y_ND, expert_ffn(X, W, W, DOWN, SIZES, activation="silu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_strict_promotion(dtype):
  """jax may be told to promote no dtypes."""
  with jax.numpy_dtype_promotion("strict"):
    arrays = [array.astype(dtype) for array in (X, W, W, DOWN)]
    y_ND, pull = jax.vjp(lambda *arrays: expert_ffn(*arrays, SIZES, activation="silu"), *arrays)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(pull(y_ND)))
    grouped_matmul(arrays[0], W.astype(FP8), SIZES, scale=jnp.ones(E))
    buffer_ffn(arrays[0].reshape(E, 4, D), *arrays[1:], activation="silu")


@pytest.mark.parametrize("implementation", ["cpu_tiles", "ragged"])
def test_numpys_float64_is_what_jax_makes_of_it(implementation):
  """Float32 where jax has no 64 bits; beside jax's own arrays too, and without a warning."""
  x_ND, w_EDF, down_EFD = (np.asarray(array, np.float64) for array in (X, W, DOWN))
  run = functools.partial(grouped_matmul, implementation=implementation)
  ffn = functools.partial(expert_ffn, activation="silu", implementation=implementation)
  narrow, scales = (w_EDF.astype(FP8), down_EFD.astype(FP8)), (None, np.ones(E), np.ones(E))
  results = [
    run(x_ND, w_EDF, SIZES),
    run(x_ND, W, SIZES),
    run(X, w_EDF, SIZES),
    jax.grad(lambda w: run(x_ND, w, SIZES).sum())(w_EDF),
    ffn(x_ND, None, *narrow, SIZES, scales=scales),
    buffer_ffn(x_ND.reshape(E, 4, D), None, w_EDF, down_EFD, activation="silu", implementation=implementation),
    buffer_ffn(x_ND.reshape(E, 4, D), None, w_EDF, down_EFD, activation="silu"),
  ]
  assert {result.dtype.name for result in results} == {"float32"}
  with pytest.raises(ValueError, match="w_EDF must be float32, got bfloat16; cast it to the dtype of the rows"):
    run(x_ND, W.astype("bfloat16"), SIZES)


def interpreted(run, *arrays):
  with pltpu.force_tpu_interpret_mode():
    return run(*arrays)


def test_fp8_weights_have_no_gradient():
  run = lambda x: grouped_matmul(x, W.astype(FP8), SIZES, scale=jnp.ones(E)).sum()  # noqa: E731
  assert run(X) == 10 * D * F
  with pytest.raises(NotImplementedError, match="forward pass only, got a request for a gradient; train with"):
    jax.grad(run)(X)


@pytest.mark.parametrize("platform,name", [("cpu", "cpu_tiles"), ("tpu", "tpu"), ("gpu", "hopper"), ("cuda", "hopper")])
def test_the_mesh_in_use_decides(platform, name):
  assert choose.implementation(None) == "cpu_tiles"
  with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice("a device", 1, platform))):
    assert choose.implementation(None) == name
    assert choose.implementation("ragged") == "ragged"


def test_a_platform_without_a_kernel_is_not_served_in_silence():
  with (
    jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice("MI300X", 304, "rocm"))),
    pytest.raises(
      NotImplementedError, match=r"no grouped matmul is chosen for platform 'rocm'.*'ragged' runs everywhere"
    ),
  ):
    grouped_matmul(X, W, SIZES)


def test_only_the_chosen_implementation_is_imported():
  program = (
    "import sys, jax, jax.numpy as jnp\n"
    "from jaxmoe.kernels.grouped_matmul import grouped_matmul\n"
    "grouped_matmul(jnp.ones((2, 2)), jnp.ones((1, 2, 2)), jnp.array([2]))\n"
    "print(sorted(m for m in sys.modules if 'hopper' in m or 'pallas' in m or m.endswith('kernels.ragged')))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
