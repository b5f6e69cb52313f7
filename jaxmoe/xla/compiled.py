"""Compile a deployment's real step and count what the compiler made of it; runs where jax has enough devices."""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.build import build_mesh, cuda_devices, topology_devices
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.slices import spelled
from jaxmoe.xla import cuda
from jaxmoe.xla.assignment import Assignment
from jaxmoe.xla.between_slices import Slices
from jaxmoe.xla.child import resident_bytes
from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.compiled_step import PARTS, CompiledStep
from jaxmoe.xla.declared import AT_MOST
from jaxmoe.xla.elementwise import elementwise_work
from jaxmoe.xla.failed import refused
from jaxmoe.xla.flops import FlopCount, matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.layout import aliased_arguments, argument_padding
from jaxmoe.xla.matmuls import matmuls
from jaxmoe.xla.memory import compiled_memory
from jaxmoe.xla.partitioned import compile_with_dumps
from jaxmoe.xla.program import Program, build_program
from jaxmoe.xla.target import CPU, Target, expert_kernel, versions
from jaxmoe.xla.temporary_sizes import explained, sizes_of
from jaxmoe.xla.traced_step import class_bytes, traced_step
from jaxmoe.xla.traffic import Traffic, memory_traffic

Progress = Callable[[str], None]


def compile_step(deployment: Deployment, target: Target = CPU, progress: Progress = lambda _: None) -> CompiledStep:
  """Lowers from shapes alone, compiles, and walks the partitioned and the optimised module.

  Raises:
    MissingError: the target's compiler or devices are not here.
    CompileFailed: the compiler refuses the program.
  """
  with jax.enable_x64("float64" in dataclasses.astuple(deployment.job.precision)):
    return _compile_step(deployment, target, progress)


def _compile_step(deployment: Deployment, target: Target, progress: Progress) -> CompiledStep:
  clock = _Clock(progress)
  axis_sizes = {axis: deployment.strategy.size(axis) for axis in AXES}
  with clock("build", f"building the {deployment.job.kind} step for {deployment.strategy.devices} devices"):
    devices = target_devices(deployment, target)
    mesh = build_mesh(deployment.strategy, devices)
    program, slices = build_program(deployment, mesh), _slices(mesh)
  with clock("lower", "lowering from shapes"):
    program, traced, lowered, notes = _lower(deployment, target, devices, program)
  with clock("compile", f"compiling for {deployment.strategy.devices} devices"):
    compiled, partitioned, assignment = _compile(deployment, program, lowered)
  with clock("walk", "counting FLOPs and collectives"):
    optimised = Module.from_compiled(compiled)
    planned, flops, most = matmul_flops(partitioned), matmul_flops(optimised), matmul_flops(optimised, AT_MOST)
    return CompiledStep(
      traced=traced_step(program, traced, deployment.strategy.devices),
      platform=devices[0].platform,
      class_bytes=_class_bytes(program.arguments, _argument_bytes(optimised)),
      output_class_bytes=_class_bytes(program.outputs(lowered), [int(s.bytes) for s in optimised.entry.root.shapes]),
      memory=(memory := compiled_memory(compiled, assignment if devices[0].platform == "tpu" else None)),
      temporaries=explained(deployment, program, optimised, memory, assignment),
      **_padding(optimised.header),
      flops=flops.total - flops.recomputed,
      flops_at_most=most.total - most.recomputed,
      recomputed_flops=flops.recomputed,
      flops_by_part=_by_part(planned, PARTS),
      matmuls=matmuls(optimised),
      partitioned_matmuls=matmuls(partitioned),
      optimal_s=_optimal_s(compiled),
      **_beside_matmuls(program, optimised),
      partitioned=collectives(partitioned, axis_sizes),
      optimised=collectives(optimised, axis_sizes, slices=slices),
      slices=slices,
      instructions=sum(len(c.instructions) for c in optimised.computations.values()),
      seconds=clock.seconds,
      versions=versions(target),
      settings=_settings(deployment, devices[0].platform, fell_back=bool(notes)),
      notes=(*notes, *_notes(target), *_recomputed(flops)),
      peak_bytes=resident_bytes(field="VmHWM"),
    )


def _notes(target: Target) -> list[str]:
  if target.slices > 1:
    return [f"{target.slices} slices: what goes between them is what a device hands to its host"]
  return [cuda.NOT_AUTOTUNED] if target.platform == "cuda" else []


def _recomputed(flops: FlopCount) -> list[str]:
  if not flops.recomputed:
    return []
  share = flops.recomputed / (flops.total - flops.recomputed)
  return [f"the compiler computes {share:.2%} of the matmuls again to save memory; the checks leave that out"]


def _slices(mesh: jax.sharding.Mesh) -> Slices | None:
  """Where the ranks lie, if in several TPU slices."""
  ids, numbers = zip(*((device.id, getattr(device, "slice_index", 0)) for device in mesh.devices.flat), strict=True)
  return Slices(ids, numbers) if mesh.devices.flat[0].platform == "tpu" and len(set(numbers)) > 1 else None


def _lower(
  d: Deployment, target: Target, devices: list[Any], program: Program
) -> tuple[Program, jax.stages.Traced, jax.stages.Lowered, tuple[str, ...]]:
  """The program, traced, lowered, and notes: where NVIDIA's kernels cannot serve, the compiler's own matmuls do.

  Raises:
    UsageError: the kernel that the job names cannot serve either, or nothing else can.
  """
  try:
    traced = program.trace()
    return program, traced, traced.lower(), ()
  except NotImplementedError as error:
    if target.platform != "cuda" or d.job.expert_kernel != "platform" or d.job.transport == "gather":
      raise UsageError(f"{d.name} cannot be compiled for {target}: {error}") from error
    reason = str(error)
  plain = dataclasses.replace(d, job=dataclasses.replace(d.job, expert_kernel="einsum"))
  program = build_program(plain, build_mesh(plain.strategy, devices))
  traced = program.trace()
  return program, traced, traced.lower(), (f"experts are multiplied by einsum, for: {reason}",)


def _compile(
  d: Deployment, program: Program, lowered: jax.stages.Lowered
) -> tuple[jax.stages.Compiled, Module, Assignment | None]:
  """Raises CompileFailed with the compiler's words and the bytes of the program's arguments and results."""
  try:
    return compile_with_dumps(lowered)
  except jax.errors.JaxRuntimeError as error:
    held = class_bytes(program.outputs(lowered)) | class_bytes(program.arguments)
    raise refused(str(error), held, sizes_of(d, program)) from error


def _optimal_s(compiled: jax.stages.Compiled) -> float | None:
  """The compiler's own estimate of a step; None where it has none, or a number that is no time."""
  seconds = (compiled.cost_analysis() or {}).get("optimal_seconds", 0.0)
  return seconds if 0 < seconds < math.inf else None


def _settings(d: Deployment, platform: str, *, fell_back: bool) -> dict[str, str]:
  """Where the platform chooses, it does so for each call; NVIDIA's kernels serve all or none."""
  kernel = expert_kernel(d, platform) if platform == "gpu" else d.job.expert_kernel
  return {
    "partitioner": "Shardy" if jax.config.jax_use_shardy_partitioner else "GSPMD",
    "XLA flags": os.environ.get("XLA_FLAGS", "").replace(str(cuda.toolkit()), cuda.TOOLKIT),
    "expert kernel": "einsum" if fell_back else kernel,
  }


def target_devices(deployment: Deployment, target: Target) -> list[Any]:
  """Devices that a target compiles for, at least as many as the strategy needs where it names those that are here."""
  if target.platform == "tpu":
    picked = target.on(deployment)
    return topology_devices(f"{picked.generation}:{spelled(picked.shape)}", picked.slices)
  if target.platform == "cuda":
    target.require()
    picked = target.on(deployment)
    return cuda_devices(picked.generation, *picked.shape)
  devices, needed = jax.devices(), deployment.strategy
  if target.local and len(devices) < needed.devices:
    raise MissingError(
      f"--target local needs {needed.product}, and {len(devices)} {devices[0].platform} devices are present;"
      " run it where there are as many, or compile for fake devices with --target cpu"
    )
  return devices


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


def _beside_matmuls(program: Program, optimised: Module) -> dict[str, Any]:
  """Memory traffic and elementwise work, as fields of a `CompiledStep`."""
  traffic, work = memory_traffic(optimised), elementwise_work(optimised)
  leaves = sum(len(jax.tree.leaves(tree)) for tree in program.arguments.values())
  return {
    "traffic_bytes": traffic.total,
    "traffic_by_part": _by_part(traffic, (*PARTS, "optimizer")),
    "class_read_bytes": _class_bytes(program.arguments, [traffic.of_arguments.get(i, 0.0) for i in range(leaves)]),
    "elementwise_flops": work.flops,
    "transcendentals": work.transcendentals,
  }


def _class_bytes[N: (int, float)](classes: dict[str, Any], leaf_bytes: list[N]) -> dict[str, N]:
  """Bytes of each class of a flattened sequence of pytrees."""
  found, start = {}, 0
  for name, tree in classes.items():
    leaves = len(jax.tree.leaves(tree))
    found[name] = sum(leaf_bytes[start : start + leaves])
    start += leaves
  if start != len(leaf_bytes):
    raise RuntimeError(f"the compiled module has {len(leaf_bytes)} arrays where the program has {start}")
  return found


def _by_part(count: FlopCount | Traffic, scopes: tuple[str, ...]) -> dict[str, float]:
  parts = {part: count.within(part) for part in scopes}
  return {**parts, "other": count.total - sum(parts.values())}


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
