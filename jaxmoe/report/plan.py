"""A planner's answer as tables and as one JSON document."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxmoe.cost.estimate import SOURCE, Estimate, collectives_by_axis
from jaxmoe.meshes.axes import label
from jaxmoe.planner.answer import Answer, first_tokens
from jaxmoe.planner.question import OBJECTIVES, Question
from jaxmoe.report import estimate as one_plan
from jaxmoe.report import shortage, units
from jaxmoe.report.shortage import product
from jaxmoe.report.table import Table


def verdict(a: Answer) -> str:
  """The best plan in one sentence, or what is short."""
  q = a.question
  searched = f"{a.considered:,} plans, {a.priced:,} legal, {a.fitting:,} keep every limit"
  if a.shortage is not None:
    short = shortage.sentence(q, a.shortage)
    return f"no plan: {q.model.name} on {units.devices(q.devices)} of {q.cluster.name}: {short} ({searched})"
  best, d = a.best, a.best.deployment
  rate = units.rate(best.tokens_per_s, "tokens/s")
  return (
    f"{d.name}: {d.strategy.product}; {units.seconds(best.time.total_s)} a step, {rate}, MFU {units.percent(best.mfu)},"
    f" {units.bytes_(best.memory.total)} of {units.bytes_(q.cluster.memory_bytes)} a device; {OBJECTIVES[q.objective]}"
    f" of {searched} ({SOURCE})"
  )


def warnings(q: Question) -> Iterator[str]:
  """What is legal and yet unlikely to be meant, one sentence each."""
  limit, length = q.model.max_sequence_length, q.job.sequence_length
  if limit is not None and length > limit:
    yield f"sequence length {length} exceeds the {limit} tokens that {q.model.name} was trained for"
  busiest = "uneven loads" if q.assumptions.popularity else f"{q.assumptions.load:g}"
  room = q.job.capacity_factor
  if "capacity" in q.space.transports and (q.assumptions.popularity or q.assumptions.load > room):
    yield (
      f"transport capacity has room for {room:g} times an expert's mean load, and experts get up to {busiest}: the"
      " tokens that they drop count as served; raise --capacity-factor, or name another --transport"
    )


def tables(a: Answer) -> list[Table]:
  found = [_rejected(a)]
  if a.shortage is not None:
    return [*shortage.tables(a.shortage), *found]
  found = [_plans(a), _choices(a), _bytes(a), *found]
  if a.question.job.kind == "prefill":
    found.insert(1, first_tokens_table(a))
  return found


def _plans(a: Answer) -> Table:
  """Every plan with its devices written out."""
  decode = a.question.job.kind == "decode"
  rows = [
    (
      f"{rank}",
      e.deployment.name,
      product(e),
      units.bytes_(e.memory.total),
      units.bytes_(a.question.cluster.memory_bytes - e.memory.total),
      units.percent(e.bubble),
      units.seconds(e.time.total_s),
      units.rate(e.tokens_per_s / e.deployment.strategy.devices, "tokens/s"),
      *([units.rate(1 / e.time.total_s, "tokens/s")] if decode else []),
      units.percent(e.mfu),
      e.time.bottleneck.replace("_", " "),
      SOURCE,
    )
    for rank, e in enumerate(a.plans, 1)
  ]
  headers = ["", "plan", "data x stage x expert x tensor", "memory", "free", "bubble", "step", "a device"]
  users = ["a user"] if decode else []
  return Table("Plans", [*headers, *users, "MFU", "bottleneck", "source"], rows)


def _choices(a: Answer) -> Table:
  """What the name of a plan does not say."""
  rows = [(f"{rank}", *choices(e).values()) for rank, e in enumerate(a.plans, 1)]
  return Table("Choices", ["", *choices(a.best)], rows)


def choices(e: Estimate) -> dict[str, str]:
  """How a plan folds, orders and schedules, by name."""
  d, job, s = e.deployment, e.deployment.job, e.deployment.strategy
  chunks = f" of {job.chunks} chunks" if job.chunks > 1 else ""
  return {
    "schedule": f"{job.schedule}{chunks}" if s.stage > 1 and job.kind == "train" else "-",
    "batch": f"{job.batch}",
    "microbatches": f"{job.microbatches} of {d.microbatch_sequences}",
    "recomputed": job.remat,
    "zero": f"{job.zero}",
    "context": f"{s.context}",
    "sequences sliced over": label(s.sequence_axes) if s.sequence_parallel else "-",
    "tokens to experts": job.transport,
    "heads over": label(s.heads_over),
    "experts over": label(s.experts_over),
    "axes, outermost first": " ".join(axis for axis in s.order if s.size(axis) > 1) or "-",
  }


def _bytes(a: Answer) -> Table:
  """Payload of one device and step over each group of axes."""
  traffic = [_bytes_by_axis(e) for e in a.plans]
  axes = sorted({axis for row in traffic for axis in row}, key=lambda axis: -traffic[0].get(axis, 0))
  rows = [
    (f"{rank}", *(units.bytes_(row[axis]) if axis in row else "-" for axis in axes), SOURCE)
    for rank, row in enumerate(traffic, 1)
  ]
  return Table("Bytes of one device and step, by axis", ["", *axes, "source"], rows)


def _bytes_by_axis(e: Estimate) -> dict[str, float]:
  found: dict[str, float] = {}
  for row in collectives_by_axis(e):
    found[label(row["axes"])] = found.get(label(row["axes"]), 0) + row["bytes"]
  return found


def first_tokens_table(a: Answer) -> Table:
  """By length of the prompts, all of one batch; what does not fit is named, for it would never end."""
  rows = [
    (
      f"{length:,}",
      units.seconds(e.time.total_s) if _fits(a, e) else "does not fit",
      units.bytes_(e.memory.total),
      units.bytes_(e.cache_bytes_per_token * length),
      SOURCE,
    )
    for length, e in first_tokens(a.best, a.question).items()
  ]
  d = a.best.deployment
  title = f"Time to first token of {d.name}, {d.job.batch} prompts at once"
  return Table(title, ["prompt", "time", "memory", "cache of a prompt", "source"], rows)


def _fits(a: Answer, e: Estimate) -> bool:
  return e.memory.total + a.question.constraints.reserve_bytes <= e.deployment.cluster.memory_bytes


def _rejected(a: Answer) -> Table:
  rows = [(f"{count:,}", reason) for reason, count in a.rejected.most_common() if count]
  return Table("Plans left out", ["plans", "reason"], rows)


def document(a: Answer) -> dict[str, Any]:
  """Bytes, seconds and FLOPs; every number of a plan is a formula's."""
  q, short = a.question, a.shortage
  return {
    "verdict": verdict(a),
    "source": SOURCE,
    "warnings": list(warnings(q)),
    "model": q.model.name,
    "cluster": q.cluster.name,
    "devices": q.devices,
    "job": {"kind": q.job.kind, "sequence_length": q.job.sequence_length},
    "objective": q.objective,
    "constraints": dataclasses.asdict(q.constraints),
    "assumptions": {**dataclasses.asdict(q.assumptions), "cluster": dict(q.cluster.assumptions)},
    "plans_considered": a.considered,
    "plans_priced": a.priced,
    "plans_fitting": a.fitting,
    "rejected": [{"reason": reason, "plans": count} for reason, count in a.rejected.most_common() if count],
    "plans": [_plan_document(e) for e in a.plans],
    "shortage": None if short is None else shortage.sentence(q, short),
    "closest": _optional(short.closest if short else None),
    "nearest_fitting": _optional(short.fitting if short else None),
    "nearest_fitting_most_devices": short.most_devices if short else None,
    **_lengths(a),
  }


def _lengths(a: Answer) -> dict[str, dict[str, Any] | None]:
  """Seconds and bytes of a device by length of the prompts; no seconds of what does not fit."""
  if a.question.job.kind != "prefill" or not a.plans:
    return {"time_to_first_token_s": None, "time_to_first_token_memory_bytes": None}
  found = {str(length): e for length, e in first_tokens(a.best, a.question).items()}
  return {
    "time_to_first_token_s": {length: e.time.total_s if _fits(a, e) else None for length, e in found.items()},
    "time_to_first_token_memory_bytes": {length: float(e.memory.total) for length, e in found.items()},
  }


def _optional(e: Estimate | None) -> dict[str, Any] | None:
  return None if e is None else _plan_document(e)


def _plan_document(e: Estimate) -> dict[str, Any]:
  d, per_user = e.deployment, {"tokens_per_s_per_user": 1 / e.time.total_s}
  rates = {"tokens_per_s_per_device": e.tokens_per_s / d.strategy.devices}
  return {**one_plan.document(e), **rates, **(per_user if d.job.kind == "decode" else {}), "choices": choices(e)}
