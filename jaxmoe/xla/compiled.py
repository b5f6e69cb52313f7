"""Compile a deployment's real step and count what the compiler made of it; runs where jax has enough devices."""

import dataclasses
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from jaxmoe import __version__
from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.build import build_mesh, topology_devices
from jaxmoe.xla.collectives import Collective, collectives
from jaxmoe.xla.flops import FlopCount, matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.layout import aliased_arguments, argument_padding
from jaxmoe.xla.memory import CompiledMemory, compiled_memory
from jaxmoe.xla.partitioned import compile_with_partitioned
from jaxmoe.xla.program import build_program
from jaxmoe.xla.walk import Declared

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
  """Counts of one device's program, as plain data.

  Attributes:
    class_bytes, output_class_bytes: bytes of the module's own arguments and results, by class.
    argument_padding_bytes, alias_padding_bytes: what tiles that are not full add to `memory`.
    flops: matmul FLOPs of the optimised module, as expected where the routing decides.
    flops_at_most: the same with the heaviest routing.
    flops_by_part: of the partitioned program, where every operation still bears its scope.
    partitioned, optimised: collectives before and after the backend's passes.
    seconds: of each phase.
  """

  class_bytes: dict[str, int]
  output_class_bytes: dict[str, int]
  memory: CompiledMemory
  argument_padding_bytes: int
  alias_padding_bytes: int
  flops: float
  flops_at_most: float
  flops_by_part: dict[str, float]
  partitioned: list[Collective]
  optimised: list[Collective]
  instructions: int
  seconds: dict[str, float]
  versions: dict[str, str]


def compile_step(
  deployment: Deployment, topology: str | None = None, progress: Progress = lambda _: None
) -> CompiledStep:
  """Lowers from shapes alone, compiles, and walks the partitioned and the optimised module.

  Args:
    topology: a TPU slice to compile for; None for this process's devices.
  """
  clock = _Clock(progress)
  axis_sizes = {axis: deployment.strategy.size(axis) for axis in AXES}
  with clock("build", f"building the {deployment.job.kind} step for {deployment.strategy.devices} devices"):
    devices = topology_devices(topology) if topology else None
    program = build_program(deployment, build_mesh(deployment.strategy, devices))
  with clock("lower", "lowering from shapes"):
    lowered = program.lower()
  with clock("compile", f"compiling for {deployment.strategy.devices} devices"):
    compiled, partitioned = compile_with_partitioned(lowered)
  with clock("walk", "counting FLOPs and collectives"):
    optimised = Module.from_compiled(compiled)
    flops = matmul_flops(partitioned)
    return CompiledStep(
      class_bytes=_class_bytes(program.arguments, _argument_bytes(optimised)),
      output_class_bytes=_class_bytes(program.outputs(lowered), [int(s.bytes) for s in optimised.entry.root.shapes]),
      memory=compiled_memory(compiled),
      **_padding(optimised.header),
      flops=matmul_flops(optimised).total,
      flops_at_most=matmul_flops(optimised, Declared(at_most=True)).total,
      flops_by_part=_by_part(flops),
      partitioned=collectives(partitioned, axis_sizes),
      optimised=collectives(optimised, axis_sizes),
      instructions=sum(len(c.instructions) for c in optimised.computations.values()),
      seconds=clock.seconds,
      versions=versions(),
    )


def versions() -> dict[str, str]:
  """Versions that decide what is compiled."""
  return {
    "jaxmoe": __version__,
    **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
  }


def _argument_bytes(module: Module) -> list[int]:
  """The entry computation's parameters are the flattened arguments in order."""
  entry = [x for x in module.entry.instructions if x.opcode == "parameter"]
  return [int(x.shape.bytes) for x in sorted(entry, key=lambda x: int(x.literal))]


def _padding(header: str) -> dict[str, int]:
  padding = argument_padding(header)
  return {
    "argument_padding_bytes": sum(padding),
    "alias_padding_bytes": sum(padding[number] for number in aliased_arguments(header)),
  }


def _class_bytes(classes: dict[str, Any], leaf_bytes: list[int]) -> dict[str, int]:
  """Bytes of each class of a flattened sequence of pytrees."""
  found, start = {}, 0
  for name, tree in classes.items():
    leaves = len(jax.tree.leaves(tree))
    found[name] = sum(leaf_bytes[start : start + leaves])
    start += leaves
  if start != len(leaf_bytes):
    raise RuntimeError(f"the compiled module has {len(leaf_bytes)} arrays where the program has {start}")
  return found


def _by_part(flops: FlopCount) -> dict[str, float]:
  parts = {part: flops.within(part) for part in ("attention", "router", "experts", "head")}
  return {**parts, "other": flops.total - sum(parts.values())}


class _Clock:
  """Announces a phase and keeps its seconds."""

  def __init__(self, progress: Progress):
    self.progress, self.seconds = progress, {}

  def __call__(self, name: str, message: str) -> "_Phase":
    self.progress(message)
    return _Phase(self.seconds, name)


class _Phase:
  def __init__(self, seconds: dict[str, float], name: str):
    self.seconds, self.name = seconds, name

  def __enter__(self):
    self.start = time.perf_counter()

  def __exit__(self, *_: Any):
    self.seconds[self.name] = time.perf_counter() - self.start
