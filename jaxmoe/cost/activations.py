"""What backward reads of one layer and one microbatch, tensor by tensor: bytes on one device. Sizes may be arrays.

The layer's own input is not among them. Attention's scores are taken as recomputed; `score_tensors` says what they
would take.
"""

import dataclasses
from typing import Any

from jaxmoe.config.arrays import ceil_div
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import MASK_BYTES, WIDE_BYTES
from jaxmoe.cost.flops import busiest_rows, gathered_rows
from jaxmoe.cost.layer import multiplied_keys, residual_tokens, sequence_shards


@dataclasses.dataclass(frozen=True, slots=True)
class SavedTensor:
  """One tensor that forward writes and backward reads."""

  name: str
  bytes: Any


def total_bytes(tensors: list[SavedTensor]) -> Any:
  return sum(tensor.bytes for tensor in tensors)


def layer_input_bytes(d: Shares) -> Any:
  """The residual stream where a layer starts."""
  return residual_tokens(d) * d.model.d_model * ITEM_BYTES[d.job.precision.compute]


def attention_tensors(d: Shares) -> list[SavedTensor]:
  """Normed tokens, what is projected from them, and what goes into the last projection."""
  m, item, T = d.model, ITEM_BYTES[d.job.precision.compute], d.microbatch_tokens
  heads, kv_heads = (
    ceil_div(n, d.rules.shards("attention", x)) for n, x in ((m.num_heads, "H"), (m.num_kv_heads, "G"))
  )
  normed = SavedTensor("normed tokens", item * ceil_div(T, sequence_shards(d)) * m.d_model)
  if m.latent is not None:
    numbers = heads * 2 * (m.head_dim + m.latent.value_dim) + m.cache_width + (m.latent.query_rank or 0)
    return [normed, SavedTensor("latent vectors, queries, keys, values and their mix", item * T * numbers)]
  widths = {"queries": heads, "keys": kv_heads, "values": kv_heads, "mixed values": heads}
  return [normed, *(SavedTensor(name, item * T * m.head_dim * width) for name, width in widths.items())]


def score_tensors(d: Shares) -> list[SavedTensor]:
  """Of attention that is not fused and keeps its scores: softmax, dropout's mask and its result."""
  item, heads = ITEM_BYTES[d.job.precision.compute], ceil_div(d.model.num_heads, d.rules.shards("attention", "H"))
  scores = d.microbatch_tokens * multiplied_keys(d) * heads
  bytes_by_name = {"softmax": item, "mask of scores": MASK_BYTES, "dropped scores": item}
  return [SavedTensor(name, each * scores) for name, each in bytes_by_name.items()]


def dropout_tensors(d: Shares) -> list[SavedTensor]:
  """Masks of what attention and feed-forward add to the residual stream, of a model with dropout."""
  mask = MASK_BYTES * residual_tokens(d) * d.model.d_model
  return [SavedTensor(f"mask of {name}", mask) for name in ("attention", "feed-forward")]


def expert_tensors(d: Shares, load: Any = 1) -> list[SavedTensor]:
  """The stream between attention and feed-forward, normed too; probabilities; what experts read, and hidden rows.

  A single expert is not chosen, so it has no probabilities, and reads the normed tokens themselves. In serving nothing
  is kept, and the rows are those of the dispatch buffers.
  """
  m, item = d.model, ITEM_BYTES[d.job.precision.compute]
  chosen = m.num_experts > 1
  tensors = [
    *_stream(d),
    SavedTensor("probabilities", chosen * d.dispatch_tokens * m.num_experts * max(WIDE_BYTES, item)),
    SavedTensor("dispatched rows", chosen * d.train * item * read_rows(d, load) * m.d_model),
    SavedTensor("hidden rows", hidden_bytes(d, load) * (1 - d.hidden_recomputed)),
  ]
  if m.shared is not None:
    width = ceil_div(m.shared.d_hidden, d.rules.shards("dense", "J"))
    tensors.append(SavedTensor("hidden rows, shared", item * d.microbatch_tokens * width * m.expert_matrices))
  return tensors


def dense_tensors(d: Shares) -> list[SavedTensor]:
  """The same of a layer without experts."""
  m, item = d.model, ITEM_BYTES[d.job.precision.compute]
  if m.dense is None:
    return []
  width = ceil_div(m.dense.d_hidden, d.rules.shards("dense", "I"))
  return [*_stream(d), SavedTensor("hidden rows", item * d.microbatch_tokens * width * m.expert_matrices)]


def _stream(d: Shares) -> list[SavedTensor]:
  return [SavedTensor(name, layer_input_bytes(d)) for name in ("residual stream", "normed tokens")]


def hidden_bytes(d: Shares, load: Any = 1) -> Any:
  """Hidden rows of all experts of one layer."""
  width = ceil_div(d.model.d_expert, d.rules.shards("expert", "F"))
  return ITEM_BYTES[d.job.precision.compute] * buffer_rows(d, load) * width * d.model.expert_matrices


def read_rows(d: Shares, load: Any = 1) -> Any:
  """Rows that experts read: with `dense` all of them the same tokens of the group."""
  return d.dispatch_tokens * d.rules.shards("expert", "E") if d.job.transport == "dense" else buffer_rows(d, load)


def buffer_rows(d: Shares, load: Any = 1) -> Any:
  """Rows of the arrays that experts read and write: fixed buffers, room for the worst, or as many as come."""
  if d.job.transport == "gather":
    return gathered_rows(d)
  return busiest_rows(d, load)
