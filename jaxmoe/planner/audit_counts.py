"""Rules for what is counted: dimensions, axis sizes, devices, layers, experts and modules, and who holds them."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable

from jaxmoe.meshes.placement import Placement
from jaxmoe.planner.amount import Amount, exact, shown
from jaxmoe.planner.book import PARALLEL_SIZES, Book, Unsaid
from jaxmoe.planner.checks import Rule, document, left_out, model, physics


def product(amounts: Iterable[Amount]) -> Amount:
  return functools.reduce(operator.mul, amounts)


def ways(book: Book, role: str, letter: str) -> Amount:
  """Parts that the strategy splits a dimension into."""
  return exact(parts := book.d.rules.shards(role, letter), f"{parts}-way")


def _parallel_sizes(book: Book) -> Amount:
  """The product of all sizes that the document gives; one alone is not yet a count of devices."""
  stated = [name for name in PARALLEL_SIZES if book.says(name)]
  if len(stated) < 2:
    raise Unsaid("expert_parallel_size, tensor_parallel_size and their like")
  return product(book.said(name) for name in stated)


def _numbered_experts(book: Book) -> Amount:
  """Experts with a number of their own: E, or E for each stage where numbers run on through the stages."""
  experts = book.dim("num_experts", "experts")
  return experts * _stages(book) if book.d.expert_numbering == "across_stages" else experts


def _experts_to_split(book: Book) -> Amount:
  """Expert parallelism splits the experts of one stage's layer; no more ways than those."""
  stated = book.said("experts_per_stage")
  return dataclasses.replace(stated, text=f"the {stated.text} of a stage")


def _experts_counted(book: Book) -> Amount:
  """Those of a layer; of all layers, where the document says how many those are."""
  return book.said("experts_total" if book.says("experts_total") else "num_experts")


def _stages(book: Book) -> Amount:
  return exact(book.d.strategy.stage, shown(book.d.strategy.stage, "stages"))


def _layers_of_stage(book: Book) -> Amount:
  return book.dim("num_layers", "layers") / _stages(book)


def _experts_of_device(book: Book) -> Amount:
  return book.dim("num_experts", "experts") / ways(book, "expert", "E")


def _modules_touched(book: Book) -> Amount:
  """Modules that a device holds, whole or in part: attention and its experts, in each of its layers."""
  layers = exact(book.d.layers_per_stage, shown(book.d.layers_per_stage, "layers"))
  experts = book.d.model.num_experts // book.d.rules.shards("expert", "E")
  return layers * (exact(1, "1 part of attention") + exact(experts, shown(experts, "experts")))


def _modules_average(book: Book, claim: Amount, recomputed: Amount) -> str:
  if not (book.says("modules") and book.says("devices")):
    return ""
  average = book.said("modules") / book.said("devices")
  return f"{average.text} = {shown(average.value)} is an average" if claim.agrees_with(average) else ""


def _microbatch(book: Book) -> Amount:
  """Sequences of one microbatch, all devices of a data replica together."""
  d = book.d
  microbatches = exact(d.job.microbatches, shown(d.job.microbatches, "microbatches"))
  return _replica_batch(book) / microbatches


def _replica_batch(book: Book) -> Amount:
  d = book.d
  return exact(d.job.batch, shown(d.job.batch, "sequences")) / exact(d.strategy.data, f"DP {d.strategy.data}")


def _job_length(book: Book) -> Amount:
  return exact(length := book.d.job.sequence_length, f"{length:,} tokens of the job")


def _equal(values: Iterable[int]) -> float:
  """Relative variance: 0 if all are equal."""
  numbers = list(values)
  mean = sum(numbers) / len(numbers)
  return sum((n / mean - 1) ** 2 for n in numbers) / len(numbers)


def _held(place: Placement) -> int:
  return len(place.layers) * len(place.experts)


def _held_variance(book: Book) -> Amount:
  """Of the layers x experts that devices hold."""
  counts = [_held(place) for place in book.places]
  return exact(_equal(counts), f"devices hold {min(counts)} to {max(counts)} experts, all layers together")


def _held_balance(book: Book) -> Amount:
  counts = [_held(place) for place in book.places]
  return exact(min(counts), shown(min(counts), "experts")) / exact(max(counts), shown(max(counts), "experts"))


def _dim(name: str, unit: str = "") -> Callable[[Book], Amount]:
  return lambda book: book.dim(name, unit)


_LAYERS_OF_STAGE: Rule = (
  document(lambda b: b.said("num_layers") / b.said("stages")),
  model(_layers_of_stage),
)
_STAGES: Rule = (document(lambda b: b.said("pipeline_parallel_size")), model(_stages))
_NUMBERED: Rule = (
  document(lambda b: b.said("experts_per_stage") * b.said("stages")),
  model(_numbered_experts),
)

RULES: dict[str, Rule] = {
  # Dimensions
  "num_layers": (
    document(lambda b: b.said("layers_per_stage") * b.said("stages")),
    model(_dim("num_layers", "layers")),
  ),
  "num_heads": (model(_dim("num_heads", "heads")),),
  "head_dim": (model(_dim("head_dim")),),
  "d_model": (document(lambda b: b.said("num_heads") * b.said("head_dim")), model(_dim("d_model"))),
  "d_expert": (model(_dim("d_expert")),),
  "num_experts": (model(_dim("num_experts", "experts a layer")),),
  "experts_per_token": (model(_dim("experts_per_token", "experts")),),
  "experts_numbered": _NUMBERED,
  "expert_divisions": _NUMBERED,
  "experts_total": (
    document(lambda b: b.said("num_layers") * b.said("num_experts")),
    model(lambda b: b.dim("num_layers", "layers") * b.dim("num_experts", "experts")),
  ),
  # Job
  "batch": (
    document(lambda b: b.said("effective_batch") / b.said("data_parallel_size")),
    model(_replica_batch),
  ),
  "effective_batch": (
    document(lambda b: b.said("batch") * b.said("data_parallel_size")),
    model(lambda b: exact(b.d.job.batch, f"{b.d.job.batch} sequences of the job")),
  ),
  "sequence_length": (model(_job_length),),
  "sequence_length_minimum": (model(_job_length, "at_most"),),
  "sequence_length_maximum": (model(_job_length, "at_least"),),
  "microbatch_sequences": (model(_microbatch),),
  # Accumulated microbatches of one optimizer step, as effective batch = microbatch x accumulation x DP defines them.
  "gradient_accumulation_steps": (
    document(lambda b: b.said("effective_batch") / (b.said("microbatch_sequences") * b.said("data_parallel_size"))),
  ),
  # Axis sizes
  "expert_parallel_size": (
    document(_experts_to_split, "at_most"),
    document(lambda b: b.said("num_experts") / b.said("experts_per_device")),
    model(lambda b: ways(b, "expert", "E")),
  ),
  "pipeline_parallel_size": (document(lambda b: b.said("stages")), model(_stages)),
  "pipeline_parallel_size_in_product": (document(lambda b: b.said("pipeline_parallel_size")),),
  "tensor_parallel_size": (model(lambda b: ways(b, "attention", "H")),),
  "data_parallel_size": (model(lambda b: exact(b.d.strategy.data, shown(b.d.strategy.data, "replicas"))),),
  "sequence_parallel_size": (model(lambda b: exact(1, "no axis splits sequences: 1-way")),),
  "tensor_divisions": (document(lambda b: b.said("tensor_parallel_size")), model(lambda b: ways(b, "attention", "H"))),
  "stages": _STAGES,
  "pipeline_divisions": _STAGES,
  # Devices
  "devices": (
    document(_parallel_sizes, hint=left_out("pipeline_parallel_size", "tensor_parallel_size")),
    document(lambda b: b.said("hosts") * b.said("devices_per_host")),
    document(lambda b: b.said("devices_available"), "at_most"),
    physics(lambda b: exact(b.d.cluster.devices, f"{b.d.cluster.devices} devices in the cluster"), "at_most"),
    model(lambda b: b.devices),
  ),
  "devices_as_product": (document(_parallel_sizes), model(lambda b: b.devices)),
  "devices_available": (
    document(lambda b: b.said("devices"), "at_least"),
    model(lambda b: exact(b.d.cluster.devices, f"{b.d.cluster.devices} devices in the cluster"), "at_most"),
  ),
  "devices_per_stage": (
    document(lambda b: b.said("devices") / b.said("stages")),
    model(lambda b: b.devices / _stages(b)),
  ),
  "devices_per_host": (
    document(lambda b: b.said("devices") / b.said("hosts")),
    model(lambda b: exact(b.d.cluster.devices_per_host, f"{b.d.cluster.devices_per_host} devices a host")),
  ),
  "hosts": (
    document(lambda b: b.said("devices") / b.said("devices_per_host")),
    model(lambda b: b.devices / exact(b.d.cluster.devices_per_host, f"{b.d.cluster.devices_per_host} a host")),
  ),
  # Who holds what
  "layers_per_stage": _LAYERS_OF_STAGE,
  "layers_per_device": _LAYERS_OF_STAGE,
  "experts_per_stage": (
    document(lambda b: b.said("experts_numbered") / b.said("stages")),
    document(lambda b: b.said("experts_total") / b.said("num_layers")),
    model(_dim("num_experts", "experts a layer")),
  ),
  "experts_per_device": (
    document(lambda b: _experts_counted(b) / b.said("expert_parallel_size")),
    model(_experts_of_device),
  ),
  "expert_groups": (document(lambda b: b.said("expert_parallel_size")), model(lambda b: ways(b, "expert", "E"))),
  "devices_per_expert": (
    document(lambda b: b.said("tensor_parallel_size")),
    model(lambda b: ways(b, "expert", "F")),
  ),
  "heads_per_device": (
    document(lambda b: b.said("num_heads") / b.said("tensor_parallel_size")),
    model(lambda b: b.dim("num_heads", "heads") / ways(b, "attention", "H")),
  ),
  "d_model_per_device": (
    document(lambda b: b.said("d_model") / b.said("tensor_parallel_size")),
    model(lambda b: b.dim("num_heads", "heads") * b.dim("head_dim", "wide") / ways(b, "attention", "H")),
  ),
  # Modules
  "modules": (
    document(lambda b: b.said("num_layers") * (exact(1, "1 attention") + b.said("num_experts"))),
    model(lambda b: b.dim("num_layers", "layers") * (exact(1, "1 attention") + b.dim("num_experts", "experts"))),
  ),
  "attention_modules_per_layer": (model(lambda b: exact(1, "1 attention in every layer")),),
  "modules_per_device": (physics(_modules_touched, "whole", hint=_modules_average), model(_modules_touched)),
  "modules_per_device_minimum": (model(_modules_touched, "at_most"),),
  "modules_per_device_maximum": (model(_modules_touched, "at_least"),),
  "module_divisions": (
    document(lambda b: b.said("pipeline_divisions") * b.said("expert_divisions") * b.said("tensor_divisions"),
             hint=left_out("pipeline_divisions")),
    model(lambda b: b.devices),
  ),
  "module_balance": (model(_held_balance),),
  "memory_variance": (model(_held_variance),),
  # What the corrected document says it was before
  "earlier_devices": (
    document(lambda b: b.said("devices") * b.said("earlier_expert_parallel_size") / b.said("expert_parallel_size")),
  ),
  "earlier_expert_parallel_size": (
    document(lambda b: b.said("expert_parallel_size") * b.said("earlier_devices") / b.said("devices")),
  ),
  "earlier_experts_per_device": (document(lambda b: b.said("num_experts") / b.said("earlier_expert_parallel_size")),),
}  # fmt: skip
