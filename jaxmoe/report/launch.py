"""How a plan is started: processes, its mesh in jax, and settings that follow from its numbers."""

import math

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import Estimate
from jaxmoe.meshes.axes import AXES
from jaxmoe.model.support import check_runnable
from jaxmoe.report import units
from jaxmoe.xla.target import MOST_FAKE_DEVICES

# Share of a GPU's memory that jax takes when it starts, if nothing else is said (jax docs, "GPU memory allocation").
PREALLOCATED = 0.75


def hosts(d: Deployment) -> int:
  return math.ceil(d.strategy.devices / d.cluster.devices_per_host)


def sentence(d: Deployment) -> str:
  """Hosts, processes and what each feeds."""
  each = min(d.cluster.devices_per_host, d.strategy.devices)
  return (
    f"Hosts: {hosts(d)} of {units.devices(each)}, one process each. Sequences of a step: {d.job.batch}, of which a"
    f" device gets {d.job.microbatches} x {d.microbatch_sequences} (microbatches x sequences), {d.job.query_length}"
    f" tokens of each. Weights are kept in {d.job.precision.weights}, computed in {d.job.precision.compute}."
  )


def mesh_code(d: Deployment) -> str:
  """The mesh, built as `jaxmoe.meshes.build.build_mesh` builds it."""
  s = d.strategy
  sizes = ", ".join(str(s.size(axis)) for axis in s.order)
  turned = "" if s.order == AXES else f".transpose({', '.join(str(s.order.index(axis)) for axis in AXES)})"
  lines = ["import jax", "import numpy as np", ""]
  if hosts(d) > 1:
    lines += [f"jax.distributed.initialize(coordinator_address, num_processes={hosts(d)}, process_id=host)"]
  lines += [
    f"devices = np.array(jax.devices()[:{s.devices}]).reshape({sizes}){turned}  # ranks by {', '.join(s.order)}",
    f"mesh = jax.sharding.Mesh(devices, {AXES})",
  ]
  return "\n".join(lines)


def settings(e: Estimate, assumed: Assumptions) -> list[str]:
  """Environment variables, each with the number that asks for it."""
  d, found = e.deployment, []
  share = e.memory.total / d.cluster.memory_bytes
  on_gpu = not any(tier.torus_axes for tier in d.cluster.tiers)
  if on_gpu and share > PREALLOCATED:
    fraction = math.ceil(100 * share) / 100
    found.append(
      f"On NVIDIA GPUs: `XLA_PYTHON_CLIENT_MEM_FRACTION={fraction:.2f}` or more, for a device needs"
      f" {units.percent(share)} of its memory and jax takes {units.percent(PREALLOCATED)} by default."
    )
  if on_gpu and (assumed.dispatch_overlap or assumed.gradient_overlap):
    found.append(
      "On NVIDIA GPUs: `XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true`, for this plan takes"
      f" {units.percent(assumed.dispatch_overlap)} of the experts' exchange and"
      f" {units.percent(assumed.gradient_overlap)} of the gradients' sum for hidden."
    )
  if _fake_devices(d):
    found.append(
      f"To rehearse on a CPU: `JAX_PLATFORMS=cpu"
      f" XLA_FLAGS=--xla_force_host_platform_device_count={d.strategy.devices}`, set before jax starts."
    )
  return found


def _fake_devices(d: Deployment) -> bool:
  """Whether one machine can fake as many devices."""
  return d.strategy.devices <= MOST_FAKE_DEVICES


def not_runnable(d: Deployment) -> str:
  """Why `jaxmoe verify` cannot compile the plan; nothing where it can."""
  try:
    check_runnable(d)
  except NotImplementedError as error:
    return str(error)
  return ""


def verify_sentence(d: Deployment) -> str:
  reason = not_runnable(d)
  if reason:
    return f"`jaxmoe verify` cannot compile it: {reason}. `jaxmoe plan --runnable` searches among what it can, if any."
  return "`jaxmoe verify` compiles the real step and compares its memory, FLOPs and messages with these numbers."


def commands(d: Deployment) -> str:
  """What to run next, in the folder of plan.yaml."""
  lines = ["jaxmoe estimate plan.yaml", f"jaxmoe place plan.yaml --ranks 0:{min(8, d.strategy.devices)}"]
  if not not_runnable(d):
    lines.append(f"jaxmoe verify plan.yaml --target {'cpu' if _fake_devices(d) else 'local'}")
  return "\n".join(lines)
