"""What a run was made on: device, driver, versions, how `ragged_dot` compiles, and the device's measured ceilings.

A child of `kernels.py`: one case, whose result is that. `--dry-run` measures small ceilings.
"""

import argparse
import importlib
import platform
from typing import Any

import jax
import jax.numpy as jnp
from context import share_memory
from guarded import read_cases, say
from recorded import now, query, versions
from timing import median_us


def main() -> None:
  share_memory()
  parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args()
  (case,) = read_cases()
  found = environment()
  say(index=case["index"], environment=found, ceilings=ceilings(dry_run=options.dry_run))


def environment() -> dict[str, Any]:
  device = jax.devices()[0]
  return {
    "date": now(),
    "device": device.device_kind,
    "processors": getattr(device, "core_count", None),
    "driver": query("driver_version"),
    "clocks": query("clocks.max.sm,clocks.sm,power.limit"),
    "python": platform.python_version(),
    "versions": versions(),
    "cudnn": cudnn(),
    "ragged_dot": how_ragged_dot_compiles(),
  }


def cudnn() -> str:
  try:
    return str(importlib.import_module("jax._src.lib").cuda_versions.cudnn_get_version())
  except Exception as error:
    return f"unknown: {brief(error)}"


def how_ragged_dot_compiles() -> str:
  """Dense if the compiled program holds more than twice the rows times width of its operand."""
  x, w, sizes = jnp.ones((512, 256), "bfloat16"), jnp.ones((8, 256, 256), "bfloat16"), jnp.full(8, 64, "int32")
  try:
    compiled = jax.jit(jax.lax.ragged_dot).lower(x, w, sizes).compile()
    memory: Any = compiled.memory_analysis()
    text, temporary = compiled.as_text() or "", memory.temp_size_in_bytes
  except Exception as error:
    return f"failed: {brief(error)}"
  if "cudnn" in text.lower():
    return "cuDNN"
  return "dense" if temporary > 4 * x.nbytes or "512,2048" in text or "8,512" in text else f"unknown, temp {temporary}"


def ceilings(*, dry_run: bool) -> dict[str, float]:
  """FLOP/s of a large bfloat16 matmul of random numbers, and bytes/s, read and written, of a large copy."""
  side, length = (256, 2**20) if dry_run else (8192, 2**30)
  repeats = 0 if dry_run else 7
  square = jax.random.normal(jax.random.key(0), (side, side), "bfloat16")
  matmul_us = median_us(lambda: _matmul(square, square), jax.block_until_ready, repeats=repeats)
  row = jax.random.normal(jax.random.key(1), (length,), "bfloat16")
  copy_us = median_us(lambda: _negative(row), jax.block_until_ready, repeats=repeats)
  return {"flops_per_s": 2 * side**3 / matmul_us * 1e6, "bytes_per_s": 2 * row.nbytes / copy_us * 1e6}


_matmul, _negative = jax.jit(jnp.matmul), jax.jit(jnp.negative)


def brief(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
  main()
