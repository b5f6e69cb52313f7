"""The experts of every layer; tokens arrive grouped by expert."""

from flax import nnx

from jaxmoe.config.deployment import Deployment
from jaxmoe.kernels.buffer_ffn import buffer_ffn
from jaxmoe.model.norm import parameter


class Experts(nnx.Module):
  """E feed-forward networks a layer, of which a device holds its share of experts and of their width."""

  def __init__(self, deployment: Deployment, *, rngs: nnx.Rngs):
    m = deployment.model
    L, E, D, F = m.num_layers, m.num_experts, m.d_model, m.d_expert
    self.activation = m.activation
    self.gate = parameter(deployment, rngs, "expert", "LEDF", (L, E, D, F), fan_in=D) if m.gated else None
    self.up = parameter(deployment, rngs, "expert", "LEDF", (L, E, D, F), fan_in=D)
    self.down = parameter(deployment, rngs, "expert", "LEFD", (L, E, F, D), fan_in=F)

  def __call__(self, x_ERD):
    """R rows for each expert of this device; returns its width share's part of the output, x_ERD."""
    gate_EDF = None if self.gate is None else self.gate[...].astype(x_ERD.dtype)
    up_EDF, down_EFD = (weight[...].astype(x_ERD.dtype) for weight in (self.up, self.down))
    return buffer_ffn(x_ERD, gate_EDF, up_EDF, down_EFD, activation=self.activation)
