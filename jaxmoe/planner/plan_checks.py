"""What must hold of a plan, counted anew from its sizes and its placement; each check with its numbers."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import Estimate
from jaxmoe.cost.parameters import ParameterTensor, layer_tensors, parameter_tensors, total_parameters
from jaxmoe.cost.passes import peak_flops_per_s
from jaxmoe.cost.traffic import least_bytes
from jaxmoe.meshes.axes import AXES, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.placement import Placements, place, rank_of
from jaxmoe.planner.question import Question


@dataclasses.dataclass(frozen=True, slots=True)
class PlanCheck:
  """One condition: its name, what it asks in words, whether it holds, and the numbers that decide it."""

  name: str
  what: str
  ok: bool
  numbers: dict[str, Any]


def plan_checks(e: Estimate, question: Question) -> list[PlanCheck]:
  """All of them, those of the search's limits included."""
  d = e.deployment
  found = (
    _devices(d, question),
    _placement(d),
    _divisions(d),
    _job(d),
    _parameters(e),
    _memory(e, question),
    _bounds(e),
    _limits(e, question),
  )
  return list(itertools.chain(*found))  # fmt: skip


def _devices(d: Deployment, question: Question) -> Iterator[PlanCheck]:
  sizes = {axis: d.strategy.size(axis) for axis in AXES}
  product = math.prod(sizes.values())
  exact = question.objective in ("latency", "throughput")
  yield PlanCheck(
    "device_product",
    "the axes' product is the number of devices asked for" if exact else "the axes' product is at most the devices",
    product == question.devices if exact else product <= question.devices,
    {**sizes, "product": product, "devices": question.devices},
  )
  yield PlanCheck(
    "cluster_devices",
    "the cluster has as many devices",
    product <= d.cluster.devices,
    {"product": product, "cluster_devices": d.cluster.devices},
  )


def _placement(d: Deployment) -> Iterator[PlanCheck]:
  """Counted over the ranks of one replica."""
  m, s = d.model, d.strategy
  ranks = place(s, m.num_layers, m.num_experts, devices_per_host=d.cluster.devices_per_host, chunks=d.job.chunks)
  stages = stage_layers_held(d, ranks)
  layers = Counter(itertools.chain(*stages))
  yield PlanCheck(
    "layers_sum",
    "every layer lies in exactly one stage",
    sorted(layers) == list(range(m.num_layers)) and set(layers.values()) == {1},
    {"layers_of_stages": [len(held) for held in stages], "num_layers": m.num_layers},
  )
  counts = [len(held) for held in stages]
  yield PlanCheck(
    "stages_balanced",
    "no stage has more than one layer more than another",
    max(counts) - min(counts) <= d.copies,
    {"most_layers": max(counts), "fewest_layers": min(counts), "most_over_mean": max(counts) * s.stage / sum(counts)},
  )
  held = [_at(ranks, 0, *at).experts for at in itertools.product(range(s.expert), range(s.tensor))]
  experts = Counter(itertools.chain(*held))
  copies = len(held) // s.size(*s.experts_over)
  yield PlanCheck(
    "experts_placed",
    "every expert of a layer is held, each by as many devices of a replica as share its width",
    sorted(experts) == list(range(m.num_experts)) and set(experts.values()) == {copies},
    {"num_experts": m.num_experts, "experts_per_device": len(held[0]), "devices_of_an_expert": copies},
  )


def stage_layers_held(d: Deployment, ranks: Placements) -> list[tuple[int, ...]]:
  """Layers of every stage, by its first rank."""
  return [_at(ranks, stage, 0, 0).layers for stage in range(d.strategy.stage)]


def _at(ranks: Placements, stage: int, expert: int, tensor: int):
  at = {**dict.fromkeys(AXES, 0), STAGE: stage, EXPERT: expert, TENSOR: tensor}
  return ranks[rank_of(ranks.strategy, at)]


def _divisions(d: Deployment) -> Iterator[PlanCheck]:
  m, rules = d.model, d.rules
  dense = [("dense", "I", m.dense), ("shared", "J", m.shared)]
  dimensions = [
    ("num_heads", m.num_heads, rules.shards("attention", "H")),
    ("num_kv_heads", m.num_kv_heads, rules.shards("attention", "G")),
    ("num_experts", m.num_experts, rules.shards("expert", "E")),
    ("d_expert", m.d_expert, rules.shards("expert", "F")),
    *((f"{name}_width", part.d_hidden, rules.shards("dense", letter)) for name, letter, part in dense if part),
    ("vocab_size", m.vocab_size, rules.shards("vocabulary", "V")),
  ]
  for name, size, parts in dimensions:
    yield _divides(name, size, parts)
  yield PlanCheck(
    "kv_heads_at_least_parts",
    "each part of attention has a key-value head",
    m.num_kv_heads >= dimensions[1][2],
    {"num_kv_heads": m.num_kv_heads, "parts": dimensions[1][2]},
  )
  if d.train and d.job.schedule == "gpipe":
    yield _divides("num_layers", m.num_layers, d.strategy.stage)


def _divides(name: str, size: int, parts: int) -> PlanCheck:
  numbers = {name: size, "parts": parts, "each": size / parts}
  return PlanCheck(f"{name}_divides", f"{name} divides over its devices", size % parts == 0, numbers)


def _job(d: Deployment) -> Iterator[PlanCheck]:
  job, s = d.job, d.strategy
  sequences = d.microbatch_sequences
  yield PlanCheck(
    "batch",
    "batch = parts x microbatches x sequences of a microbatch",
    job.batch == s.batch_shards * job.microbatches * sequences and sequences >= 1,
    {"batch": job.batch, "parts": s.batch_shards, "microbatches": job.microbatches, "sequences": sequences},
  )
  yield _divides("query_length", job.query_length, s.context)
  yield _divides("microbatch_tokens", d.microbatch_tokens, s.size(*s.slice_axes))
  yield PlanCheck(
    "layers_for_chunks",
    "every chunk of every stage has a layer",
    s.stage * job.chunks <= d.model.num_layers,
    {"stages": s.stage, "chunks": job.chunks, "num_layers": d.model.num_layers},
  )
  if job.chunks > 1:
    yield _divides("microbatches", job.microbatches, s.stage)


def _parameters(e: Estimate) -> Iterator[PlanCheck]:
  """Shards of all tensors added up, layer by layer of each stage."""
  d, m = e.deployment, e.deployment.model
  ranks = place(d.strategy, m.num_layers, m.num_experts, chunks=d.job.chunks)
  in_layers = sum(
    _all_shards(d, tensor)
    for layers in stage_layers_held(d, ranks)
    for layer in layers
    for tensor in layer_tensors(m, layer)
  )
  outside = sum(_all_shards(d, t) * _layers(t) for t in parameter_tensors(m) if t.stack in ("none", "prediction"))
  total = total_parameters(m)
  yield PlanCheck(
    "parameters_sum",
    "the shards of every tensor add up to the model's parameters",
    in_layers + outside == total == e.parameters["total"],
    {"in_layers": in_layers, "outside": outside, "sum": in_layers + outside, "total": total},
  )


def _all_shards(d: Deployment, tensor: ParameterTensor) -> int:
  """Parameters of one layer's tensor on all devices that hold different parts of it."""
  parts = math.prod(d.rules.shards(tensor.role, letter) for letter in tensor.letters if letter not in "LY")
  return tensor.layer_count(d.rules) * parts


def _layers(tensor: ParameterTensor) -> int:
  return math.prod(size for letter, size in zip(tensor.letters, tensor.shape, strict=True) if letter in "LY")


def _memory(e: Estimate, question: Question) -> Iterator[PlanCheck]:
  classes = {f"{name}_bytes": float(size) for name, size in dataclasses.asdict(e.memory).items()}
  used, room = float(e.memory.total), e.deployment.cluster.memory_bytes
  reserve = question.constraints.reserve_bytes
  yield PlanCheck(
    "memory_fits",
    "what a device needs and what is kept free fit its memory",
    used + reserve <= room,
    {"used_bytes": used, "reserve_bytes": reserve, "memory_bytes": room, "free_bytes": room - used},
  )
  yield PlanCheck(
    "memory_sum",
    "the classes of memory add up",
    math.isclose(sum(classes.values()), used, rel_tol=1e-12),
    {**classes, "used_bytes": used},
  )


def _bounds(e: Estimate) -> Iterator[PlanCheck]:
  """What no program can beat: the model's own FLOPs at peak, and what has to be read and written at full bandwidth."""
  d, step_s = e.deployment, e.time.total_s
  peak, bandwidth = peak_flops_per_s(d.cluster, d.job.precision.compute), d.cluster.memory_bandwidth_bytes_per_s
  if d.job.precision.matmuls is not None:
    peak = max(peak, peak_flops_per_s(d.cluster, d.job.precision.matmuls))
  yield PlanCheck(
    "step_bounded_by_compute",
    "a step takes at least its useful FLOPs at the datasheet's peak",
    step_s >= e.useful.total / peak,
    {"step_s": step_s, "bound_s": e.useful.total / peak, "useful_flops": e.useful.total, "share_of_peak": e.mfu},
  )
  moved = float(least_bytes(d))
  yield PlanCheck(
    "step_bounded_by_memory",
    "a step takes at least what it must read and write at the datasheet's bandwidth",
    step_s >= moved / bandwidth,
    {"step_s": step_s, "bound_s": moved / bandwidth, "least_bytes": moved},
  )


def _limits(e: Estimate, question: Question) -> Iterator[PlanCheck]:
  limits, step_s, rate = question.constraints, e.time.total_s, e.tokens_per_s / e.deployment.strategy.devices
  terms = e.time.terms()
  added_s = sum(terms.values())
  adds_up = math.isclose(added_s, step_s, rel_tol=1e-9)
  numbers = {**{f"{name}_s": s for name, s in terms.items()}, "terms_s": added_s, "step_s": step_s}
  yield PlanCheck("time_sum", "the terms of a step add up", adds_up, numbers)
  if limits.max_step_s is not None:
    yield PlanCheck(
      "max_step",
      "a step takes at most as long as asked",
      step_s <= limits.max_step_s * (1 + 1e-9),
      {"step_s": step_s, "max_step_s": limits.max_step_s},
    )
  if limits.min_tokens_per_s_per_device is not None:
    least = limits.min_tokens_per_s_per_device
    yield PlanCheck(
      "min_tokens",
      "a device makes at least as many tokens a second as asked",
      rate >= least * (1 - 1e-9),
      {"tokens_per_s_per_device": rate, "min_tokens_per_s_per_device": least},
    )
