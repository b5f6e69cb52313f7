"""What a leg must return, in float64, at samples that include the edges of groups and of columns.

Written out anew in numpy, none of it from the package. Only the samples, and what they are made of, leave the device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from operands import Operands, routing

SAMPLES = 24
MANY_WEIGHTS = 2**25  # of one matrix: one expert's layer is then enough to wait for


def error(leg: str, o: Operands, results: Sequence[jax.Array], *, by_token: bool = False) -> float:
  """The largest error of a sample, relative to the largest sample beside it; infinite for what is no number.

  Args:
    leg: as in `problems.CHECKED`.
    results: of the leg in its order; a layer's are y and the gradients of x, gate and up (or both in one), and down.
    by_token: the layer gathers rows by token and adds them up again, as `operands.routing` says.
  """
  _check_shapes(leg, o, results, by_token)
  random = np.random.default_rng(o.problem.seed)
  if leg == "layer":
    return max(_of_layer(o, results, random, by_token))
  return max(_of_weights(o, results[0], random) if leg == "weight_gradient" else _of_rows(leg, o, results, random))


def _check_shapes(leg: str, o: Operands, results: Sequence[jax.Array], by_token: bool) -> None:
  """A result that is too small or too large may be right at every sample."""
  name = leg.partition(" ")[0]
  if name == "layer":
    _, D, F, E = o.problem.dims
    rows = (o.problem.tokens, D) if by_token else o.x_ND.shape
    gates = [(E, D, 2 * F)] if len(results) == 4 else [(E, D, F)] * 2
    wanted = [rows, rows, *gates, (E, F, D)]
  elif name == "weight_gradient":
    wanted = [(len(o.sizes_E), o.x_ND.shape[1], o.y_NF.shape[1])]
  else:
    weights = {"gated_up": o.gate_EDF, "up": o.up_EDF, "matmul": o.down_EFD, "matmul_scaled": o.down_EFD}
    columns = o.gate_EDF.shape[1] if "transposed" in name else weights[name].shape[2]
    wanted = [(o.x_ND.shape[0], columns)] * len(results)
  found = [tuple(result.shape) for result in results]
  assert found and len(found) == len(wanted), f"{len(found)} results, not {len(wanted)}"
  assert found == wanted, f"results are {found} and should be {wanted}"


def _of_rows(leg: str, o: Operands, results: Sequence[jax.Array], random) -> Iterator[float]:
  sizes, ends = _sizes(o)
  edges = np.concatenate([ends[sizes > 0] - 1, (ends - sizes)[sizes > 0]])
  rows = np.concatenate([random.choice(edges, SAMPLES), random.integers(ends[-1], size=SAMPLES)])
  columns = _with_ends(random, results[0].shape[1])
  if ends[-1] < results[0].shape[0]:
    assert not any(_any_past(result, ends[-1]) for result in results), "rows past the sum are not zero"
  expert_of_row = np.searchsorted(ends, rows, side="right")
  experts = np.unique(expert_of_row)
  found = _pick([(result, (rows, columns)) for result in results])
  inputs, weights, scales = _parts(leg, o, rows, experts, columns)
  for place, e in enumerate(experts):
    mine = expert_of_row == e
    sums = [x[mine] @ (w[place].T if "transposed" in leg else w[place]) for x, w in zip(inputs, weights, strict=True)]
    wanted = _after(leg, sums, scales[place] if scales is not None else None)
    for got, want in zip(found, wanted, strict=False):  # a peer may return hidden rows alone
      yield _relative(got[mine], want)


def _parts(leg: str, o: Operands, rows, experts, columns):
  """Rows, the experts' weights at these columns, one of each for each sum, and scales."""
  name = leg.partition(" ")[0]
  into, weights = {
    "matmul": (o.y_NF, [o.down_EFD]),
    "matmul_scaled": (o.y_NF, [o.down_fp8_EFD] if name == "matmul_scaled" else []),
    "gated_up": (o.x_ND, [o.gate_EDF, o.up_EDF]),
    "up": (o.x_ND, [o.up_EDF]),
    "matmul_transposed": (o.y_NF, [o.gate_EDF]),
    "matmuls_transposed": (o.y_NF, [o.gate_EDF, o.up_EDF]),
  }[name]
  depth = np.arange(into.shape[1])
  places = (experts, columns, depth) if "transposed" in leg else (experts, depth, columns)
  x, *picked = _pick([(into, (rows, depth)), *((w, places) for w in weights)])
  scales = _pick([(o.scale_ED, (experts, columns))])[0] if name == "matmul_scaled" else None
  return [x] * len(picked), picked, scales


def _after(leg: str, sums: list[np.ndarray], scale) -> list[np.ndarray]:
  """Results from sums, in the leg's order."""
  name, _, activation = leg.partition(" ")
  if name == "gated_up":
    return [gated(activation, *sums), *sums]
  if name == "up":
    return [silu(sums[0]), sums[0]]
  return [np.sum(sums, axis=0) * (1 if scale is None else scale)]


def _of_weights(o: Operands, result: jax.Array, random) -> Iterator[float]:
  """Of the largest group and one more."""
  sizes, ends = _sizes(o)
  if (sizes == 0).any():
    assert not _any_of(result, sizes == 0), "an expert without rows has a gradient"
  for e in {int(sizes.argmax()), int(random.choice(np.flatnonzero(sizes)))}:
    rows = np.arange(ends[e] - sizes[e], ends[e])
    d, f = _with_ends(random, o.x_ND.shape[1]), _with_ends(random, o.y_NF.shape[1])
    got, x, y = _pick([(result, ([e], d, f)), (o.x_ND, (rows, d)), (o.y_NF, (rows, f))])
    yield _relative(got[0], x.T @ y)


def _of_layer(o: Operands, results: Sequence[jax.Array], random, by_token: bool) -> Iterator[float]:
  yield from _of_layers_rows(o, results, random, by_token)
  sizes, _ = _sizes(o)
  F, few = o.problem.dims[2], o.gate_EDF[0].size > MANY_WEIGHTS
  experts = {int(sizes.argmax())} | (set() if few else {int(random.choice(np.flatnonzero(sizes)))})
  for e in experts:
    rows, share = _rows_of(o, e, by_token)
    d, f = _with_ends(random, o.problem.dims[1]), _with_ends(random, F)
    whole = np.arange(o.problem.dims[1])
    x, gate, up, down = _pick([
      (o.x_ND, (rows, whole)), (o.gate_EDF, ([e], whole, f)), (o.up_EDF, ([e], whole, f)), (o.down_EFD, ([e], f, whole))
    ])  # fmt: skip
    wanted = _weight_gradients(x, share * x, gate[0], up[0], down[0], d)
    if len(results) == 4:  # gate and up in one
      places = [(results[2], ([e], d, f)), (results[2], ([e], d, F + f)), (results[3], ([e], f, d))]
    else:
      places = [(results[2], ([e], d, f)), (results[3], ([e], d, f)), (results[4], ([e], f, d))]
    for got, want in zip(_pick(places), wanted, strict=True):
      yield _relative(got[0], want)


def _of_layers_rows(o: Operands, results: Sequence[jax.Array], random, by_token: bool) -> Iterator[float]:
  """y and the gradient of x, for rows of an expert, or for tokens of several."""
  sizes, ends = _sizes(o)
  D = np.arange(o.problem.dims[1])
  if by_token:
    experts, scores = routing(o)
    tokens = random.integers(len(experts), size=1 if o.gate_EDF[0].size > MANY_WEIGHTS else 2)
    terms = [(int(e), tokens[place : place + 1], s) for place, t in enumerate(tokens)
             for e, s in zip(experts[t], scores[t], strict=True)]  # fmt: skip
  else:
    e = int(random.choice(np.flatnonzero(sizes)))
    first, last = int(ends[e] - sizes[e]), int(ends[e] - 1)
    tokens = np.concatenate([[first, last], random.integers(first, last + 1, size=SAMPLES // 2)])
    terms = [(e, tokens, 1.0)]
    assert ends[-1] == results[0].shape[0] or not any(_any_past(result, ends[-1]) for result in results[:2]), (
      "rows past the sum are not zero"
    )
  wanted = [np.zeros((len(tokens), len(D))) for _ in range(2)]
  for e, mine, share in terms:
    x, gate, up, down = _pick([(o.x_ND, (mine, D)), *((w, None, e) for w in (o.gate_EDF, o.up_EDF, o.down_EFD))])
    y, dx = _both_passes(x, share * x, gate, up, down)
    at = slice(None) if not by_token else np.flatnonzero(tokens == mine[0])
    wanted[0][at] += share * y
    wanted[1][at] += dx
  if by_token:  # the same token drawn twice was added up twice
    wanted = [each / np.array([[np.sum(tokens == t)] for t in tokens]) for each in wanted]
  for got, want in zip(_pick([(result, (tokens, D)) for result in results[:2]]), wanted, strict=True):
    yield _relative(got, want)


def _rows_of(o: Operands, e: int, by_token: bool) -> tuple[np.ndarray, float]:
  """Rows of x that the expert sees, and how much their results count."""
  if by_token:
    experts, scores = routing(o)
    return np.nonzero(experts == e)[0], float(scores[0, 0])
  sizes, ends = _sizes(o)
  return np.arange(ends[e] - sizes[e], ends[e]), 1.0


def _both_passes(x, dy, gate, up, down) -> tuple[np.ndarray, np.ndarray]:
  g, u, d_hidden = x @ gate, x @ up, dy @ down.T
  d_gate, d_up = _backward(g, u, d_hidden)
  return (silu(g) * u) @ down, d_gate @ gate.T + d_up @ up.T


def _weight_gradients(x, dy, gate, up, down, d) -> list[np.ndarray]:
  """At rows d of gate's and up's gradients, and columns d of down's."""
  g, u, d_hidden = x @ gate, x @ up, dy @ down.T
  d_gate, d_up = _backward(g, u, d_hidden)
  return [x[:, d].T @ d_gate, x[:, d].T @ d_up, (silu(g) * u).T @ dy[:, d]]


def _backward(g, u, d_hidden):
  s = 1 / (1 + np.exp(-g))
  return d_hidden * u * s * (1 + g * (1 - s)), d_hidden * g * s


def silu(gate):
  return gate / (1 + np.exp(-gate))


def gated(activation: str, gate, up):
  if activation == "clamped":
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
  if activation == "gelu":
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
  return silu(gate) * up


def _sizes(o: Operands) -> tuple[np.ndarray, np.ndarray]:
  sizes = np.asarray(o.sizes_E)
  return sizes, np.cumsum(sizes)


def _with_ends(random, length: int) -> np.ndarray:
  """Places along a side, the first and the last among them."""
  return np.concatenate([[0, length - 1], random.integers(length, size=SAMPLES)])


def _pick(asked: Sequence[tuple]) -> list[np.ndarray]:
  """In float64, of each (array, indices along each axis), or of (array, None, expert) the expert's whole matrix."""
  whole = [array[each[0]] if each else None for array, _, *each in asked]
  gathered = [(array, tuple(np.asarray(i) for i in places)) for array, places, *_ in asked if places is not None]
  picked = iter(_gather([array for array, _ in gathered], [places for _, places in gathered]))
  return [wide(next(picked) if matrix is None else matrix) for matrix in whole]


@jax.jit
def _gather(arrays: list[Any], places: list[tuple]) -> list[Any]:
  return [array[jnp.ix_(*each)] for array, each in zip(arrays, places, strict=True)]


@jax.jit
def _any_of(array_E, chosen_E):
  return jnp.any(jnp.where(chosen_E[:, None, None], array_E != 0, False))


@jax.jit
def _any_past(array_N, end):
  return jnp.any((array_N != 0) & (jnp.arange(array_N.shape[0]) >= end)[:, None])


def _relative(got, want) -> float:
  difference = np.abs(got - want)
  return float("inf") if np.isnan(difference).any() else float(difference.max() / np.abs(want).max())


def wide(array) -> np.ndarray:
  return np.asarray(array).astype(np.float64)
