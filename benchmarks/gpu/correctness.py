"""Every leg on the device against sums in float64, on samples that include the edges of groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from peers import Operands, operands
from problems import Problem

from jaxmoe.kernels.hopper import legs
from jaxmoe.kernels.hopper.device import Device

TOLERANCE = 1.2e-2  # of the largest entry, in bfloat16
SAMPLES = 24


def check_all(problems: list[Problem], device: Device | None) -> list[dict]:
  """One row for each problem, leg and draw: its error relative to the largest entry, and whether that is small."""
  return [row for problem in problems for row in check(problem, device)]


def check(problem: Problem, device: Device | None) -> list[dict]:
  """All legs, with a tenth of the rows taken from the last groups so that rows past the sum exist, and hold NaN."""
  o = operands(problem)
  sizes = np.asarray(o.sizes_E).copy()
  last = int(np.flatnonzero(sizes)[-1])
  sizes[last] -= min(sizes[last], max(1, problem.dims[0] // 10))
  owned = (jnp.arange(o.x_ND.shape[0]) < sizes.sum())[:, None]
  x_ND, y_NF = (jnp.where(owned, array, jnp.nan) for array in (o.x_ND, o.y_NF))
  sizes_E = jnp.asarray(sizes)
  calls = {
    "gated_up": (functools.partial(legs.gated_up, activation="silu"), (x_ND, o.gate_EDF, o.up_EDF, sizes_E)),
    "matmul": (legs.matmul, (y_NF, o.down_EFD, sizes_E)),
    "matmul_transposed": (legs.matmul_transposed, (y_NF, o.gate_EDF, sizes_E)),
    "weight_gradient": (legs.weight_gradient, (x_ND, y_NF, sizes_E)),
  }
  rows = []
  for leg, (call, arguments) in calls.items():
    row = {"model": problem.model, "tokens": problem.tokens, "seed": problem.seed, "leg": leg}
    try:
      results = jax.tree.leaves(poisoned(functools.partial(call, device=device), arguments))
      error = max(errors(leg, o, x_ND, y_NF, sizes, [np.asarray(result) for result in results]))
      rows.append({**row, "error": error, "correct": bool(error <= TOLERANCE)})
    except Exception as problem_met:
      rows.append({**row, "error": f"{type(problem_met).__name__}: {str(problem_met)[:300]}", "correct": False})
  return rows


def poisoned(call, arguments):
  """The results, in memory that held NaN a moment ago wherever the allocator gives it out again."""
  run = jax.jit(call)
  shapes = jax.tree.leaves(jax.eval_shape(run, *arguments))
  jax.block_until_ready([jnp.full(each.shape, jnp.nan, each.dtype) for each in shapes])
  return jax.block_until_ready(run(*arguments))


def errors(leg: str, o: Operands, x_ND, y_NF, sizes, results):
  """Errors of samples, each relative to the largest sample."""
  ends = np.cumsum(sizes)
  expert_of_row = np.searchsorted(ends, np.arange(x_ND.shape[0]), side="right")
  random = np.random.default_rng(o.problem.seed)
  if leg == "weight_gradient":
    group = int(random.choice(np.flatnonzero(sizes)))
    rows = slice(int(ends[group] - sizes[group]), int(ends[group]))
    d, f = random.integers(x_ND.shape[1], size=SAMPLES), random.integers(y_NF.shape[1], size=SAMPLES)
    yield relative(results[0][group][np.ix_(d, f)], wide(x_ND[rows, d]).T @ wide(y_NF[rows, f]))
    return
  edges = np.concatenate([ends[sizes > 0] - 1, (ends - sizes)[sizes > 0]])
  rows = np.concatenate([random.choice(edges, SAMPLES), random.integers(ends[-1], size=SAMPLES)])
  for result in results:
    assert not np.any(wide(result[ends[-1] :])), "rows past the sum are not zero"
  for experts in np.unique(expert_of_row[rows]):
    mine = rows[expert_of_row[rows] == experts]
    if leg == "gated_up":
      gate, up = (wide(x_ND[mine]) @ wide(w[experts]) for w in (o.gate_EDF, o.up_EDF))
      wants = [gate / (1 + np.exp(-gate)) * up, gate, up]
    else:
      w = o.down_EFD[experts] if leg == "matmul" else o.gate_EDF[experts].T
      wants = [wide(y_NF[mine]) @ wide(w)]
    for result, want in zip(results, wants, strict=True):
      yield relative(result[mine], want)


def relative(got, want) -> float:
  difference = np.abs(wide(got) - want)
  return float("inf") if np.isnan(difference).any() else float(difference.max() / np.abs(want).max())


def wide(array):
  return np.asarray(array).astype(np.float64)
