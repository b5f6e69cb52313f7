"""Limits that documents set themselves, and what the estimate says of each."""

from jaxmoe.planner.amount import Amount, exact, shown
from jaxmoe.planner.book import Book, Unsaid, seconds
from jaxmoe.planner.checks import Check, model


def memory_used(book: Book) -> Amount:
  used = book.estimate.memory.total
  return exact(used, f"estimated {shown(used, 'bytes')} of one device")


def memory_capacity(book: Book) -> Amount:
  size = book.d.cluster.memory_bytes
  return exact(size, f"{shown(size, 'bytes')} of {book.d.cluster.name}")


def tokens_per_s_per_device(book: Book) -> Amount:
  rate = book.estimate.tokens_per_s
  return exact(rate, f"{book.d.job.kind} at {shown(rate, 'tokens/s')}") / book.devices


def tokens_per_ms_per_device(book: Book) -> Amount:
  return tokens_per_s_per_device(book) / exact(1000)


def prefill_s(book: Book) -> Amount:
  return seconds("prefill", book.prefill)


def decode_step(book: Book) -> Amount:
  if book.d.job.kind != "decode":
    raise Unsaid("a job of kind decode")
  return book.step


def mfu(book: Book) -> Amount:
  """Useful FLOPs of one device over what it could do at peak in the step's time."""
  flops = book.estimate.useful.total
  return exact(flops, f"{shown(flops, 'FLOP')} a device") / (book.step * book.peak)


def busy_ticks(book: Book) -> Amount:
  microbatches, stages = book.d.job.microbatches, book.d.strategy.stage
  ticks = microbatches + stages - 1
  return exact(microbatches, f"{microbatches} microbatches") / exact(ticks, f"{ticks} ticks of {stages} stages")


def parallel_efficiency(book: Book) -> Amount:
  """The useful matmuls' time, at the efficiency that the cluster states, over the step's."""
  efficiency = book.d.cluster.matmul_efficiency
  return mfu(book) / exact(efficiency, shown(efficiency, "share"))


# Claim -> what the estimate says of it.
LIMITS: dict[str, Check] = {
  "memory_capacity_bytes": model(memory_used, "at_least"),
  "memory_capacity_bytes_minimum": model(memory_used, "at_least"),
  "memory_bytes_per_device_maximum": model(memory_used, "at_least"),
  "memory_utilization_maximum": model(lambda b: memory_used(b) / memory_capacity(b), "at_least"),
  "compute_utilization_maximum": model(mfu, "at_least"),
  "required_time_to_first_token_s": model(prefill_s, "at_least"),
  "decode_latency_s_maximum": model(decode_step, "at_least"),
  "required_tokens_per_ms_per_device": model(tokens_per_ms_per_device, "at_most"),
  "device_utilization_minimum": model(busy_ticks, "at_most"),
  "parallel_efficiency_minimum": model(parallel_efficiency, "at_most"),
}
