"""Rules for parameters and for bytes: of the whole model, and of one device."""

from collections.abc import Callable

from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.cost.parameters import parameter_tensors, total_parameters
from jaxmoe.planner.amount import Amount, brief, exact, shown
from jaxmoe.planner.audit_counts import ways
from jaxmoe.planner.book import Book, Unsaid
from jaxmoe.planner.checks import Rule, counted_twice, document, left_out, model, physics
from jaxmoe.planner.limits import LIMITS, memory_capacity, memory_used

PARTS_OF_DEVICE = (
  "parameter_bytes_per_device", "attention_bytes_per_device", "expert_bytes_per_device", "kv_cache_bytes_per_device",
  "activation_bytes_per_device", "activation_buffer_bytes_per_device", "optimizer_bytes_per_device",
  "buffer_bytes_per_device",
)  # fmt: skip
PARTS_OF_TOTAL = (
  "parameter_bytes_total", "activation_bytes_total", "gradient_bytes_total", "optimizer_bytes_total",
)  # fmt: skip


def _parameters(book: Book) -> Amount:
  total = total_parameters(book.d.model)
  experts = sum(t.count for t in parameter_tensors(book.d.model) if t.role == "expert")
  return exact(experts, f"{brief(experts, 'parameters')} in experts") + exact(
    total - experts, f"{brief(total - experts, 'parameters')} elsewhere"
  )


def _parameters_of_dimensions(book: Book) -> Amount:
  """Experts from the dimensions that the document states; attention, embeddings and the rest as the model was read."""
  m = book.d.model
  layers, width = book.said("num_layers"), book.said("d_model")
  matrices = exact(m.expert_matrices, f"{m.expert_matrices} matrices")
  experts = layers * book.said("num_experts") * matrices * width * book.said("d_expert")
  rest = sum(t.count for t in parameter_tensors(m) if t.role != "expert")
  return experts + exact(rest, f"{brief(rest, 'parameters')} elsewhere")


def _weights(role: str, letters: str, name: str) -> Callable[[Book], Amount]:
  """One device's bytes of the weights of a role, which is split along these letters."""

  def bytes_(book: Book) -> Amount:
    count = sum(t.count for t in parameter_tensors(book.d.model) if t.role == role)
    item = ITEM_BYTES[book.d.job.precision.weights]
    parts = [ways(book, role, letter) for letter in letters]
    whole = exact(count, f"{count:,} {name} weights") * exact(item, shown(item, "bytes"))
    for part in parts:
      whole = whole / part if part.value > 1 else whole
    return whole

  return bytes_


def _whole_model(role: str, copies: int) -> Callable[[Book], Amount]:
  """Bytes of one number (or of so many) for each parameter, stored as the job says."""

  def bytes_(book: Book) -> Amount:
    item = ITEM_BYTES[getattr(book.d.job.precision, role)]
    each = exact(copies * item, f"{copies} x {shown(item, 'bytes')}" if copies > 1 else shown(item, "bytes"))
    return _parameters(book) * each

  return bytes_


def _class(*names: str) -> Callable[[Book], Amount]:
  """Classes of the estimate's memory, of one device."""

  def bytes_(book: Book) -> Amount:
    sizes = [getattr(book.estimate.memory, name) for name in names]
    return exact(sum(sizes), f"estimated {shown(sum(sizes), 'bytes')} of {' and '.join(names)}")

  return bytes_


def _activations(book: Book) -> Amount:
  """With the buffers of dispatch, unless the document counts them apart."""
  names = ("activations",) if book.says("buffer_bytes_per_device") else ("activations", "dispatch")
  return _class(*names)(book)


def _stated_sum(book: Book, names: tuple[str, ...]) -> Amount:
  stated = [name for name in names if book.says(name)]
  if len(stated) < 2:
    raise Unsaid(", ".join(names))
  first, *rest = (book.said(name) for name in stated)
  for part in rest:
    first = first + part
  return first


def _sum_of_device(book: Book) -> Amount:
  if book.says("activation_bytes_total"):
    return book.said("parameter_bytes_per_device") + book.said("activation_bytes_total") / book.said("devices")
  return _stated_sum(book, PARTS_OF_DEVICE)


def _earlier_sum(book: Book) -> Amount:
  """The same bytes a parameter as now, for as many parameters as before; activations as now."""
  parts = (book.said(name) for name in PARTS_OF_TOTAL if name != "activation_bytes_total")
  each = sum((part / book.said("parameters_total") for part in parts), start=exact(0)).value
  return book.said("earlier_parameters_total") * exact(each, f"{each:.3g} bytes") + book.said("activation_bytes_total")


def _expert_of_dimensions(book: Book) -> Amount:
  """One device's experts, halved (or so) by tensor parallelism, from the document's own dimensions."""
  matrices = book.d.model.expert_matrices
  numbers = book.said("d_model") * book.said("d_expert") * exact(matrices, f"{matrices} matrices")
  held = book.said("num_layers") * book.said("experts_per_device") * numbers
  return held * (book.said("weight_bits") / exact(8, "8 bits a byte")) / book.said("tensor_parallel_size")


def _cache_of_layer(book: Book) -> Amount:
  """Keys and values of every sequence of the batch."""
  numbers = book.said("num_heads") * book.said("head_dim") * exact(2, "2 (K+V)") * book.said("sequence_length_maximum")
  return numbers * book.said("bytes_per_parameter") * book.said("batch")


def _cache_tensors(book: Book) -> Amount:
  """The cache that is estimated, over a tensor as wide as the heads of one device."""
  d, item = book.d, ITEM_BYTES[book.d.job.precision.compute]
  heads = d.model.num_kv_heads // d.rules.shards("attention", "G")
  numbers = d.layers_per_stage * d.sequences_per_device * d.job.sequence_length * heads * d.model.head_dim
  if not book.estimate.memory.cache:
    raise Unsaid("a job that keeps a cache")
  size = shown(book.estimate.memory.cache, "bytes")
  each = exact(numbers * item, f"{shown(numbers * item, 'bytes')} of the heads of one device")
  return exact(book.estimate.memory.cache, f"estimated cache of {size}") / each


def _bits(book: Book, role: str) -> Amount:
  bits = 8 * ITEM_BYTES[getattr(book.d.job.precision, role)]
  return exact(bits, f"{role} in {shown(bits, 'bits')}")


def _cache_of_device(book: Book) -> Amount:
  layers, sequences = book.d.layers_per_stage, book.d.sequences_per_device
  each = book.estimate.memory.cache / (layers * sequences)
  held = exact(layers, shown(layers, "layers")) * exact(sequences, shown(sequences, "sequences"))
  return held * exact(each, f"{shown(each, 'bytes')} each")


_PARAMETERS: Rule = (document(_parameters_of_dimensions), model(_parameters))

RULES: dict[str, Rule] = {
  # The whole model
  "parameters_total": _PARAMETERS,
  "earlier_parameters_total": _PARAMETERS,
  "weight_bits": (
    document(lambda b: b.said("bytes_per_parameter") * exact(8, "8 bits a byte")),
    model(lambda b: b.weight_bytes * exact(8, "8 bits a byte")),
  ),
  "bytes_per_parameter": (
    document(lambda b: b.said("weight_bits") / exact(8, "8 bits a byte")),
    model(lambda b: b.weight_bytes),
  ),
  "compute_bits": (model(lambda b: _bits(b, "compute")),),
  "critical_bits": (model(lambda b: _bits(b, "optimizer")),),
  "parameter_bytes_total": (
    document(lambda b: b.said("parameters_total") * b.said("bytes_per_parameter")),
    model(_whole_model("weights", 1)),
  ),
  "gradient_bytes_total": (document(lambda b: b.said("parameter_bytes_total")), model(_whole_model("weights", 1))),
  "optimizer_bytes_total": (
    document(lambda b: exact(2, "2 moments") * b.said("parameter_bytes_total")),
    model(_whole_model("optimizer", 2)),
  ),
  "optimizer_copies": (
    document(lambda b: b.said("optimizer_bytes_total") / b.said("parameter_bytes_total")),
    model(lambda b: exact(2, "2 moments") * _bits(b, "optimizer") / _bits(b, "weights")),
  ),
  "activation_bytes_total": (
    document(lambda b: (b.said("memory_bytes_per_device") - b.said("parameter_bytes_per_device")) * b.said("devices")),
    model(lambda b: _activations(b) * b.devices),
  ),
  "memory_bytes_total": (
    document(lambda b: _stated_sum(b, PARTS_OF_TOTAL), hint=counted_twice(*PARTS_OF_TOTAL)),
    model(lambda b: memory_used(b) * b.devices),
  ),
  "earlier_memory_bytes_total": (document(_earlier_sum, hint=counted_twice(*PARTS_OF_TOTAL)),),
  # One device
  "memory_capacity_bytes": (model(memory_capacity),),
  "memory_capacity_bytes_minimum": (model(memory_capacity, "at_most"),),
  "parameter_bytes_per_device": (
    document(lambda b: b.said("parameters_total") * b.weight_bytes / b.said("devices")),
    physics(memory_capacity, "at_most"),
    model(_class("parameters")),
  ),
  "attention_bytes_per_device": (physics(memory_capacity, "at_most"), model(_weights("attention", "LH", "attention"))),
  "expert_bytes_per_device": (
    document(_expert_of_dimensions, hint=left_out("tensor_parallel_size")),
    document(lambda b: b.said("parameter_bytes_total") / b.said("experts_total")),
    physics(memory_capacity, "at_most"),
    model(_weights("expert", "LEF", "expert")),
  ),
  "kv_cache_tensors": (model(_cache_tensors),),
  "kv_cache_bytes_per_layer": (document(_cache_of_layer, hint=left_out("batch")),),
  "kv_cache_bytes_per_device": (
    document(lambda b: b.said("kv_cache_bytes_per_layer") * b.said("layers_per_stage")),
    physics(memory_capacity, "at_most"),
    model(_cache_of_device),
  ),
  "activation_bytes_per_device": (physics(memory_capacity, "at_most"), model(_activations)),
  "activation_buffer_bytes_per_device": (physics(memory_capacity, "at_most"), model(_activations, "at_least")),
  "optimizer_bytes_per_device": (physics(memory_capacity, "at_most"), model(_class("optimizer"))),
  "buffer_bytes_per_device": (physics(memory_capacity, "at_most"), model(_class("dispatch"))),
  "memory_bytes_per_device": (document(_sum_of_device), physics(memory_capacity, "at_most"), model(memory_used)),
  "memory_bytes_per_device_maximum": (
    document(lambda b: _stated_sum(b, PARTS_OF_DEVICE), "at_least"),
    LIMITS["memory_bytes_per_device_maximum"],
  ),
  "memory_utilization": (
    document(lambda b: b.said("memory_bytes_per_device") / b.said("memory_capacity_bytes")),
    model(lambda b: memory_used(b) / memory_capacity(b)),
  ),
  "memory_utilization_maximum": (
    document(lambda b: b.said("memory_utilization"), "at_least"),
    document(lambda b: b.said("memory_bytes_per_device_maximum") / b.said("memory_capacity_bytes"), "at_least"),
    LIMITS["memory_utilization_maximum"],
  ),
  "device_memory_efficiency": (
    document(lambda b: b.said("memory_bytes_total") / b.said("devices") / b.said("memory_capacity_bytes")),
  ),
  "tensor_memory_reduction": (
    document(lambda b: b.said("tensor_parallel_size")),
    model(lambda b: ways(b, "expert", "F")),
  ),
}
