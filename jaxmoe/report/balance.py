"""How evenly a plan loads devices: by module of the model, and by pipeline stage."""

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.cost.flops import balanced_rows
from jaxmoe.cost.layer import attention_operations, dense_operations, expert_operations
from jaxmoe.cost.parameters import layer_tensors, parameter_tensors
from jaxmoe.cost.stage import stage_layers
from jaxmoe.meshes.axes import STAGE
from jaxmoe.planner.plan_checks import stage_layers_held
from jaxmoe.report import units
from jaxmoe.report.placement import placements, span
from jaxmoe.report.table import Table

MODULES = {
  "projections": "attention", "scores": "attention", "router": "router", "experts": "experts", "shared": "experts",
  "dense": "experts", "head": "head", "elementwise": "norms and residual stream", "exchange": "network",
  "layer_network": "network", "step_network": "network", "gradients": "network",
}  # fmt: skip
ROLES = {
  "attention": "attention", "expert": "experts", "dense": "experts", "router": "router", "vocabulary": "head",
  "norm": "norms and residual stream", "head norm": "norms and residual stream",
}  # fmt: skip


def modules_table(e: Estimate) -> Table:
  """FLOPs, stored weights and time of every module on the busiest device; times add up to the step."""
  flops = {part: getattr(e.executed, part) for part in ("attention", "router", "experts", "head")}
  weights, times = weight_bytes_by_module(e.deployment), _times(e)
  names = sorted({*flops, *weights, *times}, key=lambda name: -times.get(name, 0.0))
  rows = [
    (
      name,
      *_with_share(flops, name, units.flops),
      *_with_share(weights, name, units.bytes_),
      *_with_share(times, name, units.seconds),
      SOURCE,
    )
    for name in names
  ]
  headers = ["module", "FLOPs", "share", "weights", "share", "time", "share", "source"]
  return Table("Modules on one device", headers, rows)


def _with_share(numbers: dict[str, float], name: str, shown) -> tuple[str, str]:
  if not numbers.get(name):
    return "-", "-"
  return shown(numbers[name]), units.percent(numbers[name] / sum(numbers.values()))


def _times(e: Estimate) -> dict[str, float]:
  found: dict[str, float] = {}
  for term, s in e.time.terms().items():
    module = MODULES.get(term, term)
    if s:
      found[module] = found.get(module, 0.0) + s
  return found


def weight_bytes_by_module(d: Deployment) -> dict[str, float]:
  """Of the stage that has most layers, before zero 3 splits them."""
  found: dict[str, float] = {}
  for tensor in parameter_tensors(d.model):
    copies = 1 if tensor.stack == "none" else d.copies
    count = tensor.layer_count(d.rules) * stage_layers(d)[0].of(tensor.stack) * copies
    module = ROLES[tensor.role]
    found[module] = found.get(module, 0.0) + count * ITEM_BYTES[tensor.dtype(d.job.precision)]
  return found


def stages_table(d: Deployment) -> Table:
  """Layers, parameters and FLOPs of one device of every stage."""
  held = stage_layers_held(d, placements(d))
  flops = [stage_flops(d, layers) / d.copies for layers in held]  # a microbatch passes one of the copies
  rows = [
    (
      f"{stage}",
      span(layers),
      f"{len(layers)}",
      f"{len(dense_of(d, layers))}",
      f"{_parameters(d, layers):,}",
      units.flops(work),
      units.percent(work / max(flops)),
      SOURCE,
    )
    for stage, (layers, work) in enumerate(zip(held, flops, strict=True))
  ]
  headers = [STAGE, "layers", "count", "without experts", "parameters", "forward FLOPs", "of the busiest", "source"]
  return Table("Stages: one device, one microbatch", headers, rows)


def imbalance(d: Deployment) -> float:
  """Busiest stage's layers' FLOPs over the mean."""
  flops = [stage_flops(d, layers) for layers in stage_layers_held(d, placements(d))]
  return max(flops) * len(flops) / sum(flops)


def dense_of(d: Deployment, layers: tuple[int, ...]) -> list[int]:
  return [] if d.model.dense is None else [layer for layer in layers if layer in d.model.dense.layers]


def stage_flops(d: Deployment, layers: tuple[int, ...]) -> float:
  """Forward matmuls of these layers for one microbatch on one device."""
  dense = len(dense_of(d, layers))
  kinds = (
    (len(layers), attention_operations(d)),
    (len(layers) - dense, expert_operations(d, balanced_rows(d))),
    (dense, dense_operations(d)),
  )
  return float(sum(count * op.flops for count, operations in kinds for op in operations))


def _parameters(d: Deployment, layers: tuple[int, ...]) -> int:
  inside = sum(tensor.layer_count(d.rules) for layer in layers for tensor in layer_tensors(d.model, layer))
  return inside + sum(t.layer_count(d.rules) for t in parameter_tensors(d.model) if t.stack == "none")
