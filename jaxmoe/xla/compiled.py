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
from jaxmoe.meshes.errors import MissingError
from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.compiled_step import CompiledStep
from jaxmoe.xla.flops import FlopCount, matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.layout import aliased_arguments, argument_padding
from jaxmoe.xla.memory import compiled_memory
from jaxmoe.xla.partitioned import compile_with_partitioned
from jaxmoe.xla.program import build_program
from jaxmoe.xla.target import CPU, Target
from jaxmoe.xla.walk import Declared

Progress = Callable[[str], None]


def compile_step(deployment: Deployment, target: Target = CPU, progress: Progress = lambda _: None) -> CompiledStep:
  """Lowers from shapes alone, compiles, and walks the partitioned and the optimised module.

  Raises:
    MissingError: the target's compiler or devices are not here.
  """
  with jax.enable_x64("float64" in dataclasses.astuple(deployment.job.precision)):
    return _compile_step(deployment, target, progress)


def _compile_step(deployment: Deployment, target: Target, progress: Progress) -> CompiledStep:
  clock = _Clock(progress)
  axis_sizes = {axis: deployment.strategy.size(axis) for axis in AXES}
  with clock("build", f"building the {deployment.job.kind} step for {deployment.strategy.devices} devices"):
    devices = _devices(deployment, target)
    program = build_program(deployment, build_mesh(deployment.strategy, devices))
  with clock("lower", "lowering from shapes"):
    lowered = program.lower()
  with clock("compile", f"compiling for {deployment.strategy.devices} devices"):
    compiled, partitioned = compile_with_partitioned(lowered)
  with clock("walk", "counting FLOPs and collectives"):
    optimised = Module.from_compiled(compiled)
    flops = matmul_flops(partitioned)
    return CompiledStep(
      platform=devices[0].platform,
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


def _devices(deployment: Deployment, target: Target) -> list[Any]:
  if target.topology:
    return topology_devices(target.topology)
  devices, needed = jax.devices(), deployment.strategy
  if target.local and len(devices) < needed.devices:
    raise MissingError(
      f"--target local needs {needed.product}, and {len(devices)} {devices[0].platform} devices are present;"
      " run it where there are as many, or compile for fake devices with --target cpu"
    )
  return devices


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
