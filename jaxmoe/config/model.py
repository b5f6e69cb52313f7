"""Shape of a Mixture-of-Experts transformer: every layer is attention and a routed expert feed-forward."""

import dataclasses
from typing import Literal

from jaxmoe.meshes.errors import UsageError

Activation = Literal["silu", "gelu"]
QueryKeyNorm = Literal["none", "head", "projection"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
  """Dimensions, in the letters used everywhere: L, D, H, G, K, E, F, V.

  Attributes:
    num_layers: L.
    d_model: D.
    num_heads: H query heads.
    num_kv_heads: G key-value heads; H for multi-head, below H for grouped-query attention.
    head_dim: K.
    num_experts: E in every layer.
    experts_per_token: experts that each token visits.
    d_expert: F, hidden width of one expert.
    vocab_size: V.
    gated: an expert is down(act(gate x) * up x) if true, else down(act(up x)).
    query_key_norm: RMSNorm of queries and keys: none, over each head, or over the whole projection.
    tied_embeddings: the head reuses the embedding.
    norm_topk_prob: the chosen experts' probabilities are scaled to sum to one.
    aux_loss_coef: weight of the load-balancing loss in training.

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

  def __post_init__(self):
    for name in _SIZES:
      if getattr(self, name) < 1:
        raise UsageError(f"model.{name} must be at least 1, got {getattr(self, name)}")
    if self.num_heads % self.num_kv_heads:
      raise UsageError(
        f"model.num_heads={self.num_heads} must be a multiple of model.num_kv_heads={self.num_kv_heads};"
        f" the nearest legal num_kv_heads is {nearest_divisor(self.num_heads, self.num_kv_heads)}"
      )
    if self.experts_per_token > self.num_experts:
      raise UsageError(
        f"model.experts_per_token must lie in [1, num_experts={self.num_experts}], got {self.experts_per_token}"
      )
    if self.head_dim % 2:
      raise UsageError(
        f"model.head_dim must be even for rotary positions, got {self.head_dim}; use {self.head_dim + 1}"
      )

  @property
  def expert_matrices(self) -> int:
    """Weight matrices of one expert: gate, up and down, or up and down."""
    return 3 if self.gated else 2


_SIZES = (
  "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim",
  "num_experts", "experts_per_token", "d_expert", "vocab_size",
)  # fmt: skip


def nearest_divisor(number: int, wish: int) -> int:
  """The divisor of `number` closest to `wish`, the larger one on a tie."""
  divisors = [d for d in range(1, number + 1) if number % d == 0]
  return min(divisors, key=lambda d: (abs(d - wish), -d))
