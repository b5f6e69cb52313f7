"""Programs for one device whose matmul FLOPs are known by hand: 2 x result elements x contracted elements."""

import jax
import jax.numpy as jnp
from jax import lax


def step(x):
  return jnp.tanh(x @ x)


def repeat(times, body, x):
  return lax.scan(lambda x, _: (body(x), None), x, None, length=times)[0]


def einsum(equation):
  return lambda *operands: jnp.einsum(equation, *operands)


def one_row_in_a_loop(x, w_LDF, u_LFD):
  """Three one-row dots with epilogues in each iteration, one of them a scalar."""

  def layer(x, weights):
    w, u = weights
    y = jax.nn.silu(x @ w) @ u
    return x + y / jnp.linalg.norm(y), x @ x

  return lax.scan(layer, x, (w_LDF, u_LFD))


def one_row_in_calls(x, w):
  """Called twice, once from a loop."""
  inner = jax.jit(lambda x: jnp.sin(x @ w))
  return repeat(5, inner, inner(x))


def decode(q_BHK, k_BSHK, v_BSHK):
  """Attention of one query."""
  scores = jax.nn.softmax(jnp.einsum("bhk,bshk->bhs", q_BHK, k_BSHK))
  return jnp.einsum("bhs,bshk->bhk", scores, v_BSHK)


def attention_loss(q, k, v):
  scores = jnp.einsum("bshk,bthk->bhst", q, k)
  return jnp.sin(jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(scores), v)).sum()


def recomputed_loss(x, w):
  return repeat(6, jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w) @ w)), x).sum()


def until_told(x, n):
  """A loop that only the data end; its scope says how often it is expected to run, and at most."""
  with jax.named_scope("loop[expected=2.5,max=7]"):
    return lax.fori_loop(0, n, lambda _, x: step(x), x)


def choice(x):
  """Four times nothing, two steps or one."""
  with jax.named_scope("choice"):
    branches = [lambda x: x, lambda x: step(step(x)), step]
    return repeat(4, lambda x: lax.switch(jnp.int32(x[0, 0]), branches, x), x)


ONE = 2 * 8**3
SQUARE = (8, 8)
# Name -> program, shapes of its arguments, FLOPs.
LOOPS = {
  "one step": (step, [SQUARE], ONE),
  "scan": (lambda x: repeat(5, step, x), [SQUARE], 5 * ONE),
  "nested scans": (lambda x: repeat(3, lambda x: repeat(7, step, step(x)), x), [SQUARE], 3 * (1 + 7) * ONE),
  "from 2 to 11": (lambda x: lax.fori_loop(2, 11, lambda _, x: step(x), x), [SQUARE], 9 * ONE),
  "the counter is used": (lambda x: lax.fori_loop(0, 6, lambda i, x: x + step(x) * i, x), [SQUARE], 6 * ONE),
  "reversed": (lambda x: lax.scan(lambda x, _: (step(x), x), x, None, length=4, reverse=True), [SQUARE], 4 * ONE),
  "loop in a loop": (
    lambda x: lax.fori_loop(0, 4, lambda _, x: lax.fori_loop(0, 5, lambda _, x: step(x), x), x), [SQUARE], 20 * ONE,
  ),
  "by threes": (
    lambda x: lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] + 3, step(c[1])), (1, x)), [SQUARE], 3 * ONE,
  ),
  "down by twos": (
    lambda x: lax.while_loop(lambda c: c[0] > 0, lambda c: (c[0] - 2, step(c[1])), (7, x)), [SQUARE], 4 * ONE,
  ),
  "down to a bound that is carried": (
    lambda x: lax.while_loop(lambda c: c[0] >= c[2], lambda c: (c[0] - 2, step(c[1]), c[2]), (8, x, 0)),
    [SQUARE], 5 * ONE,
  ),
  "recomputed in a scan": (jax.grad(recomputed_loss, (0, 1)), [SQUARE, SQUARE], 6 * (2 + 2 + 4) * ONE),
}  # fmt: skip
MATMULS = {
  "small": (einsum("mk,kn->mn"), [(16, 32), (32, 48)], 2 * 16 * 48 * 32),
  "large": (einsum("mk,kn->mn"), [(512, 256), (256, 384)], 2 * 512 * 384 * 256),
  "tiny": (einsum("mk,kn->mn"), [(2, 2), (2, 2)], 2 * 2 * 2 * 2),
  "batched": (einsum("ecd,edf->ecf"), [(4, 8, 16), (4, 16, 32)], 2 * 4 * 8 * 32 * 16),
  "scores": (einsum("bshk,bthk->bhst"), [(2, 32, 4, 16), (2, 32, 4, 16)], 2 * 2 * 4 * 32 * 32 * 16),
  "values": (einsum("bhst,bthk->bshk"), [(2, 4, 32, 32), (2, 32, 4, 16)], 2 * 2 * 32 * 4 * 16 * 32),
  "attention, gradient": (jax.grad(attention_loss, (0, 1, 2)), [(2, 32, 4, 16)] * 3, 6 * 2 * 2 * 4 * 32 * 32 * 16),
}
# Multiplies and sums in the end: nothing is left of a dot but its name.
ONE_ROW = {
  "one row": (einsum("mk,kn->mn"), [(1, 64), (64, 32)], 2 * 64 * 32),
  "vector and matrix": (einsum("k,kn->n"), [(64,), (64, 32)], 2 * 64 * 32),
  "matrix and vector": (einsum("mk,k->m"), [(32, 64), (64,)], 2 * 32 * 64),
  "vectors": (einsum("k,k->"), [(64,), (64,)], 2 * 64),
  "short vectors": (einsum("k,k->"), [(8,), (8,)], 2 * 8),
  "many vectors": (einsum("bk,bk->b"), [(4, 64), (4, 64)], 2 * 4 * 64),
  "nothing to contract": (einsum("m,n->mn"), [(16,), (32,)], 2 * 16 * 32),
  "one column": (einsum("mk,kn->mn"), [(16, 1), (1, 32)], 2 * 16 * 32),
  "one row for each expert": (einsum("ecd,edf->ecf"), [(4, 1, 16), (4, 16, 32)], 2 * 4 * 16 * 32),
  "one query": (einsum("bhk,bshk->bhs"), [(4, 8, 16), (4, 32, 8, 16)], 2 * 4 * 8 * 32 * 16),
  "four queries a key": (einsum("bgqk,bsgk->bgqs"), [(4, 2, 4, 16), (4, 32, 2, 16)], 2 * 4 * 2 * 4 * 32 * 16),
  "decode": (decode, [(4, 8, 16), (4, 32, 8, 16), (4, 32, 8, 16)], 2 * 2 * 4 * 8 * 32 * 16),
  "in a loop": (one_row_in_a_loop, [(16,), (3, 16, 64), (3, 64, 16)], 3 * (2 * 2 * 16 * 64 + 2 * 16)),
  "in calls": (one_row_in_calls, [(16,), (16, 16)], 6 * 2 * 16 * 16),
}
CONVOLUTION = (
  lambda x, w: lax.conv(x, w, (1, 1), "SAME"), [(2, 3, 16, 16), (8, 3, 3, 3)], 2 * 2 * 8 * 3 * (3 * 16 - 2) ** 2,
)  # fmt: skip
