"""What the plan predicted beside what the compiler made, row by row, with the tolerance that judges each row."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Literal

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost import collectives as predicted_collectives
from jaxmoe.cost.flops import executed_flops, useful_flops
from jaxmoe.cost.least_memory import least_temporary_bytes
from jaxmoe.cost.memory import argument_bytes, memory
from jaxmoe.cost.traffic import executed_bytes, least_bytes
from jaxmoe.meshes.axes import AXES, label
from jaxmoe.xla.compiled_step import CompiledStep
from jaxmoe.xla.fit import Fit, fit, smallest
from jaxmoe.xla.rewrites import Rewrite, explain
from jaxmoe.xla.target import Target, expert_kernel

# Why each tolerance: bytes of arguments are arithmetic on shapes; matmuls and collectives may be reshaped or merged by
# the partitioner, which 1 % allows for.
EXACT = 0.0
ONE_PERCENT = 0.01


# Where a disagreement lies: the formula and the program that jax traced differ, or the program and what is compiled.
Fault = Literal["formula or program", "compiler", "formula or program, and compiler", "unknown"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
  """One row. `predicted` is a formula's number, `compiled` the compiler's; bytes or FLOPs of one device in one step.

  Attributes:
    program: the same counted on the program as jax traced it; None where that does not say.
    at_least: more than predicted is no error.
  """

  name: str
  axis: str
  unit: str
  predicted: float
  program: float | None = None
  compiled: float
  tolerance: float
  at_least: bool = False

  @property
  def relative_error(self) -> float | None:
    """(compiled - predicted) / predicted; None if something was found where nothing was predicted."""
    if self.at_least and self.compiled >= self.predicted:
      return 0.0
    return _relative_error(self.predicted, self.compiled)

  @property
  def ok(self) -> bool:
    return self.relative_error is not None and abs(self.relative_error) <= self.tolerance

  @property
  def planned(self) -> bool:
    """Whether the program does what the formula says, or nobody knows."""
    return self.program is None or self._close(self.predicted, self.program)

  @property
  def translated(self) -> bool:
    """Whether the compiler made of the program what it says, or nobody knows."""
    return self.program is None or self._close(self.program, self.compiled)

  @property
  def fault(self) -> Fault | None:
    """Where the disagreement of a check that fails lies."""
    if self.ok:
      return None
    if self.program is None:
      return "unknown"
    if not self.planned and not self.translated:
      return "formula or program, and compiler"
    by_formula, by_compiler = abs(self.predicted - self.program), abs(self.program - self.compiled)
    return "compiler" if by_compiler > by_formula else "formula or program"

  def _close(self, one: float, other: float) -> bool:
    error = _relative_error(one, other)
    return error is not None and abs(error) <= self.tolerance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Informational:
  """A row that nobody judges, and why not; `predicted` is None where there is no formula."""

  name: str
  axis: str
  unit: str
  predicted: float | None
  compiled: float
  reason: str

  @property
  def relative_error(self) -> float | None:
    """As of a `Check`."""
    return None if self.predicted is None else _relative_error(self.predicted, self.compiled)


def _relative_error(predicted: float, compiled: float) -> float | None:
  if predicted == compiled:
    return 0.0
  return (compiled - predicted) / predicted if predicted else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """All rows of one deployment on one target.

  Attributes:
    checks: rows that are judged.
    informational: rows that are not.
    rewrites: how each (kind, axes) of the optimised module follows from the partitioned program.
    useful_flops: of the model, on one device, without bubble, padding and recomputation.
    cached: the compile is an earlier one's.
  """

  deployment: Deployment
  target: str
  compiled: CompiledStep
  checks: list[Check]
  informational: list[Informational]
  rewrites: list[Rewrite]
  fit: Fit
  useful_flops: float
  cached: bool = False

  @property
  def unplanned(self) -> list[Rewrite]:
    return [rewrite for rewrite in self.rewrites if not rewrite.planned_for]

  @property
  def agrees(self) -> bool:
    return all(check.ok for check in self.checks) and not self.unplanned

  @property
  def ok(self) -> bool:
    """The compiler agrees, and a device has room."""
    return self.agrees and self.fit.ok


def compare(deployment: Deployment, target: str, compiled: CompiledStep) -> Comparison:
  """Judges `compiled` by the formulas."""
  stood_in = compiled.settings.get("expert kernel") == "einsum"  # where the platform's kernels cannot serve
  kernel = "einsum" if stood_in else expert_kernel(deployment, compiled.platform)
  checks = [*_bytes(deployment, compiled), *_flops(deployment, kernel, compiled), *_traffic(deployment, compiled)]
  checks += [_least_traffic(deployment, compiled), _least_temporaries(deployment, compiled)]
  return Comparison(
    deployment=deployment,
    target=target,
    compiled=compiled,
    checks=checks,
    informational=list(_informational(deployment, kernel, compiled)),
    rewrites=explain(compiled.partitioned, compiled.optimised, _axis_sizes(deployment), compiled.slices),
    fit=fit(smallest(deployment.cluster, Target.parse(target).generation), compiled),
    useful_flops=useful_flops(deployment).total,
  )


def _axis_sizes(d: Deployment) -> dict[str, int]:
  return {axis: d.strategy.size(axis) for axis in AXES}


def _bytes(d: Deployment, compiled: CompiledStep) -> Iterable[Check]:
  """Each class of arguments, their sum as the compiler allocates it, and what is updated in place."""
  predicted, classes, traced = memory(d), argument_bytes(d), compiled.traced
  for name, expected in classes.items():
    yield _byte_check(name, expected, compiled.class_bytes[name], traced.class_bytes[name])
  unpadded = compiled.memory.argument_bytes - compiled.argument_padding_bytes
  yield _byte_check("arguments", sum(classes.values()), unpadded, sum(traced.class_bytes.values()))
  updated = predicted.parameters + predicted.optimizer if d.train else classes.get("cache", 0)
  in_place = compiled.memory.alias_bytes - compiled.alias_padding_bytes
  yield _byte_check("updated in place", updated, in_place, traced.donated_bytes)
  if d.job.kind == "prefill":
    made = traced.output_class_bytes["cache"]
    yield _byte_check("cache", predicted.cache, compiled.output_class_bytes["cache"], made)


def _byte_check(name: str, expected: float, found: float, program: float) -> Check:
  return Check(name=name, axis="", unit="bytes", predicted=expected, program=program, compiled=found, tolerance=EXACT)


def _flops(d: Deployment, kernel: str, compiled: CompiledStep) -> Iterable[Check]:
  """Parts by the partitioned program, where operations still bear their scope; the total by the optimised module."""
  executed, traced = dataclasses.asdict(executed_flops(d, kernel=kernel)), compiled.traced
  for part, found in compiled.flops_by_part.items():
    yield _flop_check(f"{part} matmuls", executed.get(part, 0.0), found, traced.flops_by_part[part])
  total = executed_flops(d, kernel=kernel).total
  yield _flop_check("all matmuls", total, compiled.flops, traced.flops)
  most = executed_flops(d, heaviest_routing=True, kernel=kernel).total
  if most != total:
    yield _flop_check("all matmuls, heaviest routing", most, compiled.flops_at_most, traced.flops_at_most)


def _flop_check(name: str, expected: float, found: float, program: float) -> Check:
  return Check(
    name=name, axis="", unit="FLOPs", predicted=expected, program=program, compiled=found, tolerance=ONE_PERCENT
  )


def _traffic(d: Deployment, compiled: CompiledStep) -> Iterable[Check]:
  """Payload of every kind over every group of axes, in either list."""
  expected = _payload((c.kind, c.axes, c.total_bytes) for c in predicted_collectives.collectives(d))
  found, program = (
    _payload((c.kind, c.axes, c.payload_bytes * c.count) for c in listed)
    for listed in (compiled.partitioned, compiled.traced.collectives)
  )
  for kind, axes in sorted(expected.keys() | found.keys() | program.keys(), key=lambda key: (key[1], key[0])):
    yield Check(
      name=kind,
      axis=label(axes) or "?",
      unit="bytes",
      predicted=expected.get((kind, axes), 0.0),
      program=program.get((kind, axes), 0.0),
      compiled=found.get((kind, axes), 0.0),
      tolerance=ONE_PERCENT,
    )


def _least_traffic(d: Deployment, compiled: CompiledStep) -> Check:
  """Weights, cache and optimizer state that no program can leave where they are."""
  name, least = "memory traffic, at least", least_bytes(d)
  moved = compiled.traffic_bytes
  return Check(name=name, axis="", unit="bytes", predicted=least, compiled=moved, tolerance=EXACT, at_least=True)


def _least_temporaries(d: Deployment, compiled: CompiledStep) -> Check:
  """What has to exist at one moment; a TPU may hold it in the memory on its chip."""
  made = compiled.memory.held_bytes - compiled.memory.argument_bytes + compiled.memory.temp_bytes
  made += compiled.temporaries.on_chip_bytes if compiled.temporaries else 0
  name, least = "temporaries and new results, at least", least_temporary_bytes(d)
  return Check(name=name, axis="", unit="bytes", predicted=least, compiled=made, tolerance=EXACT, at_least=True)


def _informational(d: Deployment, kernel: str, compiled: CompiledStep) -> Iterable[Informational]:
  predicted, found = executed_bytes(d, kernel=kernel), compiled.traffic_by_part
  fuses = "the formula takes attention as fused; the compiler fuses as it likes"
  unnamed = f"{fuses}, and what lost its name is under other"
  yield _shown("memory traffic", "bytes", predicted.total, compiled.traffic_bytes, fuses)
  yield _shown("attention memory traffic", "bytes", predicted.attention, found["attention"], unnamed)
  yield _shown("experts memory traffic", "bytes", predicted.experts, found["experts"] + found["router"], unnamed)
  yield _shown("head memory traffic", "bytes", predicted.head, found["head"], unnamed)
  if d.train:
    yield _shown("optimizer memory traffic", "bytes", predicted.optimizer, found["optimizer"], unnamed)
  yield _shown("other memory traffic", "bytes", None, found["other"], "embedding, loss, copies, and what lost its name")
  read = compiled.class_read_bytes["parameters"]
  yield _shown("weights read", "bytes", None, read, "no formula; once if kept on the chip, or in every tick and pass")
  yield _shown(
    "elementwise", "FLOPs", None, compiled.elementwise_flops, "no formula; one an element, whatever the dtype"
  )
  yield _shown("transcendentals", "calls", None, compiled.transcendentals, "no formula; one an element")


def _shown(name: str, unit: str, predicted: float | None, compiled: float, reason: str) -> Informational:
  return Informational(name=name, axis="", unit=unit, predicted=predicted, compiled=compiled, reason=reason)


def _payload(rows: Iterable[tuple[str, tuple[str, ...], float]]) -> dict[tuple[str, tuple[str, ...]], float]:
  totals: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
  for kind, axes, payload_bytes in rows:
    totals[kind, axes] += payload_bytes
  return dict(totals)
