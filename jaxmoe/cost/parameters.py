"""Parameters of a model, tensor by tensor: the count, its class, and how many bytes one device holds."""

import dataclasses
import math
from typing import Literal

from jaxmoe.config.job import ITEM_BYTES, Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.meshes.rules import PartitionRules

ParameterClass = Literal["expert", "sharded", "replicated"]


@dataclasses.dataclass(frozen=True, slots=True)
class ParameterTensor:
  """One stored tensor; `role` and `letters` say how it is split (meshes/rules.py)."""

  name: str
  role: str
  letters: str
  shape: tuple[int, ...]

  @property
  def count(self) -> int:
    return math.prod(self.shape)

  def local_count(self, rules: PartitionRules) -> int:
    """Parameters of this tensor on one device."""
    return math.prod(rules.local_shape(self.role, self.letters, self.shape))

  def dtype(self, precision: Precision) -> str:
    """Stored dtype: norms and routers are kept out of 8 bits."""
    return precision.sensitive_weights if self.role in ("norm", "router") else precision.weights

  def local_bytes(self, rules: PartitionRules, precision: Precision) -> int:
    return self.local_count(rules) * ITEM_BYTES[self.dtype(precision)]

  def parameter_class(self, rules: PartitionRules) -> ParameterClass:
    """`expert` divides by expert and width axes, `sharded` by attention or vocabulary axes, `replicated` by stage."""
    if self.role == "expert":
      return "expert"
    return "sharded" if self.role in ("attention", "vocabulary") else "replicated"


def parameter_tensors(model: ModelConfig) -> tuple[ParameterTensor, ...]:
  """Every tensor of the model, layers stacked along L."""
  sizes = {
    "L": model.num_layers, "D": model.d_model, "H": model.num_heads, "G": model.num_kv_heads, "K": model.head_dim,
    "E": model.num_experts, "F": model.d_expert, "V": model.vocab_size,
  }  # fmt: skip
  return tuple(
    ParameterTensor(name, role, letters, tuple(sizes[letter] for letter in letters))
    for name, role, letters in _layout(model)
  )


def _layout(model: ModelConfig) -> list[tuple[str, str, str]]:
  layout = [
    ("embedding", "vocabulary", "VD"),
    ("layers/attention_norm", "norm", "LD"),
    ("layers/attention/query", "attention", "LDHK"),
    ("layers/attention/key", "attention", "LDGK"),
    ("layers/attention/value", "attention", "LDGK"),
    ("layers/attention/output", "attention", "LHKD"),
    ("layers/expert_norm", "norm", "LD"),
    ("layers/router", "router", "LDE"),
    ("layers/experts/up", "expert", "LEDF"),
    ("layers/experts/down", "expert", "LEFD"),
    ("final_norm", "norm", "D"),
  ]
  if model.gated:
    layout.append(("layers/experts/gate", "expert", "LEDF"))
  if not model.tied_embeddings:
    layout.append(("head", "vocabulary", "DV"))
  if model.query_key_norm == "head":
    layout += [("layers/attention/query_norm", "norm", "LK"), ("layers/attention/key_norm", "norm", "LK")]
  if model.query_key_norm == "projection":
    layout += [("layers/attention/query_norm", "attention", "LHK"), ("layers/attention/key_norm", "attention", "LGK")]
  return layout


def total_parameters(model: ModelConfig) -> int:
  """All parameters, router, norms, embedding and head included."""
  return sum(tensor.count for tensor in parameter_tensors(model))


def active_parameters(model: ModelConfig) -> int:
  """Parameters that one token uses: of the experts only those it visits."""
  idle_share = 1 - model.experts_per_token / model.num_experts
  expert = sum(tensor.count for tensor in parameter_tensors(model) if tensor.role == "expert")
  return total_parameters(model) - round(expert * idle_share)


def parameters_by_class(model: ModelConfig, rules: PartitionRules) -> dict[ParameterClass, int]:
  """Parameters of the whole model in each class."""
  totals: dict[ParameterClass, int] = {"expert": 0, "sharded": 0, "replicated": 0}
  for tensor in parameter_tensors(model):
    totals[tensor.parameter_class(rules)] += tensor.count
  return totals


def local_parameter_bytes(model: ModelConfig, rules: PartitionRules, precision: Precision) -> int:
  """Stored weight bytes on one device."""
  return sum(tensor.local_bytes(rules, precision) for tensor in parameter_tensors(model))
