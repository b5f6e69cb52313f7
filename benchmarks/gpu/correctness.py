"""Every leg on the device against sums in float64, in memory that held NaN, twice: a child of `kernels.py`.

Reads cases and prints results as `guarded.py` says. `--dry-run` takes them through the CPU interpreter.
"""

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import samples
from context import leave_if_lost, share_memory
from guarded import read_cases, say
from operands import Operands, dry_device, on_dry_device, operands, some_rows_unowned
from problems import Problem

from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.hopper import compat, legs
from jaxmoe.kernels.hopper.device import Device

# Of the largest entry. In float32 what is lost is what tensor cores truncate as they add.
TOLERANCE = {"bfloat16": 1.2e-2, "float16": 1.5e-3, "float32": 5e-5}
LAYER = 1.5  # times that: what is rounded is multiplied twice more


class Call(NamedTuple):
  function: Callable
  arguments: tuple


def main() -> None:
  share_memory()
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args()
  device = dry_device() if options.dry_run else None
  with compat.interpreted(detect_races=False) if options.dry_run else contextlib.nullcontext():
    for case in read_cases():
      say(begins=case["index"])
      row = check(Problem(**case["problem"]), case["leg"], device)
      say(index=case["index"], **row)
      leave_if_lost(row)


def check(problem: Problem, leg: str, device: Device | None) -> dict:
  """The error relative to the largest entry, whether it is small, and whether a second run has the same bits."""
  row = {**dataclasses.asdict(problem), "leg": leg}
  try:
    o = some_rows_unowned(operands(problem))
    call = call_of(leg, o, device)
    run = jax.jit(call.function).lower(*call.arguments).compile()
    results, again = (poisoned(run, call.arguments) for _ in range(2))
    error, same = samples.error(leg, o, results), bool(_same_bits(results, again))
    return {**row, "error": error, "same_bits": same, "correct": error <= tolerance(leg, problem.dtype) and same}
  except Exception as problem_met:
    return {**row, "error": f"{type(problem_met).__name__}: {str(problem_met)[:300]}", "correct": False}


def tolerance(leg: str, dtype: str) -> float:
  return TOLERANCE[dtype] * (LAYER if leg == "layer" else 1)


def call_of(leg: str, o: Operands, device: Device | None) -> Call:
  x, y, gate, up, down, sizes = o.x_ND, o.y_NF, o.gate_EDF, o.up_EDF, o.down_EFD, o.sizes_E
  name, _, activation = leg.partition(" ")
  more: dict[str, Any] = {"activation": activation or "silu"} if name in ("gated_up", "up") else {}
  if leg == "layer":
    return Call(functools.partial(layer, dry_run=device is not None), (x, gate, up, down, sizes))
  arguments = {
    "gated_up": lambda: (x, gate, up, sizes),
    "up": lambda: (x, up, sizes),
    "matmul": lambda: (y, down, sizes),
    "matmul_scaled": lambda: (y, o.down_fp8_EFD, o.scale_ED, sizes),
    "matmul_transposed": lambda: (y, gate, sizes),
    "matmuls_transposed": lambda: ([y, y], [gate, up], sizes),
    "weight_gradient": lambda: (x, y, sizes),
  }[name]()
  return Call(functools.partial(getattr(legs, name), device=device, **more), arguments)


def layer(x_ND, gate_EDF, up_EDF, down_EFD, sizes_E, *, dry_run: bool):
  """y and all gradients, with x for dy, through the public function."""
  with on_dry_device() if dry_run else contextlib.nullcontext():

    def run(x, gate, up, down):
      return expert_ffn(x, gate, up, down, sizes_E, activation="silu", implementation="hopper")

    y_ND, pull = jax.vjp(run, x_ND, gate_EDF, up_EDF, down_EFD)
    return y_ND, *pull(x_ND)


def poisoned(run, arguments) -> list[jax.Array]:
  """The results, in memory that held NaN a moment ago wherever the allocator gives it out again."""
  jax.block_until_ready([jnp.full(each.shape, jnp.nan, each.dtype) for each in jax.tree.leaves(run.out_info)])
  return jax.tree.leaves(jax.block_until_ready(run(*arguments)))


@jax.jit
def _same_bits(results, others):
  bits = [[jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}") for array in each]
          for each in (results, others)]  # fmt: skip
  return jnp.all(jnp.stack([jnp.all(one == other) for one, other in zip(*bits, strict=True)]))


if __name__ == "__main__":
  main()
