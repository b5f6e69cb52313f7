"""What to say where a device is too small or a compiler refuses: what is largest, and which plan would fit."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import Estimate
from jaxmoe.report import units
from jaxmoe.xla.failed import CompileFailed

_SHOWN = 4
# Where what the JSON document says comes from, by its key.
SOURCES = {
  **dict.fromkeys(("refused", "class_bytes", "needed_bytes", "available_bytes", "excess_bytes"), "compiled"),
  "largest_temporaries": "compiled",
  "nearest_plan": "formula",
}


def refusal(d: Deployment, target: str, error: CompileFailed, nearest: Estimate | None) -> str:
  """The compiler's own words first."""
  what = f"{d.name} on {target}, {d.strategy.product}"
  kind = "does not fit" if error.out_of_memory else "the compiler refuses"
  lines = [f"{kind}: {what}: {error}", _classes(error)]
  if error.out_of_memory:
    lines += [*_too_large(error), nearest_plan(nearest)]
  return "\n".join(lines) + "\n"


def _classes(error: CompileFailed) -> str:
  by_size = sorted(error.class_bytes.items(), key=lambda item: -item[1])
  return "of one device, largest first: " + ", ".join(f"{name} {units.bytes_(size)}" for name, size in by_size)


def _too_large(error: CompileFailed) -> Iterator[str]:
  """By how much, which class, and which operations made the largest temporaries."""
  if error.excess_bytes is not None and error.said.available_bytes is not None:
    size = units.bytes_(error.class_bytes[error.largest])
    yield (
      f"too large by {units.bytes_(error.excess_bytes)} for the {units.bytes_(error.said.available_bytes)} that the"
      f" compiler has for arguments, results and temporaries: most of it is {error.largest}, {size} (compiled)"
    )
  for one in error.said.largest[:_SHOWN]:
    yield f"  {units.bytes_(one.bytes)} {one.kind}: {one.shape}, {one.op_name or 'without a name'}"


def nearest_plan(nearest: Estimate | None) -> str:
  """One sentence on the plan that fits."""
  if nearest is None:
    return "no plan that is searched fits (formula)"
  d = nearest.deployment
  batches = f"{d.job.microbatches} microbatch{'es' if d.job.microbatches > 1 else ''}"
  job = f"{batches}, remat {d.job.remat}, transport {d.job.transport}"
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
    "sources": SOURCES,
    "class_bytes": error.class_bytes,
    "largest_class": error.largest,
    "needed_bytes": error.said.needed_bytes,
    "available_bytes": error.said.available_bytes,
    "excess_bytes": error.excess_bytes,
    "largest_temporaries": [dataclasses.asdict(one) for one in error.said.largest[:_SHOWN]],
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
