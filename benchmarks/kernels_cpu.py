"""Grouped matmul on CPU against `jax.lax.ragged_dot` and a batched einsum of equal work, in one run.

python benchmarks/kernels_cpu.py [--rounds N] [--cores 2 4] [--write]

Each number of cores has a process of its own, tied to them. Candidates take turns, so that whatever else the machine
does meets all of them; the median time of each counts.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from jaxmoe.kernels.grouped_matmul import grouped_matmul

ROWS, D, F = 4096, 512, 1024
EXPERTS = (8, 64)
SKEW = 2.0  # concentration of the Dirichlet distribution that experts' shares are drawn from
SLOW_ROUNDS = 3
# Requirement -> least ratio of ragged_dot's time to ours by number of experts, greatest ratio of ours to the einsum's.
LEAST_SPEEDUP = {("forward", 8): 5, ("forward", 64): 25, ("forward+backward", 8): 4, ("forward+backward", 64): 20}
MOST_OF_EINSUM = 1.5
RESULTS = pathlib.Path(__file__).parent / "results"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=20, help="turns of each candidate (default 20)")
  parser.add_argument("--dtypes", nargs="+", default=["float32"], help="of rows and weights (default float32)")
  parser.add_argument("--cores", nargs="+", type=int, default=[2], help="of this machine to use (default 2)")
  parser.add_argument("--write", action="store_true", help="write benchmarks/results/kernels_cpu.md and .json")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores[0]])
    rows = [row for dtype in args.dtypes for E in EXPERTS for row in measure(E, jnp.dtype(dtype), args.rounds)]
    return print(json.dumps(rows))
  rows = [{"cores": cores, **row} for cores in args.cores for row in measured_on(cores, args)]
  text = report(rows, args.rounds)
  print(text)
  if args.write:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kernels_cpu.md").write_text(text)
    (RESULTS / "kernels_cpu.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def measured_on(cores: int, args: argparse.Namespace) -> list[dict]:
  """Rows of a child, which ties itself to so many cores before jax counts them."""
  command = [sys.executable, __file__, "--child", "--cores", str(cores), "--rounds", str(args.rounds), "--dtypes"]
  done = subprocess.run([*command, *args.dtypes], stdout=subprocess.PIPE, check=True, text=True)
  return json.loads(done.stdout)


def measure(E: int, dtype, rounds: int) -> list[dict]:
  """One row for each of forward and forward+backward: median milliseconds of every candidate."""
  keys = jax.random.split(jax.random.key(0), 5)
  x_ND, dy_NF = (jax.random.normal(key, (ROWS, width)).astype(dtype) for key, width in ((keys[0], D), (keys[1], F)))
  w_EDF = (jax.random.normal(keys[2], (E, D, F)) / D**0.5).astype(dtype)
  share_E = jax.random.dirichlet(keys[3], jnp.full(E, SKEW))
  sizes_E = jnp.bincount(jax.random.choice(keys[4], E, (ROWS,), p=share_E), length=E).astype(jnp.int32)
  forward = {"grouped_matmul": grouped_matmul, "ragged_dot": jax.lax.ragged_dot, "einsum": capacity_einsum}
  rows = []
  for leg in ("forward", "forward+backward"):
    functions = forward if leg == "forward" else {name: with_gradients(f, dy_NF) for name, f in forward.items()}
    ms = median_ms(functions, (x_ND, w_EDF, sizes_E), rounds)
    rows.append({"experts": E, "dtype": dtype.name, "leg": leg, "largest_group": int(sizes_E.max()), "ms": ms})
  return rows


def capacity_einsum(x_ND, w_EDF, sizes_E):
  """The work of even groups: what a capacity of exactly N / E costs, where it would drop rows."""
  E = sizes_E.shape[0]
  x_ECD = x_ND.reshape(E, ROWS // E, D)
  return jnp.einsum("ecd,edf->ecf", x_ECD, w_EDF).reshape(ROWS, F)


def with_gradients(function, dy_NF):
  def run(x_ND, w_EDF, sizes_E):
    y_NF, pull = jax.vjp(lambda x, w: function(x, w, sizes_E), x_ND, w_EDF)
    return y_NF, *pull(dy_NF)

  return run


def median_ms(functions: dict, operands, rounds: int) -> dict[str, float]:
  compiled = {name: jax.jit(f).lower(*operands).compile() for name, f in functions.items()}
  times_ms = {name: [] for name in compiled}
  for turn in range(rounds):
    for name, run in compiled.items():
      if name == "ragged_dot" and turn >= SLOW_ROUNDS:
        continue
      start = time.perf_counter()
      jax.block_until_ready(run(*operands))
      times_ms[name].append((time.perf_counter() - start) * 1e3)
  return {name: statistics.median(times) for name, times in times_ms.items()}


def report(rows: list[dict], rounds: int) -> str:
  """A Markdown table, with what each ratio must be."""
  m = machine()
  lines = [
    "# Grouped matmul on CPU",
    "",
    f"N={ROWS}, d={D}, f={F}, group sizes from Dirichlet({SKEW:g}); median of {rounds} turns,"
    f" {SLOW_ROUNDS} of ragged_dot.",
    f"{m['processor']}, load {m['load']} at the end; {m['date']}; jax {m['jax']}, Python {m['python']}.",
    "",
    "| cores | E | dtype | leg | ours, ms | ragged_dot, ms | einsum, ms | ragged_dot / ours | ours / einsum |",
    "| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
  ]
  for row in rows:
    ours, ragged, einsum = (row["ms"][name] for name in ("grouped_matmul", "ragged_dot", "einsum"))
    wish = LEAST_SPEEDUP[row["leg"], row["experts"]]
    lines.append(
      f"| {row['cores']} | {row['experts']} | {row['dtype']} | {row['leg']} | {ours:.1f} | {ragged:.1f} | {einsum:.1f}"
      f" | {ragged / ours:.1f} (at least {wish}) | {ours / einsum:.2f} (at most {MOST_OF_EINSUM}) |"
    )
  return "\n".join(lines) + "\n"


def machine() -> dict:
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
  return {
    "processor": names[0] if names else platform.processor() or platform.machine(),
    "load": round(os.getloadavg()[0], 1),
    "date": datetime.date.today().isoformat(),
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


if __name__ == "__main__":
  main()
