"""Root-mean-square normalisation, and how weights are made and used."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.kernels.dtypes import accumulator
from jaxmoe.meshes.build import spec


def parameter(
  deployment: Deployment, rngs: nnx.Rngs, role: str, letters: str, shape, *, fan_in: int | None
) -> nnx.Param:
  """A stored weight: normal with standard deviation 1/sqrt(fan_in), or ones where `fan_in` is None."""
  precision = deployment.job.precision
  dtype = jnp.dtype(precision.sensitive_weights if role in ("norm", "head norm", "router") else precision.weights)
  if fan_in is None:
    value = jnp.ones(shape, dtype)
  else:
    value = (jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5).astype(dtype)
  return nnx.Param(value, out_sharding=tuple(spec(deployment.rules, role, letters)))


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last dimension, computed in at least float32."""

  def __init__(self, deployment: Deployment, role: str, letters: str, shape, *, rngs: nnx.Rngs):
    self.eps = deployment.model.norm_eps
    self.scale = parameter(deployment, rngs, role, letters, shape, fan_in=None)

  def __call__(self, x):
    wide = x.astype(accumulator(x.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
    scale = self.scale[...].astype(wide.dtype)
    return (normed * jnp.expand_dims(scale, range(x.ndim - scale.ndim))).astype(x.dtype)
