"""Every leg lowers for an NVIDIA H200 with plain CPU jax, and no tile shape exceeds its shared memory."""

import re

import hopper
import jax
import jax.numpy as jnp
import pytest

from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.hopper import config, legs

N, D, F, E = 4096, 1024, 2304, 8  # 2304 = 9 * 256 = 12 * 192
SIDES = {
  "matmul": (D, F),
  "matmul_scaled": (D, F),
  "gated_up": (D, F),
  "matmul_transposed": (F, D),
  "weight_gradient": (D, F),
}


def lowered(function, *shapes):
  with hopper.target():
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def arguments_of(leg, dtype="bfloat16"):
  x, y, w, sizes = ((N, D), dtype), ((N, F), dtype), ((E, D, F), dtype), ((E,), "int32")
  return {
    "matmul": (x, w, sizes),
    "matmul_scaled": (x, ((E, D, F), "float8_e4m3fn"), ((E, F), "float32"), sizes),
    "matmul_transposed": (y, w, sizes),
    "gated_up": (x, w, w, sizes),
    "up": (x, w, sizes),
    "weight_gradient": (x, y, sizes),
  }[leg]


def call(leg, activation="silu", **options):
  more = (activation,) if leg in ("gated_up", "up") else ()
  return lambda *arrays: getattr(legs, leg)(*arrays, *more, **options)


@pytest.mark.parametrize("leg", [*SIDES, "up"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_lowers_for_cuda(leg, dtype):
  assert re.search("mosaic_gpu", lowered(call(leg), *arguments_of(leg, dtype)))


@pytest.mark.parametrize("leg", ["gated_up", "matmul_scaled", "weight_gradient"])
def test_lowers_where_integers_have_64_bits(leg):
  with jax.enable_x64(True):
    lowered(call(leg), *arguments_of(leg))


@pytest.mark.parametrize("leg", SIDES)
def test_every_candidate_fits_shared_memory(leg):
  """Lowering raises where a kernel needs more than 227 KB."""
  shapes = [shape for shape in config.candidates() if shape.serves(leg, *SIDES[leg])]
  assert len(shapes) >= 4
  for shape in shapes:
    lowered(call(leg, shape=shape), *arguments_of(leg))


@pytest.mark.parametrize("leg", ["matmul", "matmul_scaled"])
def test_one_stage_more_does_not_fit(leg):
  shape = config.TileShape(stages=5)
  assert not shape.serves(leg, D, F)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="shared memory"):
    patch.setattr(config.TileShape, "serves", lambda *_: True)
    lowered(call(leg, shape=shape), *arguments_of(leg))


def test_layer_and_its_gradients_lower():
  def loss(x_ND, gate, up, down, sizes_E):
    return jnp.sum(expert_ffn(x_ND, gate, up, down, sizes_E, activation="silu").astype("float32"))

  x, w, down, sizes = ((N, D), "bfloat16"), ((E, D, F), "bfloat16"), ((E, F, D), "bfloat16"), ((E,), "int32")
  text = lowered(jax.grad(loss, argnums=(0, 1, 2, 3)), x, w, w, down, sizes)
  calls = re.findall(r"custom_call @mosaic_gpu\w*", text)
  assert len(calls) >= 1 and "ragged_dot" not in text


@pytest.mark.parametrize("name,rows,D,F,E", [
  ("mixtral", 65536, 4096, 14336, 8), ("qwen3-30b-a3b", 262144, 2048, 768, 128), ("deepseek-v3", 64, 7168, 2048, 256),
])  # fmt: skip
def test_published_shapes_lower(name, rows, D, F, E):
  x, w, sizes = ((rows, D), "bfloat16"), ((E, D, F), "bfloat16"), ((E,), "int32")
  lowered(call("gated_up"), x, w, w, sizes)
  lowered(call("weight_gradient"), x, ((rows, F), "bfloat16"), sizes)


def test_refuses_another_device():
  device = jax.sharding.AbstractDevice("NVIDIA B200", 148, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match=r"H200.*got NVIDIA B200"):
    legs.matmul(jnp.ones((8, 64), "bfloat16"), jnp.ones((1, 64, 64), "bfloat16"), jnp.array([8]))
