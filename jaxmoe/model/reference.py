"""The same transformer on one device in plain jnp, as literally as the formulas read; every sharded run is tested on it.

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
  return (wide / jnp.sqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps) * scale.astype(wide.dtype)).astype(x.dtype)


def attention(model: ModelConfig, p, x_BSD, cast):
  """Causal attention, one query head at a time."""
  S, repeat = x_BSD.shape[1], model.num_heads // model.num_kv_heads
  query, key = (jnp.einsum("bsd,dhk->bhsk", x_BSD, cast(p[name])) for name in ("query", "key"))
  value = jnp.einsum("bsd,dhk->bhsk", x_BSD, cast(p["value"]))
  if model.query_key_norm == "head":
    query = rms_norm(query, p["query_norm"]["scale"], model.norm_eps)
    key = rms_norm(key, p["key_norm"]["scale"], model.norm_eps)
  query, key = rotate(query, model.rope_theta), rotate(key, model.rope_theta)
  out = jnp.zeros_like(x_BSD)
  for h in range(model.num_heads):
    g = h // repeat
    scores = jnp.einsum("bqk,bsk->bqs", query[:, h], key[:, g]).astype(_wide(x_BSD.dtype)) / model.head_dim**0.5
    scores = jnp.where(jnp.tril(jnp.ones((S, S), bool)), scores, -jnp.inf)
    mixed = jax.nn.softmax(scores, axis=-1).astype(x_BSD.dtype) @ value[:, g]
    out = out + mixed @ cast(p["output"])[h]
  return out


def rotate(x_BHSK, theta: float):
  """Complex rotation by position x theta^(-2i/K) of the pairs (i, i + K/2)."""
  S, K = x_BHSK.shape[-2:]
  wide = _wide(x_BHSK.dtype)
  angle = jnp.arange(S, dtype=wide)[:, None] / theta ** (2 * jnp.arange(K // 2, dtype=wide) / K)
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
  y = jnp.zeros_like(x)
  for e in range(E):
    weight = jnp.where((order == e) & kept, gates, 0).sum(-1).astype(x.dtype)
    y = y + weight[:, None] * expert(model, {k: cast(v[e]) for k, v in p["experts"].items()}, x)
  share = jnp.stack([(order == e).mean() for e in range(E)])
  balance = E * jnp.sum(jax.lax.stop_gradient(share) * probabilities.mean(0))
  return y.reshape(B, S, D), balance, 1 - kept.mean()


def expert(model: ModelConfig, weights, x_TD):
  act = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}[model.activation]
  if model.gated:
    return (act(x_TD @ weights["gate"]) * (x_TD @ weights["up"])) @ weights["down"]
  return act(x_TD @ weights["up"]) @ weights["down"]


def kept_choices(order_TX, num_experts: int, group_tokens: int, capacity: int | None):
  """Which choices fit: in each group, an expert takes first choices in token order, then second ones, up to capacity."""
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
