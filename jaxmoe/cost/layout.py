"""Which tensors a model has: (name, role, letters) of one layer's attention and feed-forward, and of what is outside.

The letters are those of meshes/rules.py; a stack of layers puts its own letter before them.
"""

from jaxmoe.config.model import ModelConfig

Layout = list[tuple[str, str, str]]


def letter_sizes(model: ModelConfig) -> dict[str, int]:
  """Size of every letter that the model's tensors are written in."""
  m = model
  sizes = {
    "D": m.d_model, "H": m.num_heads, "G": m.num_kv_heads, "K": m.head_dim, "E": m.num_experts, "F": m.d_expert,
    "V": m.vocab_size,
  }  # fmt: skip
  if m.dense is not None:
    sizes["I"] = m.dense.d_hidden
  if m.shared is not None:
    sizes["J"] = m.shared.d_hidden
  if m.latent is not None:
    latent = {"Z": m.latent.rank, "U": m.latent.plain_dim, "P": m.latent.rotary_dim, "W": m.latent.value_dim}
    sizes |= {**latent, "Q": m.latent.query_rank or 0}
  return sizes


def outer_layout(model: ModelConfig) -> Layout:
  """Embedding, final norm and head."""
  layout: Layout = [("embedding", "vocabulary", "VD"), *_norm(model, "final_norm")]
  if not model.tied_embeddings:
    layout.append(("head", "vocabulary", "DV"))
  if model.biases.head:
    layout.append(("head_bias", "vocabulary", "V"))
  return layout


def attention_layout(model: ModelConfig) -> Layout:
  """Norm and attention of one layer."""
  layout = _norm(model, "attention_norm")
  layout += _latent_attention(model) if model.latent is not None else _attention(model)
  if model.sinks:
    layout.append(("attention/sinks", "attention", "H"))
  return layout


def _attention(model: ModelConfig) -> Layout:
  layout: Layout = [
    ("attention/query", "attention", "DHK"),
    ("attention/key", "attention", "DGK"),
    ("attention/value", "attention", "DGK"),
    ("attention/output", "attention", "HKD"),
  ]
  if model.biases.query_key_value:
    names = (("query", "HK"), ("key", "GK"), ("value", "GK"))
    layout += [(f"attention/{name}_bias", "attention", letters) for name, letters in names]
  if model.biases.output:
    layout.append(("attention/output_bias", "attention", "D"))
  if model.query_key_norm == "head":
    layout += [("attention/query_norm", "head norm", "K"), ("attention/key_norm", "head norm", "K")]
  if model.query_key_norm == "projection":
    layout += [("attention/query_norm", "attention", "HK"), ("attention/key_norm", "attention", "GK")]
  return layout


def _latent_attention(model: ModelConfig) -> Layout:
  """Queries through their own latent vector if they have one; key and value out of the shared latent vector."""
  assert model.latent is not None
  query: Layout = [("attention/query", "attention", "DHK")]
  if model.latent.query_rank is not None:
    query = [
      ("attention/query_down", "attention", "DQ"),
      ("attention/query_latent_norm", "norm", "Q"),
      ("attention/query", "attention", "QHK"),
    ]
  return [
    *query,
    ("attention/latent_down", "attention", "DZ"),
    ("attention/rotary_key", "attention", "DP"),
    ("attention/latent_norm", "norm", "Z"),
    ("attention/key", "attention", "ZHU"),
    ("attention/value", "attention", "ZHW"),
    ("attention/output", "attention", "HWD"),
  ]


def expert_layout(model: ModelConfig) -> Layout:
  """Norm, router, routed experts and shared expert of one layer."""
  layout = [*_norm(model, "expert_norm"), ("router", "router", "DE"), *_network(model, "experts", "expert", "E", "F")]
  if model.biases.router:
    layout.append(("router_bias", "router", "E"))
  if model.routing.selection_bias:
    layout.append(("selection_bias", "router", "E"))
  if model.biases.expert:
    layout += [(f"experts/{name}_bias", "expert", "EF") for name in _inward(model)]
    layout.append(("experts/down_bias", "expert", "ED"))
  if model.shared is not None:
    layout += _network(model, "shared", "dense", "", "J")
    if model.shared.weighed:
      layout.append(("shared_gate", "router", "D"))
  return layout


def dense_layout(model: ModelConfig) -> Layout:
  """Norm and feed-forward of one layer without experts."""
  return [*_norm(model, "dense_norm"), *_network(model, "dense", "dense", "", "I")]


def prediction_layout(model: ModelConfig) -> Layout:
  """One multi-token-prediction layer: norms of the hidden state and of the next token, their projection, a layer."""
  norms = [entry for name in ("hidden_norm", "embedding_norm", "final_norm") for entry in _norm(model, name)]
  projections: Layout = [("projection/hidden", "dense", "DD"), ("projection/embedding", "dense", "DD")]
  return [*norms, *projections, *attention_layout(model), *expert_layout(model)]


def _network(model: ModelConfig, name: str, role: str, stack: str, width: str) -> Layout:
  inward: Layout = [(f"{name}/{matrix}", role, f"{stack}D{width}") for matrix in _inward(model)]
  return [*inward, (f"{name}/down", role, f"{stack}{width}D")]


def _inward(model: ModelConfig) -> tuple[str, ...]:
  """Matrices that a feed-forward starts with."""
  return ("up", "gate") if model.gated else ("up",)


def _norm(model: ModelConfig, name: str) -> Layout:
  bias = [(f"{name}_bias", "norm", "D")] if model.biases.norm else []
  return [(name, "norm", "D"), *bias]
