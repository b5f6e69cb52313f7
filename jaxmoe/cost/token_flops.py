"""Useful matmul FLOPs of one token, forward, in any model; every weight that a token meets counts one multiply-add.

Latent attention in decode reads the latent cache as it lies, its key and value maps absorbed into query and output;
elsewhere keys and values are expanded.
"""

import dataclasses
from typing import Literal

from jaxmoe.config.model import ModelConfig
from jaxmoe.cost.parameters import ParameterTensor, parameter_tensors

Seen = Literal["causal", "full", "decode"]


@dataclasses.dataclass(frozen=True, slots=True)
class PartFlops:
  """FLOPs by part of the model; `experts` holds every feed-forward: routed, shared and dense."""

  attention: float
  router: float
  experts: float
  head: float

  @property
  def total(self) -> float:
    return self.attention + self.router + self.experts + self.head


def token_flops(model: ModelConfig, sequence_length: int, *, seen: Seen = "causal") -> PartFlops:
  """Forward FLOPs of one token of a sequence, prediction layers included if the model has them.

  Args:
    sequence_length: of the token's sequence, or slots of its cache in decode.
    seen: keys of a query: those before it, averaged over the sequence; the whole square; or a cache's.
  """
  parts = {"attention": _score_flops(model, sequence_length, seen), "router": 0.0, "experts": 0.0, "head": 0.0}
  for tensor in parameter_tensors(model):
    if tensor.is_matrix:
      parts[_part(tensor)] += 2 * _met(model, tensor)
  return PartFlops(**parts)


def mean_keys(model: ModelConfig, layer: int, sequence_length: int, seen: Seen) -> float:
  """Keys that a query of this layer sees; prediction layers come after the last and see all."""
  near = model.local if model.local is not None and layer in model.local.layers else None
  if seen == "decode":
    return sequence_length if near is None else near.last_keys(sequence_length)
  if seen == "full":
    return sequence_length if near is None else min(sequence_length, near.size)
  return (sequence_length + 1) / 2 if near is None else near.mean_keys(sequence_length)


def _score_flops(model: ModelConfig, sequence_length: int, seen: Seen) -> float:
  """The two matmuls of every head with the keys and the values that it sees."""
  layers = range(model.num_layers + model.mtp_layers)
  keys = sum(mean_keys(model, layer, sequence_length, seen) for layer in layers)
  width = 2 * model.head_dim
  if model.latent is not None:
    width = model.head_dim + model.latent.value_dim
    if seen == "decode":
      width = model.cache_width + model.latent.rank
  return 2 * keys * model.num_heads * width


def _part(tensor: ParameterTensor) -> str:
  if tensor.role == "vocabulary" or tensor.name.startswith("mtp/projection"):
    return "head"
  return "experts" if tensor.role in ("expert", "dense") else tensor.role


def _met(model: ModelConfig, tensor: ParameterTensor) -> float:
  """Weights of this tensor that one token is multiplied with."""
  if tensor.role == "expert":
    return tensor.count * model.experts_per_token / model.num_experts
  if tensor.role != "vocabulary":
    return tensor.count
  is_head = tensor.name == "head" or model.tied_embeddings
  return tensor.count * (1 + model.mtp_layers) if is_head else 0
