"""Sections of a page that only the plan fills: what the deployment is, and the time of a step."""

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.meshes.axes import label
from jaxmoe.report import units
from jaxmoe.report.estimate import LATENCY
from jaxmoe.report.html_parts import Number, Section, Stacks, of_count, of_rate, of_seconds, of_share, stack
from jaxmoe.report.table import Table

COMPILED, DOCUMENT = "compiled", "document"


def deployment(e: Estimate) -> Section:
  """The document's side, and how it was read."""
  d = e.deployment
  tables = [_what(e), _model(e), _cluster(e)]
  if d.readings:
    rows = [(r.statement, r.reading, "assumed" if r.assumption else "read") for r in d.readings]
    tables.append(Table("How the document is read", ["statement", "reading", "kind"], rows))
  if d.cluster.assumptions:
    rows = list(d.cluster.assumptions.items())
    tables.append(Table(f"What is assumed of cluster {d.cluster.name}", ["field", "why"], rows))
  return Section("deployment", "The deployment", [d.title] if d.title else [], tables=tables)


def _what(e: Estimate) -> Table:
  d, job, s = e.deployment, e.deployment.job, e.deployment.strategy
  p = job.precision
  rows = [
    ("devices", s.product, DOCUMENT),
    ("job", f"{job.kind}: {job.batch:,} sequences of {job.sequence_length:,} tokens", DOCUMENT),
    ("microbatches", f"{job.microbatches} of {d.microbatch_sequences} sequences a device", DOCUMENT),
    ("heads over", label(s.heads_over), DOCUMENT),
    ("experts over", label(s.experts_over), DOCUMENT),
    ("tokens to experts", f"{job.transport}, capacity factor {job.capacity_factor:g}", DOCUMENT),
    ("precision", f"weights {p.weights}, compute {p.compute}, optimizer {p.optimizer}", DOCUMENT),
  ]
  if job.kind == "train":
    chunks = f" of {job.chunks} chunks" if job.chunks > 1 else ""
    rows.append(("schedule", f"{job.schedule}{chunks}, remat {job.remat}, zero {job.zero}", DOCUMENT))
  return Table("Product and job", ["what", "value", "source"], [*rows, ("document", d.document or "none", DOCUMENT)])


def _model(e: Estimate) -> Table:
  m = e.deployment.model
  sizes = {
    "layers L": m.num_layers, "width D": m.d_model, "heads H": m.num_heads, "key-value heads G": m.num_kv_heads,
    "head width K": m.head_dim, "experts a layer E": m.num_experts, "experts a token": m.experts_per_token,
    "expert width F": m.d_expert, "vocabulary V": m.vocab_size,
  }  # fmt: skip
  rows = [(name, of_count(size), DOCUMENT) for name, size in sizes.items()]
  rows += [(f"parameters, {name}", of_count(count), SOURCE) for name, count in e.parameters.items()]
  return Table(f"Model {m.name}", ["what", "value", "source"], rows)


def _cluster(e: Estimate) -> Table:
  c = e.deployment.cluster
  rows: list[tuple[str, str, str]] = [
    ("memory of a device", Number(units.bytes_(c.memory_bytes), c.memory_bytes), DOCUMENT),
    ("memory bandwidth", of_rate(c.memory_bandwidth_bytes_per_s, "B/s"), DOCUMENT),
    ("share of the bandwidth reached", of_share(c.memory_efficiency), DOCUMENT),
    *((f"peak, {dtype}", of_rate(peak, "FLOP/s"), DOCUMENT) for dtype, peak in c.peak_flops_per_s.items()),
    ("share of the peak reached", of_share(c.matmul_efficiency), DOCUMENT),
  ]
  for tier in c.tiers:
    rate = of_rate(tier.bandwidth_bytes_per_s, "B/s")
    rows.append((f"{tier.name} of {tier.devices:,} devices, one device's bandwidth", rate, DOCUMENT))
    rows.append((f"{tier.name}, latency", of_seconds(tier.latency_s), DOCUMENT))
  return Table(f"Cluster {c.name}", ["what", "value", "source"], rows)


def time(e: Estimate, optimal_s: float | None) -> Section:
  """Every term of the step; they add up. Beside them `optimal_s`, the compiler's own estimate if it gives one."""
  total, terms = e.time.total_s, e.time.terms()
  measures = [(name.replace("_", " "), of_seconds(s), SOURCE) for name, s in terms.items() if s]
  rows = [(name, number, of_share(number.value / total), source) for name, number, source in measures]
  rows.append((LATENCY[e.deployment.job.kind], of_seconds(total), of_share(1.0), SOURCE))
  rates = [
    ("throughput", of_rate(e.tokens_per_s, "tokens/s"), SOURCE),
    ("MFU", of_share(e.mfu), SOURCE),
    ("pipeline bubble", of_share(e.bubble), SOURCE),
  ]
  if optimal_s is not None:
    rates.append(("the compiler's estimate, loops counted once", of_seconds(optimal_s), COMPILED))
  text = (
    f"{units.seconds(total)}, bound by {e.time.bottleneck.replace('_', ' ')}, by formula: no clock has measured it."
  )
  return Section(
    "time",
    "Time of one step",
    [text],
    [Stacks("One step, by term (formula)", [("one step", stack(measures, total))])],
    [Table("Terms", ["term", "time", "of step", "source"], rows), Table("Rates", ["what", "value", "source"], rates)],
  )
