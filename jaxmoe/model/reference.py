"""The same transformer on one device in plain jnp, read off the formulas; every sharded run is tested against it.

It shares no code with the sharded model. Parameters are nested dicts of whole arrays (`nnx.to_pure_dict`).
"""

import jax
import jax.numpy as jnp

from jaxmoe.config.model import ModelConfig


def forward(model: ModelConfig, parameters, tokens_BS, *, group_tokens: int, capacity: int | None, dtype=None):
  """Logits of every token and, per layer, the balance loss and the share of dropped choices.

  Args:
    group_tokens: consecutive tokens that share one capacity: what one device dispatches at once.
    capacity: rows that one group may send to one expert; None drops nothing.
    dtype: of activations and weights in use; default the stored dtype.

  Returns:
    logits_BSV, balance_L, dropped_L.
  """
  cast = lambda w: w if dtype is None else w.astype(dtype)  # noqa: E731
  x = cast(parameters["embedding"])[tokens_BS]
  balance, dropped = [], []
  for layer in range(model.num_layers):
    p = jax.tree.map(lambda w, layer=layer: w[layer], parameters["layers"])
    x = x + attention(model, p["attention"], rms_norm(x, p["attention_norm"]["scale"], model.norm_eps), cast)
    y, layer_balance, layer_dropped = mixture(
      model, p, rms_norm(x, p["expert_norm"]["scale"], model.norm_eps), group_tokens, capacity, cast
    )
    x = x + y
    balance.append(layer_balance)
    dropped.append(layer_dropped)
  x = rms_norm(x, parameters["final_norm"]["scale"], model.norm_eps)
  head = cast(parameters["embedding"]).T if model.tied_embeddings else cast(parameters["head"])
  return (x @ head).astype(_wide(x.dtype)), jnp.stack(balance), jnp.stack(dropped)


def loss(model: ModelConfig, parameters, tokens_BS, targets_BS, **dispatch):
  """Mean cross entropy in nats a token plus the weighted balance loss."""
  logits, balance, _ = forward(model, parameters, tokens_BS, **dispatch)
  at_target = jnp.take_along_axis(jax.nn.log_softmax(logits), targets_BS[..., None], axis=-1)
  return -at_target.mean() + model.aux_loss_coef * balance.mean()


def rms_norm(x, scale, eps: float):
  wide = x.astype(_wide(x.dtype))
  root = jnp.sqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
  return (wide / root * jnp.broadcast_to(scale.astype(wide.dtype), x.shape)).astype(x.dtype)


def attention(model: ModelConfig, p, x_BSD, cast):
  """Causal attention; each key-value head serves H / G query heads."""
  S, repeat = x_BSD.shape[1], model.num_heads // model.num_kv_heads
  query, key, value = (jnp.einsum("bsd,dhk->bhsk", x_BSD, cast(p[name])) for name in ("query", "key", "value"))
  if model.query_key_norm == "head":
    query = rms_norm(query, p["query_norm"]["scale"], model.norm_eps)
    key = rms_norm(key, p["key_norm"]["scale"], model.norm_eps)
  query, key = rotate(query, model.rope_theta), rotate(key, model.rope_theta)
  key, value = jnp.repeat(key, repeat, axis=1), jnp.repeat(value, repeat, axis=1)
  scores = jnp.einsum("bhqk,bhsk->bhqs", query, key).astype(_wide(x_BSD.dtype)) / model.head_dim**0.5
  scores = jnp.where(jnp.tril(jnp.ones((S, S), bool))[None, None], scores, -jnp.inf)
  mixed = jnp.einsum("bhqs,bhsk->bhqk", jax.nn.softmax(scores, axis=-1).astype(x_BSD.dtype), value)
  return jnp.einsum("bhqk,hkd->bqd", mixed, cast(p["output"]))


def rotate(x_BHSK, theta: float):
  """Complex rotation by position x theta^(-2i/K) of the pairs (i, i + K/2)."""
  S, K = x_BHSK.shape[-2:]
  wide = _wide(x_BHSK.dtype)
  frequency = theta ** (-2 * jnp.arange(K // 2, dtype=wide) / K)
  angle = (jnp.arange(S, dtype=wide)[:, None] * frequency[None, :])[None, None]
  pairs = jax.lax.complex(x_BHSK[..., : K // 2].astype(wide), x_BHSK[..., K // 2 :].astype(wide)) * jnp.exp(1j * angle)
  return jnp.concatenate([pairs.real, pairs.imag], axis=-1).astype(x_BHSK.dtype)


def mixture(model: ModelConfig, p, x_BSD, group_tokens: int, capacity: int | None, cast):
  """Every expert on every token, weighted by gates that are zero where a choice was not made or was dropped."""
  (B, S, D), E, X = x_BSD.shape, model.num_experts, model.experts_per_token
  wide = _wide(x_BSD.dtype)
  x = x_BSD.reshape(B * S, D)
  probabilities = jax.nn.softmax(x.astype(wide) @ p["router"]["weight"].astype(wide), axis=-1)
  order = jnp.argsort(-probabilities, axis=-1, stable=True)[:, :X]
  gates = jnp.take_along_axis(probabilities, order, axis=-1)
  gates = gates / gates.sum(-1, keepdims=True) if model.norm_topk_prob else gates
  kept = kept_choices(order, E, group_tokens, capacity)
  chosen_TXE = order[:, :, None] == jnp.arange(E)[None, None, :]
  weight_TE = jnp.sum(jnp.where(chosen_TXE & kept[:, :, None], gates[:, :, None], 0), axis=1)
  y = jnp.einsum("te,etd->td", weight_TE.astype(x.dtype), all_experts(model, jax.tree.map(cast, p["experts"]), x))
  balance = E * jnp.sum(jax.lax.stop_gradient(chosen_TXE.astype(wide).mean((0, 1))) * probabilities.mean(0))
  return y.reshape(B, S, D), balance, 1 - kept.mean()


def all_experts(model: ModelConfig, weights, x_TD):
  """Every expert on every token, (E, T, D)."""
  act = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}[model.activation]
  up = jnp.einsum("td,edf->etf", x_TD, weights["up"])
  hidden = act(jnp.einsum("td,edf->etf", x_TD, weights["gate"])) * up if model.gated else act(up)
  return jnp.einsum("etf,efd->etd", hidden, weights["down"])


def kept_choices(order_TX, num_experts: int, group_tokens: int, capacity: int | None):
  """Which choices fit: in each group an expert takes first choices in token order, then second ones, up to C."""
  T, X = order_TX.shape
  if capacity is None:
    return jnp.ones((T, X), bool)
  groups = order_TX.reshape(-1, group_tokens, X)
  taken = jnp.zeros((groups.shape[0], num_experts), int)
  kept = []
  for choice in range(X):
    one_hot = jax.nn.one_hot(groups[:, :, choice], num_experts, dtype=int)
    before = jnp.cumsum(one_hot, axis=1) - one_hot + taken[:, None, :]
    kept.append(jnp.take_along_axis(before, groups[:, :, choice : choice + 1], axis=2)[..., 0] < capacity)
    taken = taken + one_hot.sum(axis=1)
  return jnp.stack(kept, axis=-1).reshape(T, X)


def _wide(dtype):
  return jnp.promote_types(dtype, jnp.float32)
