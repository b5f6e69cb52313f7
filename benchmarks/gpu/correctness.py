"""Every leg on the device against sums in float64, on samples that include the edges of groups.

    python benchmarks/gpu/correctness.py [--dry-run] [--cases INDEX ...]

Prints one line of JSON as each case begins and one as it ends; `guarded.py` reads them. `--dry-run` takes a tiny
problem through the CPU interpreter.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers import Operands, dry_device, on_dry_device, operands
from problems import Problem, cases_to_check

from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.hopper import compat, legs
from jaxmoe.kernels.hopper.device import Device

# Of the largest entry. In float32 what is lost is what tensor cores truncate as they add.
TOLERANCE = {"bfloat16": 1.2e-2, "float16": 1.5e-3, "float32": 5e-5}
SAMPLES = 24


class Case(NamedTuple):
  """A call, and what it must return for some rows of one expert, as a list of arrays in float64."""

  call: Callable
  arguments: tuple
  wanted: Callable[[np.ndarray, int], Sequence[Any]]


def main() -> None:
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--dry-run", action="store_true")
  parser.add_argument("--cases", type=int, nargs="*")
  options = parser.parse_args()
  cases = cases_to_check(dry_run=options.dry_run)
  with compat.interpreted(detect_races=False) if options.dry_run else contextlib.nullcontext():
    for index in range(len(cases)) if options.cases is None else options.cases:
      print(json.dumps({"begins": index}), flush=True)
      print(json.dumps({"index": index, **check(*cases[index], dry_device() if options.dry_run else None)}), flush=True)


def check(problem: Problem, leg: str, device: Device | None) -> dict:
  """The error relative to the largest entry, whether it is small, and whether a second run has the same bits."""
  o = operands(problem)
  sizes = some_rows_unowned(np.asarray(o.sizes_E), problem)
  owned = (jnp.arange(o.x_ND.shape[0]) < sizes.sum())[:, None]
  x_ND, y_NF = (jnp.where(owned, array, jnp.nan) for array in (o.x_ND, o.y_NF))
  o = dataclasses.replace(o, x_ND=x_ND, y_NF=y_NF, sizes_E=jnp.asarray(sizes))
  row = {**dataclasses.asdict(problem), "leg": leg}
  try:
    case = case_of(leg, o, device)
    results = [np.asarray(result) for result in poisoned(case.call, case.arguments)]
    again = [np.asarray(result) for result in poisoned(case.call, case.arguments)]
    error = max(errors(leg, o, sizes, case, results))
    same = all(one.tobytes() == other.tobytes() for one, other in zip(results, again, strict=True))
    return {**row, "error": error, "same_bits": same, "correct": bool(error <= TOLERANCE[problem.dtype] and same)}
  except Exception as problem_met:
    return {**row, "error": f"{type(problem_met).__name__}: {str(problem_met)[:300]}", "correct": False}


def some_rows_unowned(sizes_E: np.ndarray, problem: Problem) -> np.ndarray:
  """The sizes with up to a tenth of the rows taken from the last group: rows past the sum exist, and will hold NaN."""
  sizes_E = sizes_E.copy()
  last = int(np.flatnonzero(sizes_E)[-1])
  sizes_E[last] -= min(sizes_E[last], max(1, problem.dims[0] // 10))
  return sizes_E


def case_of(leg: str, o: Operands, device: Device | None) -> Case:
  x, y, gate, up, down, sizes = o.x_ND, o.y_NF, o.gate_EDF, o.up_EDF, o.down_EFD, o.sizes_E
  on = functools.partial

  def both(mine, e):
    return [wide(x[mine]) @ wide(w[e]) for w in (gate, up)]

  def transposed(mine, e):
    return [wide(y[mine]) @ wide(w[e]).T for w in (gate, up)]

  if leg.startswith("gated_up"):
    activation: Any = leg.partition(" ")[2]
    call = on(legs.gated_up, activation=activation, device=device)
    return Case(call, (x, gate, up, sizes), lambda mine, e: [gated(activation, *both(mine, e)), *both(mine, e)])
  if leg == "up":
    call = on(legs.up, activation="silu", device=device)
    return Case(call, (x, up, sizes), lambda mine, e: [silu(both(mine, e)[1]), both(mine, e)[1]])
  if leg == "matmul_scaled":
    narrow, scale = o.down_fp8_EFD, o.scale_ED
    return Case(
      on(legs.matmul_scaled, device=device),
      (y, narrow, scale, sizes),
      lambda mine, e: [wide(y[mine]) @ wide(narrow[e]) * wide(scale[e])],
    )
  if leg == "layer":
    return Case(on(layer, dry_run=device is not None), (x, gate, up, down, sizes), on(wanted_of_layer, o))
  return {
    "matmul": Case(on(legs.matmul, device=device), (y, down, sizes), lambda mine, e: [wide(y[mine]) @ wide(down[e])]),
    "matmul_transposed": Case(
      on(legs.matmul_transposed, device=device), (y, gate, sizes), lambda mine, e: transposed(mine, e)[:1]
    ),
    "matmuls_transposed": Case(
      on(legs.matmuls_transposed, device=device),
      ([y, y], [gate, up], sizes),
      lambda mine, e: [sum(transposed(mine, e))],
    ),
    "weight_gradient": Case(on(legs.weight_gradient, device=device), (x, y, sizes), lambda mine, e: []),
  }[leg]


def layer(x_ND, gate_EDF, up_EDF, down_EFD, sizes_E, *, dry_run: bool):
  """y and the gradient of x, with x for dy, through the public function."""
  with on_dry_device() if dry_run else contextlib.nullcontext():
    weights = (gate_EDF, up_EDF, down_EFD, sizes_E)
    y_ND, pull = jax.vjp(lambda x: expert_ffn(x, *weights, activation="silu", implementation="hopper"), x_ND)
    return y_ND, *pull(x_ND)


def wanted_of_layer(o: Operands, mine: np.ndarray, e: int) -> list[np.ndarray]:
  gate_DF, up_DF, down_FD, x = *(wide(w[e]) for w in (o.gate_EDF, o.up_EDF, o.down_EFD)), wide(o.x_ND[mine])
  g, u, d_hidden = x @ gate_DF, x @ up_DF, x @ down_FD.T
  s = 1 / (1 + np.exp(-g))
  d_gate, d_up = d_hidden * u * s * (1 + g * (1 - s)), d_hidden * g * s
  return [(g * s * u) @ down_FD, d_gate @ gate_DF.T + d_up @ up_DF.T]


def silu(gate):
  return gate / (1 + np.exp(-gate))


def gated(activation: str, gate, up):
  """Written out anew, none of it from the package."""
  if activation == "clamped":
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
  if activation == "gelu":
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
  return silu(gate) * up


def poisoned(call, arguments):
  """The results, in memory that held NaN a moment ago wherever the allocator gives it out again."""
  run = jax.jit(call)
  shapes = jax.tree.leaves(jax.eval_shape(run, *arguments))
  jax.block_until_ready([jnp.full(each.shape, jnp.nan, each.dtype) for each in shapes])
  return jax.tree.leaves(jax.block_until_ready(run(*arguments)))


def errors(leg: str, o: Operands, sizes: np.ndarray, case: Case, results: Sequence[np.ndarray]):
  """Errors of samples, each relative to the largest sample."""
  ends, random = np.cumsum(sizes), np.random.default_rng(o.problem.seed)
  if leg == "weight_gradient":
    group = int(random.choice(np.flatnonzero(sizes)))
    rows = slice(int(ends[group] - sizes[group]), int(ends[group]))
    d, f = random.integers(o.x_ND.shape[1], size=SAMPLES), random.integers(o.y_NF.shape[1], size=SAMPLES)
    yield relative(results[0][group][np.ix_(d, f)], wide(o.x_ND[rows, d]).T @ wide(o.y_NF[rows, f]))
    assert not np.any(wide(results[0][sizes == 0])), "an expert without rows has a gradient"
    return
  edges = np.concatenate([ends[sizes > 0] - 1, (ends - sizes)[sizes > 0]])
  rows = np.concatenate([random.choice(edges, SAMPLES), random.integers(ends[-1], size=SAMPLES)])
  expert_of_row = np.searchsorted(ends, rows, side="right")
  for result in results:
    assert not np.any(wide(result[ends[-1] :])), "rows past the sum are not zero"
  for e in np.unique(expert_of_row):
    mine = rows[expert_of_row == e]
    for result, want in zip(results, case.wanted(mine, int(e)), strict=True):
      yield relative(result[mine], want)


def relative(got, want) -> float:
  difference = np.abs(wide(got) - want)
  return float("inf") if np.isnan(difference).any() else float(difference.max() / np.abs(want).max())


def wide(array):
  return np.asarray(array).astype(np.float64)


if __name__ == "__main__":
  main()
