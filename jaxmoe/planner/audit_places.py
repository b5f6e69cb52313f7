"""Rules for who holds what: the ends of ranges that a document prints, and the rows of its table of devices."""

from collections.abc import Callable, Sequence

from jaxmoe.meshes.axes import STAGE
from jaxmoe.meshes.placement import Placement
from jaxmoe.planner.amount import Amount, exact, shown
from jaxmoe.planner.book import Book, Unsaid
from jaxmoe.planner.checks import Rule, document, model, physics


def _numbered_per_layer(book: Book) -> Amount:
  """How much higher experts are numbered in one layer than in the layer before."""
  if book.d.model.num_layers < 2:
    raise Unsaid("a second layer")
  firsts = [min(min(_experts(book, place)) for place in book.places if layer in place.layers) for layer in (0, 1)]
  return exact(firsts[1] - firsts[0], f"experts of layer 0 count from {firsts[0]}, those of layer 1 from {firsts[1]}")


def _experts(book: Book, place: Placement) -> tuple[int, ...]:
  """Their numbers, as the document counts them."""
  return place.expert_numbers(book.d.model.num_experts, across_stages=book.d.expert_numbering == "across_stages")


RULES: dict[str, Rule] = {
  "first_device": (model(lambda b: exact(0, "ranks count from 0")),),
  "last_device": (
    document(lambda b: b.said("devices_available") - exact(1)),
    model(lambda b: b.devices - exact(1)),
  ),
  "experts_numbered_per_layer": (document(lambda b: b.said("num_experts")), model(_numbered_per_layer)),
}


def _layer_of_stage(stage: int, *, last: bool) -> Rule:
  """Stages before it hold the layers before its first; with its own they are one more than its last."""

  def end(layers_of_stage: Amount) -> Amount:
    layers = exact(stage + last, shown(stage + last, "stages")) * layers_of_stage
    return layers - exact(1) if last else layers

  def held(book: Book) -> Amount:
    layers = [layer for place in book.places if place.coordinates[STAGE] == stage for layer in place.layers]
    return _end(book, layers, f"layer of stage {stage}", last=last)

  most = physics(lambda b: b.dim("num_layers", "layers") - exact(1), "at_most")
  return most, document(lambda b: end(b.said("layers_per_stage"))), model(held)


def _device_of_stage(stage: int, *, last: bool) -> Rule:
  return _device_with(lambda b, place: place.coordinates[STAGE] == stage, f"rank of stage {stage}", last=last)


def _device_of_expert(expert: int, *, last: bool) -> Rule:
  return _device_with(lambda b, place: expert in _experts(b, place), f"rank with expert {expert}", last=last)


def _device_with(holds: Callable[[Book, Placement], bool], of: str, *, last: bool) -> Rule:
  def end(book: Book) -> Amount:
    return _end(book, [place.rank for place in book.places if holds(book, place)], of, last=last)

  return physics(lambda b: b.devices - exact(1), "at_most"), model(end)


def _end(book: Book, numbers: Sequence[int], of: str, *, last: bool) -> Amount:
  """-1 where there is none."""
  number = (max if last else min)(numbers, default=-1)
  return exact(number, f"{number} is the {'last' if last else 'first'} {of} in {_sizes(book)}")


def _of_device(rank: int, what: str, number: Callable[[Book, Placement], int]) -> Rule:
  """What the row of this rank says; -1 where no device has it."""

  def held(book: Book) -> Amount:
    value = number(book, book.places[rank]) if rank < len(book.places) else -1
    return exact(value, f"rank {rank} has {what} {value} in {_sizes(book)}")

  return (model(held),)


def _sizes(book: Book) -> str:
  return book.d.strategy.product.partition(" = ")[0]


# Rules for names with a number in them, `stage_3_last_layer`; the number is the argument.
NUMBERED_RULES: dict[str, Callable[[int], Rule]] = {
  "stage_#_first_layer": lambda stage: _layer_of_stage(stage, last=False),
  "stage_#_last_layer": lambda stage: _layer_of_stage(stage, last=True),
  "stage_#_first_device": lambda stage: _device_of_stage(stage, last=False),
  "stage_#_last_device": lambda stage: _device_of_stage(stage, last=True),
  "expert_#_first_device": lambda expert: _device_of_expert(expert, last=False),
  "expert_#_last_device": lambda expert: _device_of_expert(expert, last=True),
  "device_#_stage": lambda rank: _of_device(rank, "pipeline stage", lambda b, place: place.coordinates[STAGE]),
  "device_#_expert": lambda rank: _of_device(rank, "expert", lambda b, place: min(_experts(b, place))),
  "device_#_tensor_rank": lambda rank: _of_device(rank, "tensor rank", lambda b, place: place.heads_part),
}
