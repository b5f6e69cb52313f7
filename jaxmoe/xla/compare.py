"""What the plan predicted beside what the compiler made, row by row, with the tolerance that judges each row."""

import collections
import dataclasses
from collections.abc import Iterable

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost import collectives as predicted_collectives
from jaxmoe.cost.flops import executed_flops, useful_flops
from jaxmoe.cost.memory import memory
from jaxmoe.meshes.axes import label
from jaxmoe.xla.compiled_step import CompiledStep
from jaxmoe.xla.fit import Fit, fit
from jaxmoe.xla.rewrites import Rewrite, explain
from jaxmoe.xla.target import expert_kernel

# Why each tolerance: bytes of arguments are arithmetic on shapes; matmuls and collectives may be reshaped or merged by
# the partitioner, which 1 % allows for.
EXACT = 0.0
ONE_PERCENT = 0.01


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
  """One row. `predicted` is a formula's number, `compiled` the compiler's; bytes or FLOPs of one device in one step."""

  name: str
  axis: str
  unit: str
  predicted: float
  compiled: float
  tolerance: float

  @property
  def relative_error(self) -> float | None:
    """(compiled - predicted) / predicted; None if something was found where nothing was predicted."""
    if self.predicted == self.compiled:
      return 0.0
    return (self.compiled - self.predicted) / self.predicted if self.predicted else None

  @property
  def ok(self) -> bool:
    return self.relative_error is not None and abs(self.relative_error) <= self.tolerance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """All rows of one deployment on one target.

  Attributes:
    rewrites: how each (kind, axes) of the optimised module follows from the partitioned program.
    useful_flops: of the model, on one device, without bubble, padding and recomputation.
  """

  deployment: Deployment
  target: str
  compiled: CompiledStep
  checks: list[Check]
  rewrites: list[Rewrite]
  fit: Fit
  useful_flops: float

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
  kernel = expert_kernel(deployment, compiled.platform)
  checks = [*_bytes(deployment, compiled), *_flops(deployment, kernel, compiled), *_traffic(deployment, compiled)]
  return Comparison(
    deployment=deployment,
    target=target,
    compiled=compiled,
    checks=checks,
    rewrites=explain(compiled.partitioned, compiled.optimised),
    fit=fit(deployment.cluster, compiled),
    useful_flops=useful_flops(deployment).total,
  )


def _bytes(d: Deployment, compiled: CompiledStep) -> Iterable[Check]:
  """Each class of arguments, their sum as the compiler allocates it, and what is updated in place."""
  predicted, train = memory(d), d.job.kind == "train"
  classes = {"parameters": predicted.parameters, "inputs": predicted.inputs}
  if train:
    classes["optimizer"] = predicted.optimizer
  if d.job.kind == "decode":
    classes["cache"] = predicted.cache
  for name, expected in classes.items():
    yield _byte_check(name, expected, compiled.class_bytes[name])
  unpadded = compiled.memory.argument_bytes - compiled.argument_padding_bytes
  yield _byte_check("arguments", sum(classes.values()), unpadded)
  updated = predicted.parameters + predicted.optimizer if train else classes.get("cache", 0)
  yield _byte_check("updated in place", updated, compiled.memory.alias_bytes - compiled.alias_padding_bytes)
  if d.job.kind == "prefill":
    yield _byte_check("cache", predicted.cache, compiled.output_class_bytes["cache"])


def _byte_check(name: str, expected: float, found: float) -> Check:
  return Check(name=name, axis="", unit="bytes", predicted=expected, compiled=found, tolerance=EXACT)


def _flops(d: Deployment, kernel: str, compiled: CompiledStep) -> Iterable[Check]:
  """Parts by the partitioned program, where operations still bear their scope; the total by the optimised module."""
  executed = dataclasses.asdict(executed_flops(d, kernel=kernel))
  for part, found in compiled.flops_by_part.items():
    yield _flop_check(f"{part} matmuls", executed.get(part, 0.0), found)
  total = executed_flops(d, kernel=kernel).total
  yield _flop_check("all matmuls", total, compiled.flops)
  most = executed_flops(d, heaviest_routing=True, kernel=kernel).total
  if most != total:
    yield _flop_check("all matmuls, heaviest routing", most, compiled.flops_at_most)


def _flop_check(name: str, expected: float, found: float) -> Check:
  return Check(name=name, axis="", unit="FLOPs", predicted=expected, compiled=found, tolerance=ONE_PERCENT)


def _traffic(d: Deployment, compiled: CompiledStep) -> Iterable[Check]:
  """Payload of every kind over every group of axes, in either list."""
  expected = _payload((c.kind, c.axes, c.total_bytes) for c in predicted_collectives.collectives(d))
  found = _payload((c.kind, c.axes, c.payload_bytes * c.count) for c in compiled.partitioned)
  for kind, axes in sorted(expected.keys() | found.keys(), key=lambda key: (key[1], key[0])):
    yield Check(
      name=kind,
      axis=label(axes) or "?",
      unit="bytes",
      predicted=expected.get((kind, axes), 0.0),
      compiled=found.get((kind, axes), 0.0),
      tolerance=ONE_PERCENT,
    )


def _payload(rows: Iterable[tuple[str, tuple[str, ...], float]]) -> dict[tuple[str, tuple[str, ...]], float]:
  totals: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
  for kind, axes, payload_bytes in rows:
    totals[kind, axes] += payload_bytes
  return dict(totals)
