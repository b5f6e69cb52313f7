"""Who is measured: each peer is a class whose methods return a function without arguments that launches one leg.

A peer that is not installed, or has no such leg, raises `Absent` with the reason. Arrays are jax's; torch sees the same
memory.
"""

import contextlib
import functools
import importlib
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from operands import Operands, on_dry_device
from problems import Leg, Problem
from timing import median_us

from jaxmoe.kernels.expert_ffn import expert_ffn
from jaxmoe.kernels.hopper import legs
from jaxmoe.kernels.hopper.device import Device

Launch = Callable[[], Any]
MOST_DENSE_BYTES = 40e9  # of one operand that a dense ragged dot materialises


class Absent(Exception):
  """This peer has nothing to measure here; the message says why."""


def silu_gate(gate_up):
  """Elementwise, on the last axis' halves."""
  gate, up = jnp.split(gate_up.astype("float32"), 2, axis=-1)
  return (jax.nn.silu(gate) * up).astype(gate_up.dtype)


def launch(function, *arrays) -> Launch:
  compiled = jax.jit(function).lower(*arrays).compile()
  return lambda: compiled(*arrays)


class Ours:
  """jaxmoe on Hopper; in a dry run, in the interpreter."""

  def __init__(self, device: Device | None = None):
    self.device = device

  def build(self, leg: Leg, o: Operands) -> Launch:
    on = functools.partial
    if leg == "up":
      return launch(on(legs.gated_up, activation="silu", device=self.device), o.x_ND, o.gate_EDF, o.up_EDF, o.sizes_E)
    if leg == "down":
      return launch(on(legs.matmul, device=self.device), o.y_NF, o.down_EFD, o.sizes_E)
    if leg == "down_fp8":
      return launch(on(legs.matmul_scaled, device=self.device), o.y_NF, o.down_fp8_EFD, o.scale_ED, o.sizes_E)
    if leg == "input_gradient":
      return launch(on(legs.matmul_transposed, device=self.device), o.y_NF, o.gate_EDF, o.sizes_E)
    if leg == "weight_gradient":
      return launch(on(legs.weight_gradient, device=self.device), o.x_ND, o.y_NF, o.sizes_E)
    run = on(expert_ffn, activation="silu", implementation="hopper")
    with on_dry_device() if self.device else contextlib.nullcontext():
      return launch(both_passes(run), o.x_ND, o.sizes_E, o.x_ND, o.gate_EDF, o.up_EDF, o.down_EFD)


def both_passes(run):
  """(dy, sizes, x, *weights) -> y and all gradients; `run` takes (x, *weights, sizes)."""

  def step(dy_ND, sizes_E, *arrays):
    y_ND, pull = jax.vjp(lambda *arrays: run(*arrays, sizes_E), *arrays)
    return y_ND, pull(dy_ND)

  return step


class Dense:
  """The bound: one dense matmul of the same operations, with one expert's weights."""

  differs = True

  def build(self, leg: Leg, o: Operands) -> Launch:
    if leg == "layer":
      raise Absent("the bound of a layer is that of its legs")
    gate_up_DF, down_FD = o.gate_up_EDF[0], o.down_EFD[0]
    if leg == "up":
      return launch(jnp.matmul, o.x_ND, gate_up_DF)
    if leg == "weight_gradient":
      return launch(lambda x, y: x.T @ y, o.x_ND, o.y_NF)
    return launch(jnp.matmul, o.y_NF, down_FD)


class GroupedMatmul:
  """Legs from one differentiable grouped matmul of jax."""

  def matmul(self, x_ND, w_EDF, sizes_E):
    raise NotImplementedError

  def weights(self, x_ND, y_NF, sizes_E):
    """Transposed rows times rows, through the gradient of `matmul`."""
    zeros = jnp.zeros((sizes_E.shape[0], x_ND.shape[1], y_NF.shape[1]), x_ND.dtype)
    return jax.vjp(lambda w: self.matmul(x_ND, w, sizes_E), zeros)[1](y_NF)[0]

  def rows(self, y_NF, w_EDF, sizes_E):
    x_ND = jnp.zeros((y_NF.shape[0], w_EDF.shape[1]), y_NF.dtype)
    return jax.vjp(lambda x: self.matmul(x, w_EDF, sizes_E), x_ND)[1](y_NF)[0]

  def layer(self, x_ND, gate_up_EDF, down_EFD, sizes_E):
    return self.matmul(silu_gate(self.matmul(x_ND, gate_up_EDF, sizes_E)), down_EFD, sizes_E)

  def build(self, leg: Leg, o: Operands) -> Launch:
    if leg == "down_fp8":
      raise Absent("no scales of FP8 weights")
    if leg == "up":
      return launch(lambda x, w, s: silu_gate(self.matmul(x, w, s)), o.x_ND, o.gate_up_EDF, o.sizes_E)
    if leg == "down":
      return launch(self.matmul, o.y_NF, o.down_EFD, o.sizes_E)
    if leg == "input_gradient":
      return launch(self.rows, o.y_NF, o.gate_EDF, o.sizes_E)
    if leg == "weight_gradient":
      return launch(self.weights, o.x_ND, o.y_NF, o.sizes_E)
    return launch(both_passes(self.layer), o.x_ND, o.sizes_E, o.x_ND, o.gate_up_EDF, o.down_EFD)


class RaggedDot(GroupedMatmul):
  """`form`: how it compiles here, as `environment.how_ragged_dot_compiles` found."""

  def __init__(self, form: str):
    self.form = form

  def matmul(self, x_ND, w_EDF, sizes_E):
    return jax.lax.ragged_dot(x_ND, w_EDF, sizes_E)

  def build(self, leg: Leg, o: Operands) -> Launch:
    check_room(self.form, o.problem)
    return super().build(leg, o)


class Tokamax(GroupedMatmul):
  """`form`: of the ragged dot that its backend "xla" is."""

  def __init__(self, backend: str, form: str = "cuDNN"):
    self.backend, self.form = backend, form

  def matmul(self, x_ND, w_EDF, sizes_E):
    return tokamax().ragged_dot(x_ND, w_EDF, sizes_E, implementation=self.backend)

  def build(self, leg: Leg, o: Operands) -> Launch:
    if self.backend == "xla":
      check_room(self.form, o.problem)
    return super().build(leg, o)


def check_room(form: str, problem: Problem) -> None:
  """A ragged dot that is not dense needs no room; one whose form nobody could tell might."""
  N, D, F, E = problem.dims
  if form != "cuDNN" and 2.0 * N * E * max(D, F) > MOST_DENSE_BYTES:
    raise Absent(f"it compiles as: {form}; dense, its operand would take {2e-9 * N * E * max(D, F):.0f} GB")


def tokamax():
  """It imports a profiler that only its own benchmarks use; where that is not installed, an empty module stands in."""
  try:
    importlib.import_module("xprof.cli.tools")
  except ImportError:
    for name in ("xprof", "xprof.cli", "xprof.cli.tools", "xprof.cli.tools.get_kernel_stats_tool"):
      module = sys.modules.setdefault(name, types.ModuleType(name))
      module.__path__ = []
      parent, _, last = name.rpartition(".")
      setattr(sys.modules.get(parent, module), last, module)
  return load("tokamax")


class JaxMosaic:
  """The kernels that come with jax, each with the best of a few tile shapes."""

  def build(self, leg: Leg, o: Operands) -> Launch:
    forward = load("jax.experimental.pallas.ops.gpu.ragged_dot_mgpu").ragged_dot
    backward = load("jax.experimental.pallas.ops.gpu.transposed_ragged_dot_mgpu").transposed_ragged_dot
    call, arrays = {
      "up": (lambda x, w, s, **t: silu_gate(forward(x, w, group_sizes=s, **t)), (o.x_ND, o.gate_up_EDF)),
      "down": (lambda x, w, s, **t: forward(x, w, group_sizes=s, **t), (o.y_NF, o.down_EFD)),
      "input_gradient": (
        lambda y, w, s, **t: forward(y, w, group_sizes=s, transpose_rhs=True, **t), (o.y_NF, o.gate_EDF)
      ),
      "weight_gradient": (lambda x, y, s, **t: backward(x, y, group_sizes=s, **t), (o.x_ND, o.y_NF)),
    }.get(leg, (None, ()))  # fmt: skip
    if call is None:
      raise Absent("jax's kernels take no scales and have no gradient of their own")
    return fastest(
      launch(functools.partial(call, block_m=m, block_n=128, block_k=64, max_concurrent_steps=4, grid_block_n=4), *both)
      for m, both in itertools.product((64, 128), [(*arrays, o.sizes_E)])
    )


def fastest(launches) -> Launch:
  return min(launches, key=lambda each: median_us(each, jax.block_until_ready, repeats=1))


def load(name: str):
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise Absent(f"{name} cannot be imported: {error}") from error
