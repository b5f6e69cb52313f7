"""Why an axis has its size: the best plan with every other size, anything else free."""

import dataclasses

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.planner.answer import Answer
from jaxmoe.planner.candidate import Candidate
from jaxmoe.planner.pareto import Explored
from jaxmoe.planner.rows import divisors
from jaxmoe.report import units
from jaxmoe.report.table import Table


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
  """A sentence on the size that was chosen, and the best plan of each size."""

  sentence: str
  table: Table


def decisions(a: Answer, explored: Explored) -> dict[str, Decision]:
  """Of every axis by its name."""
  return {axis: _decision(a, explored, axis) for axis in (*AXES, CONTEXT)}


def _decision(a: Answer, explored: Explored, axis: str) -> Decision:
  best, size = a.best, a.best.deployment.strategy.size(axis)
  found = {n: explored.by_size.get((axis, n)) for n in _sizes(a, axis)}
  estimates = {n: explored.estimate(c) for n, c in found.items() if c is not None}
  estimates[size] = best
  rows = [_row(a, n, c, estimates.get(n), n == size) for n, c in found.items()]
  headers = [axis, "best plan", "step", "a device", "memory", "against the best", "mostly", "source"]
  neighbours = [_neighbour(a, axis, n, found[n], estimates.get(n)) for n in _next_to(size, list(found))]
  sentence = "; ".join([f"{axis} = {size}: {_meaning(best, axis)}", *neighbours]) + "."
  return Decision(sentence, Table(f"Sizes of {axis}", headers, rows))


def _sizes(a: Answer, axis: str) -> list[int]:
  """All that the search may have tried."""
  m, space = a.question.model, a.question.space
  most = {STAGE: m.num_layers, EXPERT: m.num_experts, TENSOR: m.num_heads, CONTEXT: space.largest_context}
  devices = a.best.deployment.strategy.devices
  sizes = [n for n in divisors(devices) if n <= most.get(axis, devices)]
  return [n for n in sizes if n & (n - 1) == 0] if axis == CONTEXT else sizes


def _next_to(size: int, sizes: list[int]) -> list[int]:
  at = sizes.index(size)
  return sizes[max(0, at - 1) : at] + sizes[at + 1 : at + 2]


def _row(a: Answer, size: int, c: Candidate | None, e: Estimate | None, chosen: bool) -> list[str]:
  if e is None:
    return [f"{size}", "none keeps every limit", *["-"] * 5, SOURCE]
  rate = units.rate(e.tokens_per_s / e.deployment.strategy.devices, "tokens/s")
  cells = [e.deployment.name, units.seconds(e.time.total_s), rate, units.bytes_(e.memory.total)]
  against = ["chosen", "-"] if chosen else [_against(a, e), _mostly(a, e)]
  return [f"{size}", *cells, *against, SOURCE]


def _against(a: Answer, e: Estimate) -> str:
  """By the objective, in percent of the best plan's."""
  return _percent(_weight(a, e) * e.time.total_s / _whole(a) - 1)


def _percent(share: float) -> str:
  return f"{100 * share:+,.0f} %" if abs(share) >= 1 else f"{100 * share:+.3g} %"


def _whole(a: Answer) -> float:
  return _weight(a, a.best) * a.best.time.total_s


def _weight(a: Answer, e: Estimate) -> float:
  """What makes seconds of a plan comparable: nothing, or devices over tokens where the objective asks for a rate."""
  if a.question.objective in ("latency", "devices"):  # of equally few devices, the faster
    return 1.0
  return e.deployment.strategy.devices / (e.deployment.job.batch * e.deployment.job.query_length)


def _mostly(a: Answer, e: Estimate) -> str:
  """The term that sets it back most, as its part of the percentage."""
  ours, terms = a.best.time.terms(), e.time.terms()
  more = {name: _weight(a, e) * s - _weight(a, a.best) * ours.get(name, 0.0) for name, s in terms.items()}
  worst = max(more, key=lambda name: more[name])
  return f"{worst.replace('_', ' ')} {_percent(more[worst] / _whole(a))}" if more[worst] > 0 else "-"


def _neighbour(a: Answer, axis: str, size: int, c: Candidate | None, e: Estimate | None) -> str:
  if c is None or e is None:
    return f"with {axis} = {size} no plan keeps every limit"
  mostly = _mostly(a, e)
  return f"with {size} the best plan, {e.deployment.name}, costs {_against(a, e)}" + f" ({mostly})" * (mostly != "-")


def _meaning(e: Estimate, axis: str) -> str:
  """What the size makes of the model."""
  d, m, s, rules = e.deployment, e.deployment.model, e.deployment.strategy, e.deployment.rules
  heads, width = m.num_heads // rules.shards("attention", "H"), m.d_expert // rules.shards("expert", "F")
  sliced = f", the residual stream sliced over tensor = {s.tensor}" if s.sequence_parallel and s.tensor > 1 else ""
  length = d.job.query_length
  return {
    EXPERT: f"a device holds {m.num_experts // rules.shards('expert', 'E')} of a layer's {m.num_experts} experts",
    STAGE: f"a stage holds at most {d.layers_per_stage} of {m.num_layers} layers; microbatches: {d.job.microbatches}",
    TENSOR: f"a device holds {heads} of {m.num_heads} query heads, and its experts {width} of {m.d_expert} wide",
    CONTEXT: f"a device holds {length // s.context} of the {length} tokens that a step computes of a sequence{sliced}",
    DATA: f"a device works on {d.sequences_per_device} of {d.job.batch} sequences, zero {d.job.zero}",
  }[axis]
