"""Programs that XLA's own cost analysis counts exactly on CPU: without loops, custom calls and fused gathers."""

import jax
import jax.numpy as jnp
from jax import lax

X = jnp.ones((64, 32))


def mlp(w, x):
  return jnp.sum(jnp.tanh(x @ w) ** 2)


def attention(q, k, v):
  scores = jnp.einsum("bshk,bthk->bhst", q, k)
  return jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(scores), v)


def norm(x):
  return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def pooled(x):
  return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")


LOOP_FREE = {
  "matmul": (lambda x, w: x @ w, X, jnp.ones((32, 48))),
  "16 bits": (lambda x, w: jax.nn.silu(x @ w), X.astype(jnp.bfloat16), jnp.ones((32, 48), jnp.bfloat16)),
  "elementwise": (lambda x: jax.nn.gelu(x) * 2 + x, X),
  "functions": (lambda x: jnp.cbrt(x) + jnp.expm1(x) + jnp.log1p(x) + x**1.5 + lax.rsqrt(x) + jnp.cos(x), X),
  "rare functions": (lambda x: lax.erf(x) + jnp.tan(x) + jnp.exp2(x) + jnp.arctan2(x, x), X),
  "rounding": (lambda x: jnp.clip(x, 0, 1) + jnp.round(x) + jnp.sign(x) + jnp.abs(x), X),
  "integers": (lambda x: x * 3 + (x >> 2), jnp.ones((64, 32), jnp.int32)),
  "bits": (lambda x: lax.bitcast_convert_type(x, jnp.int32) + 1, X),
  "select": (lambda x: jnp.where(x > 0.5, x, -x), X),
  "softmax": (jax.nn.softmax, X),
  "sum of exponentials": (lambda x: jax.nn.logsumexp(x, -1), X),
  "largest": (lambda x: jnp.argmax(x, -1), X),
  "norm": (norm, X),
  "gradient": (jax.grad(mlp), jnp.ones((32, 48)), X),
  "attention": (attention, *[jnp.ones((2, 16, 4, 8))] * 3),
  "attention, gradient": (jax.grad(lambda *x: attention(*x).sum()), *[jnp.ones((2, 16, 4, 8))] * 3),
  "slice": (lambda x: x[3:7] * 2, X),
  "dynamic slice": (lambda x, i: lax.dynamic_slice_in_dim(x, i, 4) * 2, X, 3),
  "update of a slice": (lambda x, y, i: lax.dynamic_update_slice_in_dim(x, y, i, 0), X, X[:4], 3),
  "scatter": (lambda x, y, i: x.at[i].add(y), X, X[:4], jnp.arange(4)),
  "sort": (lambda x: jnp.sort(x, -1), X),
  "sort of numbers": (lambda x: jnp.argsort(x, -1), X),
  "concatenate": (lambda x, y: jnp.concatenate([x, y * 2]), X, X[:3]),
  "pad": (lambda x: jnp.pad(x, 2), X),
  "transpose": (lambda x: x.T, X),
  "one hot": (lambda ids: jax.nn.one_hot(ids, 32), jnp.arange(16)),
  "cumulative sum": (lambda x: jnp.cumsum(x, 0), X),
  "pooled": (pooled, X),
  "pooled, gradient": (jax.grad(lambda x: pooled(x).sum()), X),
  "convolution": (lambda x, w: lax.conv(x, w, (1, 1), "SAME"), jnp.ones((2, 3, 8, 8)), jnp.ones((8, 3, 3, 3))),
  "several results": (lambda x: (x + 1, jnp.sin(x), x.sum()), X),
}  # fmt: skip
