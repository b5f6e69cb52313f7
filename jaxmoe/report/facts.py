"""What makes a term of a plan as large as it is: sizes of the plan, in words."""

from collections.abc import Callable, Iterable

from jaxmoe.cost.collectives import Collective
from jaxmoe.cost.estimate import Estimate
from jaxmoe.cost.flops import balanced_rows
from jaxmoe.cost.layer import Operation, attention_operations, dense_operations, expert_operations
from jaxmoe.cost.load import load_of
from jaxmoe.cost.memory import buffer_rows, kept_microbatches
from jaxmoe.cost.passes import Device
from jaxmoe.cost.stage import stage_layers
from jaxmoe.meshes.axes import AXES, CONTEXT, EXPERT, STAGE, TENSOR, label
from jaxmoe.report import units
from jaxmoe.report.groups import span

LEAST_SHARE = 0.01  # of the largest payload, to be named beside it

type Fact = Callable[[Estimate], str]


def fact(e: Estimate, term: str) -> str:
  """Of a term of time or a class of memory; of gradients in memory as `stored_gradients`."""
  return FACTS[term](e) if term in FACTS else _work(e, term)


def _work(e: Estimate, part: str) -> str:
  """Matmuls and memory traffic of a part, forward and backward, and which of the two takes longer."""
  d, stage = e.deployment, stage_layers(e.deployment)[0]
  kinds = (
    (stage.all, attention_operations(d)),
    (stage.routed, expert_operations(d, balanced_rows(d))),
    (stage.dense, dense_operations(d)),
  )
  runs = [(_times(e, op) * layers, op) for layers, operations in kinds for op in operations if op.part == part]
  flops, traffic = sum(n * op.flops for n, op in runs), sum(n * op.bytes for n, op in runs)
  device = Device(d.cluster, d.job.precision)
  bound = sum(n * device.operation_s(op) for n, op in runs) > traffic / device.bytes_per_s * (1 + 1e-9)
  work = f"{units.flops(flops)} and {units.bytes_(traffic)} of memory traffic" if flops else units.bytes_(traffic)
  load = load_of(d, d.assumptions) if part == "experts" else 1
  busiest = f", the busiest device {load:.3g} times the mean" if load != 1 else ""
  return f"{work} in {_microbatches(e)}, bound by {'matmuls' if bound else 'memory traffic'}{busiest}"


def _times(e: Estimate, op: Operation) -> float:
  return e.deployment.microbatches * (1 + op.backward if e.deployment.train else 1)


def _microbatches(e: Estimate) -> str:
  d = e.deployment
  return f"{d.microbatches} microbatch{'es' * (d.microbatches > 1)} of {d.microbatch_tokens:,} tokens"


def _exchange(e: Estimate) -> str:
  d = e.deployment
  axes = d.strategy.experts_over
  payload = units.bytes_(sum(c.total_bytes for c in e.collectives if is_exchange(e, c)))
  return f"{payload} by {d.job.transport} among {_group(e, axes)}{_hidden(d.assumptions.dispatch_overlap)}"


def _hidden(share: float) -> str:
  return f", {units.percent(share)} taken for hidden" if share else ""


def is_exchange(e: Estimate, c: Collective) -> bool:
  """Whether it takes tokens to their experts or back, or runs over the same devices for them."""
  axes = tuple(axis for axis in e.deployment.strategy.experts_over if e.deployment.strategy.size(axis) > 1)
  return c.part == "experts" and set(c.axes) == set(axes)


def _group(e: Estimate, axes: tuple[str, ...]) -> str:
  d = e.deployment
  size = d.strategy.size(*axes)
  return "1 device" if size == 1 else f"{size} devices of {label(axes)} ({span(d, axes)})"


def _layer_network(e: Estimate) -> str:
  parts = ("attention", "dense", "shared", "experts")
  return _payloads(e, (c for c in e.collectives if c.part in parts and not is_exchange(e, c)))


def _step_network(e: Estimate) -> str:
  parts = ("pipeline", "embedding", "head", "loss", "balance")
  return _payloads(e, (c for c in e.collectives if c.part in parts))


def _payloads(e: Estimate, collectives: Iterable[Collective]) -> str:
  """Bytes over each group of axes, the two largest."""
  found: dict[tuple[str, ...], float] = {}
  for c in collectives:
    found[c.axes] = found.get(c.axes, 0.0) + c.total_bytes
  largest = sorted(found.items(), key=lambda entry: -entry[1])[:2]
  largest = [(axes, size) for axes, size in largest if size >= LEAST_SHARE * largest[0][1]]
  return " and ".join(f"{units.bytes_(size)} among {_group(e, axes)}" for axes, size in largest) or "no message"


def _gradients(e: Estimate) -> str:
  sums = _payloads(e, (c for c in e.collectives if c.part == "gradients"))
  return f"zero {e.deployment.job.zero}, {sums}{_hidden(e.deployment.assumptions.gradient_overlap)}"


def _bubble(e: Estimate) -> str:
  d = e.deployment
  chunks = f" of {d.job.chunks} chunks" if d.job.chunks > 1 else ""
  schedule = f"{d.job.schedule}{chunks}, " if d.train else ""
  return f"{schedule}{d.strategy.stage} stages and {d.microbatches} microbatches: {units.percent(e.bubble)} idle"


def _recomputation(e: Estimate) -> str:
  return f"remat {e.deployment.job.remat}"


def _head(e: Estimate) -> str:
  d = e.deployment
  return f"{d.model.vocab_size} words in {d.rules.shards('vocabulary', 'V')} parts, {d.sequences_per_device} sequences"


def _state(e: Estimate) -> str:
  """Why a device stores as much as it does."""
  d, rules = e.deployment, e.deployment.rules
  experts = d.strategy.stage * rules.shards("expert", "E") * rules.shards("expert", "F")
  attention = d.strategy.stage * rules.shards("attention", "H")
  replicas = f", zero {d.job.zero} over {d.strategy.batch_shards * d.strategy.context} replicas" if d.train else ""
  return f"experts in {experts} parts, attention in {attention}{replicas}"


def _activations(e: Estimate) -> str:
  d = e.deployment
  if not d.train:
    return f"one layer of {_microbatches(e)}"
  kept, layers = float(kept_microbatches(d)), stage_layers(d)[0].all
  return f"{kept:g} microbatches of {d.microbatch_tokens:,} tokens held in {layers} layers, remat {d.job.remat}"


def _stacked(e: Estimate) -> str:
  d = e.deployment
  return f"all {d.microbatches} microbatches of {d.microbatch_tokens:,} tokens" if d.executes_idle else "none"


def _dispatch(e: Estimate) -> str:
  return f"{e.deployment.job.transport}: buffers of {float(buffer_rows(e.deployment)):,.0f} rows"


def _cache(e: Estimate) -> str:
  d = e.deployment
  split = {"context": d.strategy.context} if d.strategy.context > 1 else {}
  if d.model.latent is None:  # else every device keeps the whole latent vector of a token
    split["heads"] = d.rules.shards("activation", "G")
  parts = "".join(f", {name} in {count} parts" for name, count in split.items())
  return f"{d.sequences_per_device} sequences in {d.layers_per_stage} layers{parts}"


def _sequences(e: Estimate) -> str:
  return f"{e.deployment.sequences_per_device} sequences a device"


FACTS: dict[str, Fact] = {
  "recomputation": _recomputation, "exchange": _exchange, "layer_network": _layer_network, "bubble": _bubble,
  "head": _head, "step_network": _step_network, "gradients": _gradients, "optimizer": _state, "parameters": _state,
  "cache": _cache, "inputs": _sequences, "activations": _activations, "dispatch": _dispatch, "gathered": _state,
  "master": _state,
  "stacked": _stacked, "stored_gradients": _state,
}  # fmt: skip


def axis_fact(e: Estimate, name: str) -> str:
  """Of a group of axes by its label."""
  axes = tuple(axis for axis in (*AXES, CONTEXT) if axis in name.split("+"))
  return span(e.deployment, axes)


def flops_fact(e: Estimate, part: str) -> str:
  """Why a device executes as many FLOPs of a part."""
  d = e.deployment
  if part == "head":
    return _head(e)
  idle = f" and {d.ticks - d.microbatches} idle ticks" if d.ticks > d.microbatches else ""
  shares = d.strategy.size(*((STAGE, EXPERT, TENSOR) if part == "experts" else (STAGE, *d.strategy.heads_over)))
  return f"{_microbatches(e)}{idle}, each in {shares} parts, remat {d.job.remat}"
