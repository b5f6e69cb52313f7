"""Rules for rates, times and how well devices are used."""

import dataclasses
from collections.abc import Callable

from jaxmoe.cost.estimate import Estimate
from jaxmoe.cost.network import collective_s
from jaxmoe.planner.amount import Amount, exact, shown
from jaxmoe.planner.audit_counts import ways
from jaxmoe.planner.book import Book, Unsaid
from jaxmoe.planner.checks import Missing, Rule, document, left_out, model, physics
from jaxmoe.planner.limits import (
  LIMITS,
  busy_ticks,
  decode_step,
  mfu,
  parallel_efficiency,
  prefill_s,
  tokens_per_ms_per_device,
  tokens_per_s_per_device,
)

ONE = exact(1)


def _cluster(name: str, unit: str) -> Callable[[Book], Amount]:
  def rate(book: Book) -> Amount:
    value = getattr(book.d.cluster, name)
    return exact(value, f"{shown(value, unit)} of {book.d.cluster.name}")

  return rate


def _efficiency(book: Book) -> Amount:
  efficiency = book.d.cluster.matmul_efficiency
  return exact(efficiency, shown(efficiency, "share"))


def _fastest_link(book: Book) -> Amount:
  tier = max(book.d.cluster.tiers, key=lambda tier: tier.bandwidth_bytes_per_s)
  assumed = " (assumed)" if "tiers" in book.d.cluster.assumptions else ""
  return exact(tier.bandwidth_bytes_per_s, f"{tier.name}{assumed}: {shown(tier.bandwidth_bytes_per_s, 'bytes/s')}")


def _is_of_memory(book: Book, claim: Amount, recomputed: Amount) -> str:
  cluster = book.d.cluster
  bandwidth = exact(cluster.memory_bandwidth_bytes_per_s) * exact(cluster.memory_efficiency)
  texts = shown(cluster.memory_bandwidth_bytes_per_s, "bytes/s"), shown(cluster.memory_efficiency, "share")
  return f"{texts[0]} x {texts[1]} is the memory's" if claim.agrees_with(bandwidth) else ""


def _least_s(book: Book, devices: Amount) -> Amount:
  """Of one batch: all devices at peak, nothing but the model's own matmuls."""
  return book.batch_flops / (devices * book.peak)


def _least_prefill_s(book: Book) -> Amount:
  e = book.prefill
  flops = e.useful.total * e.deployment.strategy.devices
  return exact(flops, f"{shown(flops, 'FLOP')} a prefill") / (book.devices * book.peak)


def _sequences(book: Book) -> Amount:
  return exact(book.d.job.batch, shown(book.d.job.batch, "sequences"))


def _flops_per_token(book: Book) -> Amount:
  flops = book.estimate.flops_per_token_forward
  return exact(flops, f"{shown(flops, 'FLOP')} a token")


def _most_tokens_per_s(book: Book) -> Amount:
  return book.peak / _flops_per_token(book)


def _stage_message_s(book: Book) -> Amount:
  """One microbatch of one device, handed on once."""
  sent = [c for c in book.estimate.collectives if c.kind == "collective-permute"]
  if not sent:
    raise Unsaid("a pipeline")
  once = float(collective_s(dataclasses.replace(sent[0], count=1), book.d.strategy, book.d.cluster))
  return exact(once, f"one message of {shown(sent[0].payload_bytes, 'bytes')} between stages: {shown(once, 's')}")


def _network_share(book: Book) -> Amount:
  network = book.estimate.time.network_s
  return exact(network, f"network {shown(network, 's')}") / book.step


def _expert_efficiency(book: Book) -> Amount:
  """Matmul time of experts over that and the time of carrying tokens to them and back."""
  e = book.estimate
  matmul_s = e.executed.experts / (book.peak.value * book.d.cluster.matmul_efficiency)
  carried = [c for c in e.collectives if c.part == "experts" and set(c.axes) & set(book.d.strategy.experts_over)]
  network_s = sum(float(collective_s(c, book.d.strategy, book.d.cluster)) for c in carried)
  matmul = exact(matmul_s, f"expert matmuls {shown(matmul_s, 's')}")
  return matmul / (exact(matmul_s, shown(matmul_s, "s")) + exact(network_s, f"all-to-all {shown(network_s, 's')}"))


def _expert_utilization(book: Book) -> Amount:
  """Experts that get at least one token of a microbatch, were tokens spread evenly."""
  d = book.d
  rows = d.dispatch_tokens * d.rules.shards("expert", "E") * d.model.experts_per_token
  busy = min(rows, d.model.num_experts)
  return exact(busy, f"{busy} experts with a row of {rows:,} routed") / book.dim("num_experts", "experts")


def _compute_variance(book: Book) -> Amount:
  if book.d.job.transport == "gather":
    raise Unsaid("the tokens that the router sends to each expert")
  return exact(0, f"every device multiplies equally many rows, full or not, with transport {book.d.job.transport}")


def _full_pipeline_experts(book: Book) -> Amount:
  stages = book.d.strategy.stage
  return exact(stages, shown(stages, "stages")) * book.dim("num_experts", "experts at work")


def _sequential_layers(book: Book) -> Amount:
  layers = book.d.model.num_layers
  return exact(layers, f"every token passes {layers} layers one after another, pipelined or not")


def _one_device_s(book: Book) -> Amount:
  return _step_on_one(book.one_device)


def _step_on_one(e: Estimate) -> Amount:
  return exact(e.time.total_s, f"{shown(e.time.total_s, 's')} on one device")


RULES: dict[str, Rule] = {
  # Rates of the hardware
  "peak_flops_per_s": (
    document(lambda b: b.said("flops_per_s_per_device") / b.said("matmul_efficiency")),
    model(lambda b: b.peak),
  ),
  "matmul_efficiency": (
    document(lambda b: b.said("flops_per_s_per_device") / b.said("peak_flops_per_s")),
    model(_cluster("matmul_efficiency", "share")),
  ),
  "flops_per_s_per_device": (
    document(lambda b: b.said("peak_flops_per_s") * b.said("matmul_efficiency")),
    physics(lambda b: b.peak, "at_most"),
    model(lambda b: b.peak * _efficiency(b)),
  ),
  "system_flops_per_s": (
    document(lambda b: b.said("devices") * b.said("flops_per_s_per_device")),
    physics(lambda b: b.devices * b.peak, "at_most"),
    model(lambda b: b.devices * b.peak * _efficiency(b)),
  ),
  "memory_bandwidth_bytes_per_s": (model(_cluster("memory_bandwidth_bytes_per_s", "bytes/s")),),
  "memory_efficiency": (model(_cluster("memory_efficiency", "share")),),
  "link_bytes_per_s": (
    document(lambda b: b.said("memory_bandwidth_bytes_per_s") * b.said("memory_efficiency")),
    model(_fastest_link, hint=_is_of_memory),
  ),
  # Time of a batch, and batches in a time
  "latency_s": (
    physics(lambda b: _least_s(b, b.devices), "at_least"),
    document(lambda b: ONE / b.said("throughput_batches_per_s")),
    document(lambda b: b.said("earlier_latency_s") * b.said("earlier_devices") / b.said("devices")),
    model(lambda b: b.step),
  ),
  "earlier_latency_s": (
    physics(lambda b: _least_s(b, b.said("earlier_devices")), "at_least"),
    document(lambda b: b.said("latency_s") * b.said("devices") / b.said("earlier_devices")),
  ),
  "throughput_batches_per_s": (
    physics(lambda b: b.devices * b.peak / b.batch_flops, "at_most"),
    document(lambda b: ONE / b.said("latency_s")),
    model(lambda b: ONE / b.step),
  ),
  "throughput_sequences_per_s": (
    physics(lambda b: _sequences(b) * b.devices * b.peak / b.batch_flops, "at_most"),
    document(lambda b: b.said("effective_batch") / b.said("latency_s"), hint=left_out("data_parallel_size")),
    model(lambda b: _sequences(b) / b.step),
  ),
  "earlier_throughput_sequences_per_s": (
    physics(lambda b: _sequences(b) * b.said("earlier_devices") * b.peak / b.batch_flops, "at_most"),
    document(lambda b: b.said("throughput_sequences_per_s") * b.said("earlier_devices") / b.said("devices")),
  ),
  "sequential_layers": (physics(_sequential_layers, "at_least"), model(_sequential_layers)),
  "latency_reduction": (
    document(lambda b: ONE - b.said("sequential_layers") / b.said("num_layers")),
    model(lambda b: ONE - b.step / _one_device_s(b)),
  ),
  "throughput_increase": (physics(lambda b: b.devices, "at_most"), Missing("the baseline that it improves on")),
  # Tokens
  "flops_per_token": (model(_flops_per_token),),
  "throughput_tokens_per_s_per_device": (
    document(lambda b: b.said("flops_per_s_per_device") / b.said("flops_per_token")),
    physics(_most_tokens_per_s, "at_most"),
    model(tokens_per_s_per_device),
  ),
  "throughput_tokens_per_ms_per_device": (
    document(lambda b: b.said("throughput_tokens_per_s_per_device") / exact(1000)),
    physics(lambda b: _most_tokens_per_s(b) / exact(1000), "at_most"),
    model(tokens_per_ms_per_device),
  ),
  "required_tokens_per_ms_per_device": (
    document(lambda b: b.said("throughput_tokens_per_ms_per_device"), "at_most"),
    LIMITS["required_tokens_per_ms_per_device"],
  ),
  "prefill_latency_s": (
    physics(_least_prefill_s, "at_least"),
    document(lambda b: b.said("required_time_to_first_token_s"), "at_most"),
    model(prefill_s),
  ),
  "required_time_to_first_token_s": (
    document(lambda b: b.said("prefill_latency_s"), "at_least"),
    LIMITS["required_time_to_first_token_s"],
  ),
  "decode_latency_s_maximum": (model(decode_step, "at_least"),),
  # Messages
  "stage_message_bytes": (
    document(lambda b: b.said("batch") * b.said("d_model") * b.said("bytes_per_parameter"),
             hint=left_out("bytes_per_parameter")),
  ),
  "stage_message_s": (
    document(lambda b: b.said("stage_message_bytes") / b.said("link_bytes_per_s")),
    model(_stage_message_s),
  ),
  "communication_overhead": (model(_network_share),),
  # How well devices are used
  "compute_utilization": (model(mfu),),
  "compute_utilization_maximum": (
    document(lambda b: b.said("compute_utilization"), "at_least"),
    LIMITS["compute_utilization_maximum"],
  ),
  "compute_efficiency": (document(lambda b: b.said("matmul_efficiency")), model(mfu)),
  "device_utilization": (model(busy_ticks),),
  "device_utilization_minimum": (LIMITS["device_utilization_minimum"],),
  "parallel_efficiency_minimum": (
    document(lambda b: ONE - b.said("communication_overhead"), "at_most"),
    model(parallel_efficiency, "at_most"),
  ),
  "expert_parallel_efficiency": (model(_expert_efficiency),),
  "expert_utilization": (model(_expert_utilization),),
  "concurrent_token_subsets": (model(_full_pipeline_experts),),
  "expert_time_reduction": (
    document(lambda b: ONE - ONE / b.said("tensor_parallel_size")),
    model(lambda b: ONE - ONE / ways(b, "expert", "F")),
  ),
  "expert_speedup": (
    document(lambda b: b.said("expert_parallel_size")),
    model(lambda b: ways(b, "expert", "E")),
  ),
  "attention_speedup": (
    document(lambda b: b.said("tensor_parallel_size")),
    model(lambda b: ways(b, "attention", "H")),
  ),
  "compute_variance": (model(_compute_variance),),
  "network_efficiency_target": (Missing("a measurement of its links; the estimate takes all of their bandwidth"),),
  "load_balance": (Missing("the tokens that the router sends to each expert"),),
  "load_variance": (
    physics(lambda b: exact(0), "at_least"),
    Missing("the tokens that the router sends to each expert"),
  ),
}  # fmt: skip
