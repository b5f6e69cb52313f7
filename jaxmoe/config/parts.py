"""Parts of a model that not every family has; `ModelConfig` holds one of each, absent by default."""

import dataclasses
from typing import Literal

from jaxmoe.config.legal import IllegalError, multiples, one
from jaxmoe.meshes.errors import UsageError

Score = Literal["softmax", "sigmoid", "sparsemixer"]
LocalKind = Literal["sliding", "chunked"]


def check_sizes(owner: str, part: object, names: tuple[str, ...]) -> None:
  """Raises `IllegalError` where a size of `part` is below one."""
  for name in names:
    if getattr(part, name) < 1:
      what = f"{owner}.{name} must be at least 1, got {getattr(part, name)}"
      raise IllegalError(part, what, one(name, lambda: multiples(1, 1)), prefix=f"{owner}.")


def check_layers(owner: str, layers: tuple[int, ...]) -> None:
  """Raises `UsageError` unless these are layer numbers in rising order."""
  if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
    raise UsageError(f"{owner}.layers must be layer numbers in rising order, got {list(layers)[:8]}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttention:
  """Multi-head latent attention: keys and values of all heads are read from one low-rank vector a token.

  Attributes:
    query_rank: Q, width of the queries' own latent vector; None if they are projected from D.
    rank: Z, width of the latent vector of keys and values: what the cache keeps, beside a rotary key.
    plain_dim: U, width of a head's part without positions.
    rotary_dim: P, width of a head's rotary part; its key is shared by all heads.
    value_dim: W, width of a head's value.
  """

  query_rank: int | None
  rank: int
  plain_dim: int
  rotary_dim: int
  value_dim: int

  def __post_init__(self):
    given = () if self.query_rank is None else ("query_rank",)
    check_sizes("model.latent", self, (*given, "rank", "plain_dim", "rotary_dim", "value_dim"))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LocalAttention:
  """Layers in which a query sees near keys only: the last `size`, or those of its own chunk of `size`."""

  kind: LocalKind
  size: int
  layers: tuple[int, ...]

  def __post_init__(self):
    check_sizes("model.local", self, ("size",))
    check_layers("model.local", self.layers)

  def mean_keys(self, sequence_length: int) -> float:
    """Keys that a causal query sees, averaged over a whole sequence."""
    S, w = sequence_length, min(self.size, sequence_length)
    if self.kind == "sliding":
      return w - w * (w - 1) / (2 * S)
    whole, rest = divmod(S, w)
    return (whole * w * (w + 1) + rest * (rest + 1)) / (2 * S)

  def last_keys(self, sequence_length: int) -> int:
    """Keys that the last query of a sequence sees."""
    return min(sequence_length, self.size) if self.kind == "sliding" else (sequence_length - 1) % self.size + 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DenseLayers:
  """Layers whose feed-forward is one network of hidden width `d_hidden` (I) rather than experts."""

  layers: tuple[int, ...]
  d_hidden: int

  def __post_init__(self):
    check_sizes("model.dense", self, ("d_hidden",))
    check_layers("model.dense", self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SharedExpert:
  """What every token visits beside its routed experts, of hidden width `d_hidden` (J); several count as one.

  Attributes:
    weighed: a learned sigmoid of the token scales its output.
  """

  d_hidden: int
  weighed: bool = False

  def __post_init__(self):
    check_sizes("model.shared", self, ("d_hidden",))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
  """How experts are chosen beyond a softmax and its best.

  Attributes:
    selection_bias: a bias for each expert that steers the choice but not the weight (balancing without a loss).
    groups, groups_per_token: experts lie in groups of which a token may visit only its best few.
    scale: factor on the routed experts' output.
    scales_input: a gate multiplies what its expert reads, not what it gives.
  """

  score: Score = "softmax"
  selection_bias: bool = False
  groups: int = 1
  groups_per_token: int = 1
  scale: float = 1.0
  scales_input: bool = False

  def __post_init__(self):
    check_sizes("model.routing", self, ("groups", "groups_per_token"))
    if self.groups_per_token > self.groups:
      what = f"model.routing.groups_per_token must be at most groups={self.groups}, got {self.groups_per_token}"
      visited = one("groups_per_token", lambda: multiples(1, self.groups_per_token, most=self.groups))
      raise IllegalError(self, what, visited, prefix="model.routing.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Biases:
  """Which linear maps add a bias."""

  query_key_value: bool = False
  output: bool = False
  router: bool = False
  expert: bool = False
  norm: bool = False
  head: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rotary:
  """Positions beyond the plain rotation of whole heads.

  Attributes:
    scaling: name of the rule that stretches them to longer sequences, such as `yarn`.
    share: part of a head that turns.
    skipped_layers: layers without positions.
    tempered: queries grow with their position.
  """

  scaling: str | None = None
  share: float = 1.0
  skipped_layers: tuple[int, ...] = ()
  tempered: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Multipliers:
  """Fixed factors: on embeddings, on scores (None for 1/sqrt(K)), on what a layer adds, and a divisor of logits."""

  embedding: float = 1.0
  attention: float | None = None
  residual: float = 1.0
  logits: float = 1.0
