"""Why there is no plan: what is short in one sentence, the plan that comes closest, and the nearest that fits."""

import dataclasses
from collections.abc import Iterator

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.meshes.axes import AXES
from jaxmoe.planner.answer import Shortage
from jaxmoe.planner.question import Question
from jaxmoe.report import units
from jaxmoe.report.estimate import memory_table, time_table
from jaxmoe.report.table import Table


def sentence(q: Question, shortage: Shortage) -> str:
  """Which limit the closest plan breaks, and by how much."""
  closest = shortage.closest
  if closest is None:
    return shortage.what
  return {"memory": _too_large, "step": _too_slow, "tokens": _too_few}[shortage.what](q, closest)


def _too_large(q: Question, closest: Estimate) -> str:
  room = max(0, q.cluster.memory_bytes - q.constraints.reserve_bytes)
  classes = dataclasses.asdict(closest.memory)
  largest = max(classes, key=lambda name: classes[name])
  needs, over = closest.memory.total, closest.memory.total - room
  return (
    f"memory is short: the plan that needs least, {closest.deployment.name}, needs {units.bytes_(needs)}"
    f" of the {units.bytes_(room)} that a device has for it, {units.bytes_(over)} too many; most of it is {largest}"
    f" ({units.bytes_(classes[largest])})"
  )


def _too_slow(q: Question, closest: Estimate) -> str:
  most, took = q.constraints.max_step_s or 0.0, closest.time.total_s
  return (
    f"time is short: in the fastest plan that fits, {closest.deployment.name}, a step takes {units.seconds(took)},"
    f" and {units.seconds(most)} are allowed, {units.seconds(took - most)} too long"
  )


def _too_few(q: Question, closest: Estimate) -> str:
  least = (q.constraints.min_tokens_per_s_per_device or 0.0) / 1000
  rate = closest.tokens_per_s / closest.deployment.strategy.devices / 1000
  return (
    f"time is short: in the plan that makes most, {closest.deployment.name}, a device makes {rate:.4g} tokens/ms,"
    f" and {least:.12g} tokens/ms are asked for"
  )


def tables(shortage: Shortage) -> Iterator[Table]:
  """Of what is short in the closest plan; then the nearest plan that keeps every limit."""
  closest, e = shortage.closest, shortage.fitting
  if closest is not None and shortage.what == "memory":
    yield dataclasses.replace(memory_table(closest), title="Memory of the closest plan")
  elif closest is not None:
    yield dataclasses.replace(time_table(closest), title="Time of one step of the closest plan")
  row = (f"none up to {shortage.most_devices:,} devices", "-", "-", "-", SOURCE)
  if e is not None:
    size, step = units.bytes_(e.memory.total), units.seconds(e.time.total_s)
    row = (e.deployment.name, product(e), size, step, SOURCE)
  yield Table("The nearest plan that fits", ["plan", "devices", "memory", "step", "source"], [row])


def product(e: Estimate) -> str:
  """`4 x 16 x 8 x 2 = 1024`."""
  s = e.deployment.strategy
  return " x ".join(str(s.size(axis)) for axis in AXES) + f" = {s.devices}"
