"""Where the time of a profiled step went: matmuls and the like, collectives, or nothing."""

import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxmoe.xla.hlo import Module
from jaxmoe.xla.opcodes import CALLS, COLLECTIVES

# What these run is timed by itself.
_CONTAINERS = CALLS - {"fusion"}


def opcodes_by_name(module: Module) -> dict[str, str]:
  """Instruction name -> opcode, of all computations."""
  return {i.name: i.opcode for computation in module.computations.values() for i in computation.instructions}


def device_shares(folder: pathlib.Path, opcodes: Mapping[str, str], wall_s: float, devices: int) -> dict[str, float]:
  """Shares of `devices` times `wall_s`, from the trace that jax's profiler left in `folder`.

  A collective's time includes waiting for the others. Nothing if no event names an instruction of the program.
  """
  spent = {"compute": 0.0, "collective": 0.0}
  for name, seconds in _instructions(folder):
    opcode = opcodes.get(name)
    if opcode is not None and opcode not in _CONTAINERS:
      spent["collective" if opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES else "compute"] += (
        seconds
      )
  if not any(spent.values()):
    return {}
  total = max(wall_s * devices, sum(spent.values()))
  shares = {kind: seconds / total for kind, seconds in spent.items()}
  return {**shares, "idle": 1 - sum(shares.values())}


def _instructions(folder: pathlib.Path) -> Iterable[tuple[str, float]]:
  """(instruction, seconds) of every event that ran one."""
  for path in folder.rglob("*.xplane.pb"):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", DeprecationWarning)  # of jaxlib's own binding, on reading statistics
      for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
          for event in line.events:
            name = _statistic(event, "hlo_op")
            if name:
              yield name, event.duration_ns / 1e9


def _statistic(event: Any, wanted: str) -> str:
  return next((str(value) for name, value in event.stats if name == wanted), "")
