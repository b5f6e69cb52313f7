"""Cross entropy over a split vocabulary, with the logits of one microbatch at a time."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxmoe.config.deployment import Deployment
from jaxmoe.model.transformer import Head
from jaxmoe.model.vocabulary import cross_entropy
from jaxmoe.pipeline.executor import from_last_stage


def mean_cross_entropy(deployment: Deployment, head: Head, emitted_TD, targets_MT):
  """This device's part of the mean cross entropy of the global batch: a scalar in at least float32.

  Forward makes the gradients too, while a microbatch's logits are there: those of all microbatches at once would be the
  largest arrays of a step, and to make them again in backward would cost a third more of the head's FLOPs.

  Args:
    emitted_TD: what this stage emitted, stacked over ticks; the last stage's last M count.
    targets_MT: of all tokens of a microbatch, whatever slice of them a tick emitted.
  """
  return _summed(functools.partial(_part, deployment), head, emitted_TD, targets_MT)


def _part(d: Deployment, head: Head, emitted_TD, targets_T):
  """One microbatch's part of the mean."""
  with jax.named_scope("head"):
    logits_TV = head.logits(d, head.norm(from_last_stage(emitted_TD, stages=d.strategy.stage)), d.strategy.slice_axes)
  with jax.named_scope("loss"):
    return cross_entropy(logits_TV, targets_T, d.rules).sum() / (d.job.batch * d.job.sequence_length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(part, weights, x_N, targets_M):
  """The sum of `part(weights, x, targets)` over all targets and the last M of x."""
  skipped = x_N.shape[0] - targets_M.shape[0]
  return lax.map(lambda slices: part(weights, *slices), (x_N[skipped:], targets_M)).sum()


def _forward(part, weights, x_N, targets_M):
  M = targets_M.shape[0]

  def one(gradients, slices):
    d_weights, dx_N = gradients
    n, targets = slices
    value, pullback = jax.vjp(lambda weights, x: part(weights, x, targets), weights, x_N[n])
    more, dx = pullback(jnp.ones_like(value))
    return (jax.tree.map(jnp.add, d_weights, more), dx_N.at[n].set(dx)), value  # in place: no copy of dx_N is padded

  zeros = jax.tree.map(jnp.zeros_like, (weights, x_N))
  gradients, value_M = lax.scan(one, zeros, (jnp.arange(x_N.shape[0] - M, x_N.shape[0]), targets_M))
  return value_M.sum(), gradients


def _backward(part, gradients, d_sum):
  del part
  return *jax.tree.map(lambda x: x * d_sum.astype(x.dtype), gradients), None


_summed.defvjp(_forward, _backward)
