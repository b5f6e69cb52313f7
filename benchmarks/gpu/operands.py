"""Rows sorted by expert and a layer's weights, drawn from a problem's seed; and the device that dry runs pretend."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from problems import Problem

from jaxmoe.kernels.hopper.device import Device


@dataclasses.dataclass(frozen=True)
class Operands:
  """Rows sorted by expert, and the weights of the layer."""

  problem: Problem
  x_ND: jax.Array
  y_NF: jax.Array
  gate_EDF: jax.Array
  up_EDF: jax.Array
  down_EFD: jax.Array
  sizes_E: jax.Array

  @functools.cached_property
  def gate_up_EDF(self) -> jax.Array:
    """Gate and up side by side, so that peers too need only one matmul."""
    return jnp.concatenate([self.gate_EDF, self.up_EDF], axis=2)

  @functools.cached_property
  def down_fp8_EFD(self) -> jax.Array:
    return self.down_EFD.astype("float8_e4m3fn")

  @functools.cached_property
  def scale_ED(self) -> jax.Array:
    return 1 + jax.random.uniform(jax.random.key(self.problem.seed + 1), self.down_EFD.shape[::2])


def dry_device() -> Device:
  """What a dry run interprets."""
  return Device("NVIDIA H200", 2)


def on_dry_device():
  """What is traced meanwhile takes the interpreted device to be the one at hand."""
  device = jax.sharding.AbstractDevice(dry_device().kind, dry_device().processors, "gpu")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def operands(problem: Problem) -> Operands:
  N, D, F, E = problem.dims
  shapes = [(N, D), (N, F), (E, D, F), (E, D, F), (E, F, D)]
  keys = jax.random.split(jax.random.key(problem.seed), len(shapes))
  scales = [1.0, 1.0, D**-0.5, D**-0.5, F**-0.5]
  draw = jax.jit(lambda key, shape, scale: jax.random.normal(key, shape, problem.dtype) * scale, static_argnums=(1, 2))
  arrays = [draw(key, shape, scale) for key, shape, scale in zip(keys, shapes, scales, strict=True)]
  x_ND, y_NF, gate_EDF, up_EDF, down_EFD = arrays
  return Operands(problem, x_ND, y_NF, gate_EDF, up_EDF, down_EFD, jnp.asarray(problem.sizes()))


def some_rows_unowned(o: Operands) -> Operands:
  """The sizes with up to a tenth of the rows taken from the last group: rows past the sum exist, and hold NaN."""
  sizes_E = np.array(o.sizes_E)
  last = int(np.flatnonzero(sizes_E)[-1])
  sizes_E[last] -= min(sizes_E[last], max(1, o.problem.dims[0] // 10))
  owned = (jnp.arange(o.x_ND.shape[0]) < sizes_E.sum())[:, None]
  x_ND, y_NF = (jnp.where(owned, array, jnp.nan) for array in (o.x_ND, o.y_NF))
  return dataclasses.replace(o, x_ND=x_ND, y_NF=y_NF, sizes_E=jnp.asarray(sizes_E))


def routing(o: Operands) -> tuple[np.ndarray, np.ndarray]:
  """Experts and scores of each token, with the same rows for each expert, in random order."""
  experts = np.repeat(np.arange(o.sizes_E.shape[0]), np.asarray(o.sizes_E))
  experts = np.random.default_rng(o.problem.seed).permutation(experts).reshape(o.problem.tokens, -1)
  return experts.astype(np.int32), np.full(experts.shape, 1 / experts.shape[1], np.float32)
