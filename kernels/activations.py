"""What an expert does between its matmuls, elementwise."""

from typing import Literal

import jax
import jax.numpy as jnp

Activation = Literal["silu", "gelu", "clamped"]

UNARY = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}  # gelu is the tanh approximation, jax's default

CLAMP = 7.0  # of the published gpt-oss models
SHARPNESS = 1.702  # x sigmoid(1.702 x) is the sigmoid approximation of gelu


def gated(activation: Activation, gate, up):
  """act(gate) * up; "clamped" is g sigmoid(1.702 g) (u + 1) with g = min(gate, 7), u = clip(up, -7, 7).

  Every gated activation is 0 where `gate` and `up` are 0, so rows that no expert owns stay 0.
  """
  if activation == "clamped":
    gate, up = jnp.minimum(gate, CLAMP), jnp.clip(up, -CLAMP, CLAMP)
    return gate * jax.nn.sigmoid(SHARPNESS * gate) * (up + 1)
  return UNARY[activation](gate) * up


def hidden(activation: Activation, pre):
  """The expert's hidden rows from its pre-activations: `(gate, up)`, or `(up,)` of an expert without a gate."""
  return gated(activation, *pre) if len(pre) == 2 else UNARY[activation](*pre)
