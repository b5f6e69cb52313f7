"""Seconds that the counts of `jaxmoe verify` take over modules of growing size: `python benchmarks/walk.py`.

The program is the step of a deployment, compiled for fake CPU devices, as many times in a row as a size asks for: every
computation is copied under names of its own, and a new entry calls the copies. Counted are reading jaxlib's text,
FLOPs as expected and at most, collectives, memory traffic and elementwise work. Writes benchmarks/results/walk.md.
"""

import datetime
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RESULT = pathlib.Path(__file__).parent / "results" / "walk.md"
DEPLOYMENT = "ep64_tp2"
COPIES = (1, 4, 16, 64, 110)
REPEATS = 3
LIMIT_S, LIMIT_MB = 5.0, 50.0

_HEAD = re.compile(r"^(%|ENTRY )[^\n]*\{$", re.MULTILINE)


def repeated(text: str, copies: int) -> str:
  """A module that runs the module `text` several times."""
  start = _HEAD.search(text)
  assert start
  header, body = text[: start.start()].replace("is_scheduled=true, ", ""), text[start.start() :]
  entry = body[body.index("ENTRY ") :]
  name = re.match(r"ENTRY %([\w.\-]+)", entry)
  assert name
  lines = [entry[: entry.index("\n")].replace(f"%{name[1]}", "%all")]
  parameters = re.findall(r"^  (%([\w.\-]+) = .* parameter\(\d+\)).*$", entry, re.MULTILINE)
  arguments = ", ".join(f"%{parameter}" for _, parameter in sorted(parameters, key=lambda p: _number(p[0])))
  lines += [f"  {line}" for line, _ in parameters]
  shape = re.search(r"^  ROOT %[\w.\-]+ = (.*?) [\w\-]+\(%", entry, re.MULTILINE)
  assert shape
  lines += [f"  %call.{copy} = {shape[1]} call({arguments}), to_apply=%{name[1]}.{copy}" for copy in range(copies)]
  lines[-1] = lines[-1].replace("  %", "  ROOT %", 1)
  parts = (re.sub(r"%([\w.\-]+)", rf"%\1.{copy}", body).replace("ENTRY ", "") for copy in range(copies))
  return header + "\n".join(parts) + "\n" + "\n".join(lines) + "\n}\n"


def _number(parameter: str) -> int:
  return int(parameter.rpartition("(")[2].rstrip(")"))


def measure(text: str, sizes: dict[str, int]) -> tuple[float, dict[str, float]]:
  """Executed FLOPs, and the fewest seconds of each phase."""
  from jaxmoe.xla.collectives import collectives
  from jaxmoe.xla.declared import AT_MOST
  from jaxmoe.xla.elementwise import elementwise_work
  from jaxmoe.xla.flops import matmul_flops
  from jaxmoe.xla.hlo import Module
  from jaxmoe.xla.traffic import memory_traffic

  phases: dict[str, Callable[[Module], Any]] = {
    "FLOPs": matmul_flops,
    "at most": lambda module: matmul_flops(module, AT_MOST),
    "collectives": lambda module: collectives(module, sizes),
    "traffic": memory_traffic,
    "elementwise": elementwise_work,
  }
  best: dict[str, float] = {}
  module = None
  for _ in range(REPEATS):
    start = time.perf_counter()
    module = Module.from_canonical(text)
    seconds = {"read": time.perf_counter() - start}
    for name, count in phases.items():
      start = time.perf_counter()
      count(module)
      seconds[name] = time.perf_counter() - start
    best = {name: min(s, best.get(name, s)) for name, s in seconds.items()}
  assert module
  return matmul_flops(module).total, best


def compile_text() -> tuple[str, dict[str, int]]:
  """The optimised module's text, and the sizes of the mesh axes; needs as many fake devices."""
  from jaxmoe.config.catalogue import load_deployment
  from jaxmoe.meshes.axes import AXES
  from jaxmoe.meshes.build import build_mesh
  from jaxmoe.xla.compiled import target_devices
  from jaxmoe.xla.program import build_program
  from jaxmoe.xla.target import CPU

  d = load_deployment(DEPLOYMENT)
  program = build_program(d, build_mesh(d.strategy, target_devices(d, CPU)))
  executable: Any = program.lower().compile().runtime_executable()
  (module,) = executable.hlo_modules()
  return module.to_string(), {axis: d.strategy.size(axis) for axis in AXES}


def main() -> None:
  text, sizes = compile_text()
  rows, once = [], 0.0
  for copies in COPIES:
    module = repeated(text, copies)
    flops, seconds = measure(module, sizes)
    once = once or flops
    assert flops == copies * once, (flops, copies, once)
    rows.append((len(module) / 1e6, module.count("\n"), seconds))
  report(rows)


def report(rows: list[tuple[float, int, dict[str, float]]]) -> None:
  names = list(rows[0][2])
  lines = [
    "# Seconds that the counts of a compiled module take, measured",
    "",
    f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load"
    f" average {os.getloadavg()[0]:.1f}; best of {REPEATS}. Made by `python benchmarks/walk.py`: {DEPLOYMENT}'s step as"
    " many times in a row as the size asks for.",
    "",
    f"| MB | lines | {' | '.join(names)} | all | s/MB |",
    "| ---: " * (len(names) + 4) + "|",
  ]
  for megabytes, count, seconds in rows:
    total = sum(seconds.values())
    cells = " | ".join(f"{seconds[name]:.2f}" for name in names)
    lines.append(f"| {megabytes:.1f} | {count:,} | {cells} | {total:.2f} | {total / megabytes:.3f} |")
  megabytes, _, seconds = rows[-1]
  at_limit = sum(seconds.values()) / megabytes * LIMIT_MB
  verdict = "within" if at_limit <= LIMIT_S else "NOT within"
  lines += ["", f"{LIMIT_MB:.0f} MB: {at_limit:.2f} s, {verdict} {LIMIT_S:.0f} s."]
  RESULT.write_text("\n".join(lines) + "\n")
  print("\n".join(lines))


if __name__ == "__main__":
  if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = "--xla_force_host_platform_device_count=128 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    sys.exit(subprocess.run([sys.executable, __file__], env=environment, check=False).returncode)
  main()
