"""An estimate as tables and as one JSON document."""

import dataclasses
from typing import Any

from jaxmoe.cost.estimate import SOURCE, Estimate, collectives_by_axis, estimate
from jaxmoe.cost.load import load_of
from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.table import Table

# What one step's time is to its user.
LATENCY = {"train": "step time", "prefill": "latency (to the first token)", "decode": "latency (of one token)"}


def verdict(e: Estimate) -> str:
  """Whether it fits, and what bounds it."""
  used, room = e.memory.total, e.deployment.cluster.memory_bytes
  fits = f"fits: {units.bytes_(used)} of {units.bytes_(room)} a device"
  if not e.fits:
    fits = f"does not fit: {units.bytes_(used - room)} more than the {units.bytes_(room)} of a device"
  speed = (
    f"{units.seconds(e.time.total_s)} a step, {units.rate(e.tokens_per_s, 'tokens/s')}, bound by {e.time.bottleneck}"
  )
  return f"{e.deployment.name}: {fits}; {speed} ({SOURCE})"


def tables(e: Estimate) -> list[Table]:
  return [_summary(e), memory_table(e), time_table(e), _flops(e), _traffic(e)]


def document(e: Estimate) -> dict[str, Any]:
  """Bytes, seconds and FLOPs; every number is a formula's."""
  return {
    "deployment": e.deployment.name,
    "source": SOURCE,
    "devices": e.deployment.strategy.devices,
    "product": e.deployment.strategy.product,
    "fits": e.fits,
    "parameters": e.parameters,
    "memory_bytes": {**dataclasses.asdict(e.memory), "total": e.memory.total},
    "activation_bytes_by_remat": e.activation_bytes_by_remat,
    "cache_bytes_per_token": e.cache_bytes_per_token,
    "flops": {
      "executed": {**dataclasses.asdict(e.executed), "total": e.executed.total},
      "useful": {**dataclasses.asdict(e.useful), "total": e.useful.total},
      "per_token_forward": e.flops_per_token_forward,
      "per_token_backward": e.flops_per_token_backward,
    },
    "collectives": [{**row, "axis": label(row["axes"])} for row in collectives_by_axis(e)],
    "bubble": e.bubble,
    "time_s": {**e.time.terms(), "total": e.time.total_s},
    "latency_s": e.time.total_s,
    "bottleneck": e.time.bottleneck,
    "tokens_per_s": e.tokens_per_s,
    "mfu": e.mfu,
    "assumptions": dict(e.deployment.cluster.assumptions),
    "taken_for_granted": dataclasses.asdict(e.deployment.assumptions),
  }


def _summary(e: Estimate) -> Table:
  d, time = e.deployment, e.time
  microbatches = f"{d.job.microbatches} microbatch{'es' * (d.job.microbatches > 1)}"
  job = f"{d.job.kind}, {d.job.batch} sequences of {d.job.sequence_length}, {microbatches}"
  rows = [
    ("parameters", f"{e.parameters['total']:,} total, {e.parameters['active']:,} active"),
    ("by class", ", ".join(f"{e.parameters[c]:,} {c}" for c in ("expert", "sharded", "replicated"))),
    ("FLOPs a token", f"{units.flops(e.flops_per_token_forward)} forward, {_backward(e)}"),
    ("pipeline bubble", units.percent(e.bubble)),
    *_cache(e),
    ("local time", f"{units.seconds(time.local_s)}, the longer of matmuls and memory traffic of each part"),
    ("network time", f"{units.seconds(time.network_s)} ({_hidden(e)})"),
    ("idle time", units.seconds(time.bubble)),
    *_load(e),
    (LATENCY[d.job.kind], units.seconds(time.total_s)),
    ("throughput", units.rate(e.tokens_per_s, "tokens/s")),
    ("MFU", units.percent(e.mfu)),
  ]
  given = [("devices", d.strategy.product, "document"), ("job", job, "document")]
  return Table("Summary", ["what", "value", "source"], [*given, *((*row, SOURCE) for row in rows)])


def _load(e: Estimate) -> list[tuple[str, str]]:
  return [("load of the busiest experts", sentence)] if (sentence := uneven_load(e)) else []


def uneven_load(e: Estimate) -> str:
  """What the rows of the busiest device cost beyond the mean, in time and in memory; empty where they are even."""
  d = e.deployment
  load = load_of(d, d.assumptions)
  if load == 1:
    return ""
  even = estimate(d, dataclasses.replace(d.assumptions, load=1.0, popularity=None))
  longer = units.seconds(e.time.total_s - even.time.total_s)
  more = units.bytes_(e.memory.total - even.memory.total)
  return f"{load:.3g} times the mean rows of a device, which costs {longer} of the step and {more} of its memory"


def _hidden(e: Estimate) -> str:
  x = e.deployment.assumptions
  hidden = {"the experts' exchange": x.dispatch_overlap, "the gradients' sum": x.gradient_overlap}
  shares = [f"up to {units.percent(share)} of {what} is hidden" for what, share in hidden.items() if share]
  return ", ".join(shares) or "nothing overlapped"


def _cache(e: Estimate) -> list[tuple[str, str]]:
  """Training keeps none."""
  return [] if e.deployment.job.kind == "train" else [("cache a token", units.bytes_(e.cache_bytes_per_token))]


def _backward(e: Estimate) -> str:
  if e.deployment.job.kind != "train":
    return "no backward"
  return f"{units.flops(e.flops_per_token_backward)} backward"


def memory_table(e: Estimate) -> Table:
  room = e.deployment.cluster.memory_bytes
  rows = [(name, units.bytes_(size), units.percent(size / room), SOURCE) for name, size in _classes(e).items()]
  for remat, size in e.activation_bytes_by_remat.items():
    if e.deployment.job.kind == "train" and remat != e.deployment.job.remat:
      rows.append((f"(activations with remat {remat})", units.bytes_(size), units.percent(size / room), SOURCE))
  return Table("Memory of one device", ["class", "size", "of capacity", "source"], rows)


def _classes(e: Estimate) -> dict[str, int]:
  free = e.deployment.cluster.memory_bytes - e.memory.total
  return {**dataclasses.asdict(e.memory), "total": e.memory.total, "free": free}


def time_table(e: Estimate) -> Table:
  total = e.time.total_s
  terms = [(name.replace("_", " "), s) for name, s in e.time.terms().items() if s]
  rows = [(name, units.seconds(s), units.percent(s / total), SOURCE) for name, s in [*terms, ("total", total)]]
  return Table("Time of one step", ["term", "time", "of step", "source"], rows)


def _flops(e: Estimate) -> Table:
  executed, useful = dataclasses.asdict(e.executed), dataclasses.asdict(e.useful)
  rows = [(part, units.flops(executed[part]), units.flops(useful[part]), SOURCE) for part in executed]
  rows.append(("total", units.flops(e.executed.total), units.flops(e.useful.total), SOURCE))
  return Table("Matmul FLOPs of one device and step", ["part", "executed", "useful", "source"], rows)


def _traffic(e: Estimate) -> Table:
  rows = [
    (label(row["axes"]), row["kind"], f"{row['count']}", units.bytes_(row["bytes"]), units.seconds(row["s"]), SOURCE)
    for row in collectives_by_axis(e)
  ]
  headers = ["axis", "collective", "count", "payload", "time", "source"]
  return Table("Collectives of one device and step", headers, rows)
