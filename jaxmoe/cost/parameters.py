"""Parameters of a model, tensor by tensor: the count, its class, and how many bytes one device holds."""

import dataclasses
import functools
import math
from typing import Any, Literal

from jaxmoe.config.arrays import ceil_div
from jaxmoe.config.job import ITEM_BYTES, Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.cost.layout import (
  Layout,
  attention_layout,
  dense_layout,
  expert_layout,
  letter_sizes,
  outer_layout,
  prediction_layout,
)
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Folding

ParameterClass = Literal["expert", "sharded", "replicated"]
# Which layers of the model have a tensor: none, for what stands outside; all; those with experts; those without; those
# that predict further tokens.
Stack = Literal["none", "all", "expert", "dense", "prediction"]


@dataclasses.dataclass(frozen=True, slots=True)
class ParameterTensor:
  """One stored tensor; `role` and `letters` say how it is split (meshes/rules.py), `stack` which layers have it."""

  name: str
  role: str
  letters: str
  shape: tuple[int, ...]
  stack: Stack = "none"

  @property
  def count(self) -> int:
    return math.prod(self.shape)

  def local_count(self, rules: PartitionRules) -> int:
    """Parameters of this tensor on one device."""
    return math.prod(rules.local_shape(self.role, self.letters, self.shape))

  def layer_count(self, rules: PartitionRules) -> Any:
    """Parameters of one layer's tensor, or of one outside all layers, on the device that has most; takes arrays."""
    sizes = zip(self.letters, self.shape, strict=True)
    parts = (ceil_div(size, rules.shards(self.role, letter)) for letter, size in sizes if letter not in "LY")
    return math.prod(parts)

  @property
  def is_matrix(self) -> bool:
    """Whether tokens are multiplied with it: not a norm, a bias or a sink."""
    return not self.name.endswith(("norm", "bias", "sinks"))

  def dtype(self, precision: Precision) -> str:
    """Stored dtype: routers and all but matrices are kept out of 8 bits."""
    return precision.weights if self.is_matrix and self.role != "router" else precision.sensitive_weights

  def local_bytes(self, rules: PartitionRules, precision: Precision) -> int:
    return self.local_count(rules) * ITEM_BYTES[self.dtype(precision)]

  def replica_axes(self, strategy: Folding) -> tuple[str, ...]:
    """Axes whose devices hold this tensor alike and use it on different numbers: its gradient is summed over them."""
    rules = PartitionRules(strategy)
    own = {axis for letter in self.letters for axis in rules.axes(self.role, letter)}
    return tuple(axis for axis in rules.seen_over(self.role) if axis not in own)

  def parameter_class(self, rules: PartitionRules) -> ParameterClass:
    """`expert` divides by expert and width axes, `sharded` by attention or vocabulary axes, `replicated` by stage."""
    if self.role == "expert":
      return "expert"
    split = any(rules.axes(self.role, letter) for letter in self.letters.removeprefix("L"))
    return "sharded" if split else "replicated"


@functools.cache
def parameter_tensors(model: ModelConfig) -> tuple[ParameterTensor, ...]:
  """Every tensor of the model, layers of one kind stacked along L and multi-token-prediction layers along Y."""
  groups: list[tuple[Stack, str, str, int, Layout]] = [
    ("none", "", "", 1, outer_layout(model)),
    ("all", "layers/", "L", model.num_layers, attention_layout(model)),
    ("expert", "layers/", "L", model.expert_layers, expert_layout(model)),
    ("dense", "layers/", "L", model.dense_layers, dense_layout(model)),
    ("prediction", "mtp/", "Y", model.mtp_layers, prediction_layout(model)),
  ]
  return tuple(
    _tensor(model, prefix + name, role, letter + letters, {letter: count} if letter else {}, stack)
    for stack, prefix, letter, count, layout in groups
    if count
    for name, role, letters in layout
  )


def layer_tensors(model: ModelConfig, layer: int) -> tuple[ParameterTensor, ...]:
  """The tensors of one layer alone, without L; over all layers they add up to the stacked ones."""
  dense = model.dense is not None and layer in model.dense.layers
  layout = attention_layout(model) + (dense_layout(model) if dense else expert_layout(model))
  return tuple(_tensor(model, f"layers/{name}", role, letters, {}) for name, role, letters in layout)


def _tensor(
  model: ModelConfig, name: str, role: str, letters: str, layers: dict[str, int], stack: Stack = "none"
) -> ParameterTensor:
  sizes = {**letter_sizes(model), **layers}
  return ParameterTensor(name, role, letters, tuple(sizes[letter] for letter in letters), stack)


def total_parameters(model: ModelConfig) -> int:
  """All parameters, router, norms, embedding and head included."""
  return sum(tensor.count for tensor in parameter_tensors(model))


def active_parameters(model: ModelConfig) -> int:
  """Parameters that one token uses: of the routed experts only those it visits."""
  tensors, visits = parameter_tensors(model), model.experts_per_token
  return sum(t.count * visits // model.num_experts if t.role == "expert" else t.count for t in tensors)


def parameters_by_class(model: ModelConfig, rules: PartitionRules) -> dict[ParameterClass, int]:
  """Parameters of the whole model in each class."""
  totals: dict[ParameterClass, int] = {"expert": 0, "sharded": 0, "replicated": 0}
  for tensor in parameter_tensors(model):
    totals[tensor.parameter_class(rules)] += tensor.count
  return totals
