"""Gradients of stacked weights, added up in place.

A scan over stacked weights has backward fill a new stack of gradients for every microbatch and add that to the sum of
those before: two stacks, and all of both read and written each time. Here the sum goes through backward's loops, and
each layer adds to its own part.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.model.parallel import vary, varying_axes


@jax.custom_vjp
def gradient_sums(weights):
  """Zeros like the stacked `weights`, for `adding_to` to pass on; their gradient becomes that of `weights`."""
  return jax.tree.map(lambda w: vary(jnp.zeros_like(w), varying_axes(w)), weights)


gradient_sums.defvjp(lambda weights: (gradient_sums(weights), None), lambda _, d_sums: (d_sums,))


@jax.custom_vjp
def adding_to(sums, weights, layer):
  """(sums, weights of one layer); backward adds the gradient of `weights` to this layer's part of `sums`."""
  del layer
  return sums, weights


def _backward(layer, gradients):
  d_sums, d_weights = gradients
  at = functools.partial(lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)
  put = functools.partial(lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False)
  return jax.tree.map(lambda total, new: put(total, at(total, layer) + new, layer), d_sums, d_weights), None, None


adding_to.defvjp(lambda sums, weights, layer: ((sums, weights), layer), _backward)
