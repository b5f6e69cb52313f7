"""Grouped matmuls in float64 numpy, one expert after the other: the oracle of every kernel, and patterns to try."""

import jax.numpy as jnp
import numpy as np

# Greatest error relative to the largest entry: sums in float32 or wider, rounded once (2^-11 and 2^-8, half each).
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "float16": 5e-4, "bfloat16": 4e-3}

# Name -> (rows N, group sizes).
PATTERNS = {
  "empty, one row, odd sizes, sum below N": (100, [30, 0, 1, 50, 7]),
  "nothing": (100, [0, 0, 0, 0, 0]),
  "all in one": (100, [0, 0, 100, 0, 0]),
  "one row": (1, [1]),
  "no rows": (0, [0, 0]),
  "one expert": (70, [70]),
  "several tiles": (300, [201, 3, 96]),
  "256 experts": (300, [(7 * e) % 3 for e in range(256)]),
  "more experts than rows": (9, [0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]),
}


def grouped_matmul(x_ND, w_EDF, sizes):
  """y_NF and zeros past the sum."""
  x_ND, w_EDF = _wide(x_ND), _wide(w_EDF)
  y_NF = np.zeros((x_ND.shape[0], w_EDF.shape[2]))
  for e, group in enumerate(groups(sizes)):
    y_NF[group] = x_ND[group] @ w_EDF[e]
  return y_NF


def grouped_matmul_gradients(x_ND, w_EDF, sizes, dy_NF):
  """dx_ND and dw_EDF."""
  x_ND, w_EDF, dy_NF = _wide(x_ND), _wide(w_EDF), _wide(dy_NF)
  dx_ND, dw_EDF = np.zeros_like(x_ND), np.zeros_like(w_EDF)
  for e, group in enumerate(groups(sizes)):
    dx_ND[group] = dy_NF[group] @ w_EDF[e].T
    dw_EDF[e] = x_ND[group].T @ dy_NF[group]
  return dx_ND, dw_EDF


def expert_ffn(x_ND, gate_EDF, up_EDF, down_EFD, sizes, activation):
  """y_ND."""
  pre = [None if w is None else grouped_matmul(x_ND, w, sizes) for w in (gate_EDF, up_EDF)]
  return grouped_matmul(hidden(activation, *pre), down_EFD, sizes)


def expert_ffn_gradients(x_ND, gate_EDF, up_EDF, down_EFD, sizes, activation, dy_ND, step=1e-6):
  """dx_ND, dgate_EDF (or None), dup_EDF, ddown_EFD; the activation's slope by central differences."""
  gate_NF, up_NF = (None if w is None else grouped_matmul(x_ND, w, sizes) for w in (gate_EDF, up_EDF))
  d_hidden_NF, d_down_EFD = grouped_matmul_gradients(hidden(activation, gate_NF, up_NF), down_EFD, sizes, dy_ND)
  slope = lambda high, low: (hidden(activation, *high) - hidden(activation, *low)) / (2 * step)  # noqa: E731
  d_up_NF = d_hidden_NF * slope((gate_NF, up_NF + step), (gate_NF, up_NF - step))
  dx_ND, d_up_EDF = grouped_matmul_gradients(x_ND, up_EDF, sizes, d_up_NF)
  if gate_EDF is None:
    return dx_ND, None, d_up_EDF, d_down_EFD
  d_gate_NF = d_hidden_NF * slope((gate_NF + step, up_NF), (gate_NF - step, up_NF))
  more_ND, d_gate_EDF = grouped_matmul_gradients(x_ND, gate_EDF, sizes, d_gate_NF)
  return dx_ND + more_ND, d_gate_EDF, d_up_EDF, d_down_EFD


def hidden(activation, gate, up):
  """Formulas written out, none taken from the package."""
  if activation == "clamped":
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
  pre = up if gate is None else gate
  if activation == "silu":
    act = pre / (1 + np.exp(-pre))
  else:
    act = 0.5 * pre * (1 + np.tanh(np.sqrt(2 / np.pi) * (pre + 0.044715 * pre**3)))
  return act if gate is None else act * up


def groups(sizes):
  """The rows of each expert."""
  ends = np.cumsum(sizes)
  return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def draw(seed: int, dtype, *shapes):
  """Standard normal arrays, rounded to `dtype`."""
  random = np.random.default_rng(seed)
  return tuple(jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)


def assert_close(got, want, dtype, factor=1.0, floor=0.0):
  """Error at most `factor` times the dtype's tolerance, or `floor`, relative to the largest entry."""
  got, want = _wide(got), np.asarray(want)
  assert got.shape == want.shape
  largest = np.abs(want).max(initial=0.0)
  error = np.abs(got - want).max(initial=0.0)
  limit = max(factor * TOLERANCE[jnp.dtype(dtype).name], floor) * largest
  assert error <= limit, f"error {error:.3g} above {limit:.3g}"


def _wide(x):
  return np.asarray(x).astype(np.float64)
