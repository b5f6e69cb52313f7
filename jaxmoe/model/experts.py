"""The experts of every layer; tokens arrive grouped by expert."""

from typing import Any

from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.kernels.buffer_ffn import buffer_ffn
from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.model.norm import parameter


class Experts(nnx.Module):
  """E feed-forward networks a layer, of which a device holds its share of experts and of their width."""

  def __init__(self, deployment: Deployment, *, rngs: nnx.Rngs):
    m = deployment.model
    L, E, D, F = m.num_layers, m.num_experts, m.d_model, m.d_expert
    self.activation: Any = m.activation
    self.kernel: Any = None if deployment.job.expert_kernel == "platform" else deployment.job.expert_kernel
    self.gate = parameter(deployment, rngs, "expert", "LEDF", (L, E, D, F), fan_in=D) if m.gated else None
    self.up = parameter(deployment, rngs, "expert", "LEDF", (L, E, D, F), fan_in=D)
    self.down = parameter(deployment, rngs, "expert", "LEFD", (L, E, F, D), fan_in=F)

  @property
  def count(self) -> int:
    """Experts that these weights hold: all when built, one device's share inside `shard_map`."""
    return self.up[...].shape[-3]

  def __call__(self, x_ERD):
    """R rows for each expert of this device; returns its width share's part of the output, x_ERD."""
    weights = self._weights(x_ERD.dtype)
    return buffer_ffn(x_ERD, *weights, activation=self.activation, implementation=self.kernel)

  def rows(self, x_ND, sizes_E, expected_rows: float):
    """Rows sorted by expert, `sizes_E` of each; rows past their sum give zeros."""
    weights = self._weights(x_ND.dtype)
    return expert_ffn(
      x_ND,
      *weights,
      sizes_E,
      activation=self.activation,
      implementation=self.kernel,
      expected_rows=expected_rows,
    )

  def _weights(self, dtype):
    gate_EDF = None if self.gate is None else self.gate[...].astype(dtype)
    return gate_EDF, self.up[...].astype(dtype), self.down[...].astype(dtype)
