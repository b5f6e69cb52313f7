"""Run a deployment's real step on the devices that are here and time it; works in a process of its own."""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.build import build_mesh
from jaxmoe.model.sharded import shard_model
from jaxmoe.xla.compiled import target_devices
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.measured import Measured
from jaxmoe.xla.profile import device_shares, opcodes_by_name
from jaxmoe.xla.program import Program, build_program
from jaxmoe.xla.room import check_room
from jaxmoe.xla.target import Target

WARM_UP = 2
PROFILED = 3


def measure_step(
  deployment: Deployment, target: Target, steps: int, progress: Callable[[str], None] = lambda _: None
) -> Measured:
  """Compiles the step, runs it on random weights and tokens, and times `steps` of them one by one.

  Raises:
    MissingError: too few devices are here.
    UsageError: they are the CPU's, and this machine's memory cannot hold them all.
  """
  with jax.enable_x64("float64" in dataclasses.astuple(deployment.job.precision)):
    return _measure(deployment, target, steps, progress)


def _measure(d: Deployment, target: Target, steps: int, progress: Callable[[str], None]) -> Measured:
  devices = target_devices(d, target)[: d.strategy.devices]
  if devices[0].platform == "cpu":
    check_room(d)
  progress(f"compiling for {len(devices)} devices")
  program = build_program(d, build_mesh(d.strategy, devices))
  compiled = program.lower().compile()
  progress("making weights and tokens")
  runner = _Runner(d, program, compiled, _arguments(d, devices, program))
  for _ in range(WARM_UP):
    runner.step()
  seconds: list[float] = []
  for number in range(1, steps + 1):
    seconds.append(runner.step())
    progress(f"step {number} of {steps}: {seconds[-1]:.4g} s")
  progress("profiling")
  return Measured(
    device=devices[0].device_kind,
    platform=devices[0].platform,
    devices=len(devices),
    seconds=tuple(seconds),
    warm_up=WARM_UP,
    shares=_profiled(runner, len(devices)),
    versions={name: metadata.version(name) for name in ("jax", "jaxlib")},
    peak_bytes=max(peaks) if (peaks := _peak_bytes(devices)) else None,
  )


def _peak_bytes(devices: list[Any]) -> list[int]:
  """Of those devices that keep count; the CPU does not."""
  statistics = (device.memory_stats() or {} for device in devices)
  return [known["peak_bytes_in_use"] for known in statistics if "peak_bytes_in_use" in known]


class _Runner:
  """A compiled step and what it is called with; what a step updates goes into the next."""

  def __init__(self, d: Deployment, program: Program, compiled: Any, arguments: dict[str, Any]):
    self.d, self.program, self.compiled, self.arguments = d, program, compiled, arguments

  def step(self) -> float:
    """Seconds of one step, from the call until every result is there."""
    flat = [tree for name, tree in self.arguments.items() if name != "inputs"]
    start = time.perf_counter()
    results = jax.block_until_ready(self.compiled(*flat, *self.arguments["inputs"]))
    seconds = time.perf_counter() - start
    named = dict(zip(self.program.results, results, strict=True))
    self.arguments |= {name: tree for name, tree in named.items() if name in self.arguments}
    return seconds


def _profiled(runner: _Runner, devices: int) -> dict[str, float]:
  with tempfile.TemporaryDirectory(prefix="jaxmoe-") as name:
    with jax.profiler.trace(name):
      wall_s = sum(runner.step() for _ in range(PROFILED))
    return device_shares(pathlib.Path(name), opcodes_by_name(Module.from_compiled(runner.compiled)), wall_s, devices)


def _arguments(d: Deployment, devices: list[Any], program: Program) -> dict[str, Any]:
  """Random weights, zero moments, a cache of zeros, random tokens."""
  model = shard_model(d, build_mesh(d.strategy, devices))
  made = {name: _zeros(tree) for name, tree in program.arguments.items() if name not in ("parameters", "inputs")}
  tokens, second = program.arguments["inputs"]
  return {"parameters": model.init(0), **made, "inputs": (_tokens(d, tokens, 1), _second(d, second))}


def _second(d: Deployment, shape: Any) -> jax.Array:
  """Targets in training; in serving, full lengths."""
  if d.job.kind == "train":
    return _tokens(d, shape, 2)
  length = d.job.sequence_length - (d.job.kind == "decode")
  return jax.device_put(jnp.full(shape.shape, length, shape.dtype), shape.sharding)


def _tokens(d: Deployment, shape: Any, seed: int) -> jax.Array:
  return jax.device_put(jax.random.randint(jax.random.key(seed), shape.shape, 0, d.model.vocab_size, shape.dtype),
                        shape.sharding)  # fmt: skip


def _zeros(tree: Any) -> Any:
  shardings = jax.tree.map(lambda x: x.sharding, tree)
  return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree), out_shardings=shardings)()
