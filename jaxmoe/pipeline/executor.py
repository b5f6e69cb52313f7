"""A microbatched pipeline in one loop: at tick t, stage s works on microbatch t - s (GPipe, arXiv 1811.06965)."""

import jax.numpy as jnp
from jax import lax

from jaxmoe.meshes.axes import STAGE


def run_pipeline(stage_step, carry, inputs_M, *, stages: int):
  """Sends M microbatches through the stages.

  Stages that have no microbatch at a tick (the bubble) compute on what they have; `active` tells `stage_step` so.
  Before its first microbatch a stage is told that it has this one, after its last that one again, and then with the
  same input, for the stages before it repeat theirs too. So what `stage_step` keeps in `carry` by microbatch is right
  in the end although it does not look at `active`.

  Args:
    stage_step: (carry, x, microbatch index, active) -> (carry, y, emitted), run by each stage on its own layers; x and
      y have one shape.
    carry: a stage's own state, a key-value cache say.
    inputs_M: the first stage's inputs, stacked over microbatches.

  Returns:
    The last carry and what was emitted at each of the M + stages - 1 ticks, stacked.
  """
  M = inputs_M.shape[0]
  stage = lax.axis_index(STAGE)

  def tick(state, t):
    carry, received = state
    microbatch = jnp.clip(t - stage, 0, M - 1)
    x = jnp.where(stage == 0, inputs_M[microbatch], received)
    carry, y, emitted = stage_step(carry, x, microbatch, (t >= stage) & (t - stage < M))
    return (carry, _send(y, stages)), emitted

  (carry, _), emitted = lax.scan(tick, (carry, jnp.zeros_like(inputs_M[0])), jnp.arange(M + stages - 1))
  return carry, emitted


def from_last_stage(x, *, stages: int):
  """What the last stage holds, on every stage."""
  is_last = lax.axis_index(STAGE) == stages - 1
  return lax.psum(x if stages == 1 else jnp.where(is_last, x, 0), STAGE)


def _send(y, stages: int):
  """Hands `y` to the next stage; the first receives zeros."""
  return lax.ppermute(y, STAGE, [(s, s + 1) for s in range(stages - 1)]) if stages > 1 else y
