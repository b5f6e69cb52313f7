"""What to say where a device is too small or a compiler refuses: what is largest, and which plan would fit."""

from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import Estimate
from jaxmoe.report import units
from jaxmoe.xla.failed import CompileFailed


def refusal(d: Deployment, target: str, error: CompileFailed, nearest: Estimate | None) -> str:
  """The compiler's own words first."""
  what = f"{d.name} on {target}, {d.strategy.product}"
  kind = "does not fit" if error.out_of_memory else "the compiler refuses"
  lines = [f"{kind}: {what}: {error}", _classes(error)]
  if error.out_of_memory:
    lines.append(nearest_plan(nearest))
  return "\n".join(lines) + "\n"


def _classes(error: CompileFailed) -> str:
  by_size = sorted(error.class_bytes.items(), key=lambda item: -item[1])
  return "of one device, largest first: " + ", ".join(f"{name} {units.bytes_(size)}" for name, size in by_size)


def nearest_plan(nearest: Estimate | None) -> str:
  """One sentence on the plan that fits."""
  if nearest is None:
    return "no plan that is searched fits (formula)"
  d = nearest.deployment
  job = f"{d.job.microbatches} microbatches, remat {d.job.remat}, transport {d.job.transport}"
  return f"nearest plan that fits: {d.strategy.product}, {job}: {units.bytes_(nearest.memory.total)} a device (formula)"


def refusal_document(d: Deployment, target: str, error: CompileFailed, nearest: Estimate | None) -> dict[str, Any]:
  return {
    "deployment": d.name,
    "target": target,
    "devices": d.strategy.devices,
    "product": d.strategy.product,
    "ok": False,
    "refused": error.message,
    "out_of_memory": error.out_of_memory,
    "sources": {"refused": "compiled", "class_bytes": "compiled", "nearest_plan": "formula"},
    "class_bytes": error.class_bytes,
    "largest_class": error.largest,
    "nearest_plan": nearest_document(nearest),
  }


def nearest_document(nearest: Estimate | None) -> dict[str, Any] | None:
  if nearest is None:
    return None
  d = nearest.deployment
  return {
    "product": d.strategy.product,
    "devices": d.strategy.devices,
    "microbatches": d.job.microbatches,
    "remat": d.job.remat,
    "transport": d.job.transport,
    "memory_bytes": nearest.memory.total,
  }
