"""Shape of a Mixture-of-Experts transformer: layers of attention and a feed-forward, most of them of routed experts."""

import dataclasses
from typing import Literal

from jaxmoe.config.legal import IllegalError, Remedy, divisors, multiples, nearest, one
from jaxmoe.config.parts import (
  Biases,
  DenseLayers,
  LatentAttention,
  LocalAttention,
  Multipliers,
  Rotary,
  Routing,
  SharedExpert,
  check_sizes,
)
from jaxmoe.meshes.errors import UsageError

Activation = Literal["silu", "gelu", "clamped"]
Norm = Literal["rms", "layer"]
QueryKeyNorm = Literal["none", "head", "projection", "unit"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
  """Dimensions, in the letters used everywhere: L, D, H, G, K, E, F, V.

  Attributes:
    num_layers: L.
    d_model: D.
    num_heads: H query heads.
    num_kv_heads: G key-value heads; H for multi-head, below H for grouped-query attention.
    head_dim: K, of queries and keys.
    num_experts: E in every layer that is not dense.
    experts_per_token: experts that each token visits.
    d_expert: F, hidden width of one expert.
    vocab_size: V.
    gated: an expert is down(act(gate x) * up x) if true, else down(act(up x)).
    query_key_norm: RMSNorm of queries and keys: none, over each head, over the whole projection, or over each head
      without a weight.
    tied_embeddings: the head reuses the embedding.
    norm_topk_prob: the chosen experts' probabilities are scaled to sum to one.
    aux_loss_coef: weight of the load-balancing loss in training.
    norm: RMSNorm, or LayerNorm, of the residual stream.
    clip_qkv: bound on the entries of queries, keys and values.
    sinks: a learned logit for each head takes part in its softmax and is then dropped.
    latent, local, dense, shared, routing, biases, rotary, multipliers: see `parts`; absent by default.
    mtp_layers: layers beside the L that predict further tokens, each two norms, a projection of 2D to D, an expert
      layer and a norm before the model's own head; counted wherever they are above zero, run in training only.
    quantization: how the checkpoint is stored, for information; `job.precision` says what a deployment stores.

  Raises:
    UsageError: a size below one or sizes that cannot go together.
  """

  name: str
  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  num_experts: int
  experts_per_token: int
  d_expert: int
  vocab_size: int
  gated: bool = True
  activation: Activation = "silu"
  query_key_norm: QueryKeyNorm = "none"
  tied_embeddings: bool = False
  norm_topk_prob: bool = True
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  max_sequence_length: int | None = None
  aux_loss_coef: float = 0.01
  norm: Norm = "rms"
  clip_qkv: float | None = None
  sinks: bool = False
  latent: LatentAttention | None = None
  local: LocalAttention | None = None
  dense: DenseLayers | None = None
  shared: SharedExpert | None = None
  routing: Routing = dataclasses.field(default_factory=Routing)
  biases: Biases = dataclasses.field(default_factory=Biases)
  rotary: Rotary = dataclasses.field(default_factory=Rotary)
  multipliers: Multipliers = dataclasses.field(default_factory=Multipliers)
  mtp_layers: int = 0
  quantization: str | None = None

  def __post_init__(self):
    check_sizes("model", self, _SIZES)
    self._check_attention()
    self._check_experts()
    self._check_layers()
    self._check_latent()

  def _check_attention(self):
    H, G, K = self.num_heads, self.num_kv_heads, self.head_dim
    if H % G:
      raise self._illegal(
        f"num_heads={H} must be a multiple of model.num_kv_heads={G}",
        one("num_kv_heads", lambda: nearest(divisors(H), G)),
        one("num_heads", lambda: multiples(G, H)),
      )
    if K % 2:
      rotary = 0 if self.latent is None else self.latent.rotary_dim
      latent = Remedy(("head_dim", "latent.plain_dim"), lambda: [(K + 1, K + 1 - rotary)])
      raise self._illegal(
        f"head_dim must be even for rotary positions, got {K}",
        one("head_dim", lambda: multiples(2, K)),
        *([] if self.latent is None else [latent]),
      )

  def _check_experts(self):
    E, chosen, groups = self.num_experts, self.experts_per_token, self.routing.groups
    if chosen > E:
      raise self._illegal(
        f"experts_per_token must lie in [1, num_experts={E}], got {chosen}",
        one("experts_per_token", lambda: multiples(1, chosen, most=E)),
      )
    if E % groups:
      raise self._illegal(
        f"num_experts={E} must divide into routing.groups={groups}",
        one("num_experts", lambda: multiples(groups, E)),
        one("routing.groups", lambda: nearest(divisors(E), groups)),
      )

  def _check_layers(self):
    for name, layers in (("dense", self.dense), ("local", self.local)):
      if layers is not None and layers.layers and layers.layers[-1] >= self.num_layers:
        raise UsageError(
          f"model.{name}.layers must lie below num_layers={self.num_layers}, got {layers.layers[-1]};"
          f" layers are 0 to {self.num_layers - 1}"
        )
    if self.expert_layers < 1:
      raise UsageError("model.dense.layers names every layer; leave at least one to experts")
    if self.mtp_layers < 0:
      raise self._illegal(f"mtp_layers must be at least 0, got {self.mtp_layers}", one("mtp_layers", lambda: [0]))

  def _check_latent(self):
    if self.latent is None:
      return
    K, H = self.latent.plain_dim + self.latent.rotary_dim, self.num_heads
    if (self.head_dim, self.num_kv_heads) != (K, H):
      raise self._illegal(
        f"latent needs head_dim = plain_dim + rotary_dim = {K} and num_kv_heads = num_heads ="
        f" {H}, got head_dim {self.head_dim} and num_kv_heads {self.num_kv_heads}",
        one("head_dim", lambda: [K]),
        one("num_kv_heads", lambda: [H]),
        Remedy(("head_dim", "num_kv_heads"), lambda: [(K, H)]),
      )

  def _illegal(self, what: str, *remedies: Remedy) -> IllegalError:
    return IllegalError(self, f"model.{what}", *remedies, prefix="model.")

  @property
  def expert_matrices(self) -> int:
    """Weight matrices of one expert: gate, up and down, or up and down."""
    return 3 if self.gated else 2

  @property
  def dense_layers(self) -> int:
    """Layers whose feed-forward has no experts."""
    return 0 if self.dense is None else len(self.dense.layers)

  @property
  def expert_layers(self) -> int:
    """Layers whose feed-forward is routed experts."""
    return self.num_layers - self.dense_layers

  @property
  def cache_width(self) -> int:
    """Numbers that one layer keeps of one token: 2 G K, or the latent vector and the rotary key."""
    if self.latent is not None:
      return self.latent.rank + self.latent.rotary_dim
    return 2 * self.num_kv_heads * self.head_dim


_SIZES = (
  "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim",
  "num_experts", "experts_per_token", "d_expert", "vocab_size",
)  # fmt: skip
