"""Bad calls of the expert kernels: what was expected, what came, what to do."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AbstractDevice, AbstractMesh

from jaxmoe.kernels import check, choose
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
  ((X, W.astype("bfloat16"), SIZES), {}, "w_EDF must be float32, got bfloat16; cast it to the dtype of x_ND"),
  (
    (X, W.astype(FP8), SIZES),
    {},
    "w_EDF must be float32, got float8_e4m3fn; cast it to the dtype of x_ND, or pass scales",
  ),
  ((X, W, SIZES), {"scale": jnp.ones(E)}, "w_EDF must be float8_e4m3fn or float8_e5m2, got float32; pass no scale"),
  ((X, W.astype(FP8), SIZES), {"scale": jnp.ones(F)}, "scale must have shape (3,) or (3, 16), got (16,); give one"),
  ((X, W.astype(FP8), SIZES), {"scale": jnp.ones(E, int)}, "scale must be floating, got int32; cast"),
  ((X, W, SIZES[:2]), {}, "group_sizes_E must have shape (3,), one an expert, got (2,)"),
  ((X, W, SIZES.astype(float)), {}, "group_sizes_E must be integers, got float32; cast"),
  ((X, W, jnp.array([4, -1, 2])), {}, "group_sizes_E must not be negative, got -1 for expert 1"),
  ((X, W, np.array([4, 5, 6])), {}, "must sum to at most the 12 rows of x_ND, got 15; drop rows"),
  (
    (X, W, SIZES),
    {"implementation": "triton"},
    "implementation must be one of cpu_tiles, tpu, ragged, hopper, or None",
  ),
]

FFNS = [
  ((X, W, W, DOWN, SIZES), {"activation": "relu"}, "must be silu or gelu or clamped with a gate, got 'relu'; choose"),
  ((X, None, W, DOWN, SIZES), {"activation": "clamped"}, "must be silu or gelu without a gate, got 'clamped'"),
  ((X, W[:2], W, DOWN, SIZES), {}, "gate_EDF must have shape (3, 8, 16), got (2, 8, 16)"),
  ((X, W, W, W, SIZES), {}, "down_EFD must have shape (3, 16, 8), got (3, 8, 16)"),
  ((X, W.astype("bfloat16"), W, DOWN, SIZES), {}, "gate_EDF must be float32, got bfloat16"),
  ((X, W, W, DOWN, SIZES), {"scales": (None, jnp.ones(E), jnp.ones(E))}, "a scale for every weight or for none"),
  ((X, None, W, DOWN, SIZES), {"scales": (jnp.ones(E),) * 3}, "give None for the gate"),
]


@pytest.mark.parametrize("arguments,options,message", MATMULS)
def test_grouped_matmul(arguments, options, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    grouped_matmul(*arguments, **options)


@pytest.mark.parametrize("arguments,options,message", FFNS)
def test_expert_ffn(arguments, options, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    expert_ffn(*arguments, **{"activation": "silu", **options})


def test_fp8_weights_have_no_gradient():
  run = lambda x: grouped_matmul(x, W.astype(FP8), SIZES, scale=jnp.ones(E)).sum()  # noqa: E731
  assert run(X) == 10 * D * F
  with pytest.raises(NotImplementedError, match="forward pass only, got a request for a gradient; train with"):
    jax.grad(run)(X)


@pytest.mark.parametrize(
  "sizes,as_if",
  [([4, -3, 6], [4, 0, 6]), ([4, 5, 6], [4, 5, 3]), ([2**31 - 1, 2**31 - 1, 5], [12, 0, 0]), ([20, -5, 1], [12, 0, 0])],
)
def test_traced_sizes_are_clamped_and_reported(sizes, as_if):
  x_ND, w_EDF = oracle.draw(0, "float32", (N, D), (E, D, F))
  got = jax.jit(grouped_matmul)(x_ND, w_EDF, jnp.array(sizes))
  oracle.assert_close(got, oracle.grouped_matmul(x_ND, w_EDF, as_if), "float32")
  loss = lambda x, w, sizes: grouped_matmul(x, w, sizes).sum()  # noqa: E731
  for function in (grouped_matmul, jax.grad(loss, argnums=1)):
    checked = jax.jit(checkify.checkify(function, errors=checkify.user_checks))
    error, _ = checked(x_ND, w_EDF, jnp.array(sizes))
    with pytest.raises(checkify.JaxRuntimeError, match="group size"):
      error.throw()
    error, _ = checked(x_ND, w_EDF, jnp.array(as_if))
    error.throw()


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


def test_sizes_whose_sum_overflows_are_clamped():
  N = 2**30
  got = jax.jit(lambda sizes_E: check.sizes(sizes_E, 5, N))(jnp.full(5, N))
  assert got.tolist() == [N, 0, 0, 0, 0]
