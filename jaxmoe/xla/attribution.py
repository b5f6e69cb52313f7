"""What each temporary buffer of a compiled step is: by what made it, its shape, and when it is needed."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from jaxmoe.xla import scopes

GRADIENTS = "gradients"
KEPT = "activations kept for backward"
WORKING = "activations at work"
SCORES = "attention scores"
DISPATCH = "dispatch buffers"
CACHE = "KV cache, copied"
WEIGHTS = "weights, gathered or converted"
OPTIMIZER = "optimizer temporaries"
LOGITS = "logits"
INDICES = "inputs, indices, masks and counts"
UNKNOWN = "unknown"

CLASSES = (GRADIENTS, KEPT, WORKING, SCORES, DISPATCH, CACHE, WEIGHTS, OPTIMIZER, LOGITS, INDICES, UNKNOWN)

_OF_ARGUMENTS = {"parameters": WEIGHTS, "optimizer": OPTIMIZER, "cache": CACHE, "inputs": INDICES}
_BACKWARD = re.compile(r"transpose\(")
_FLOATING = re.compile(r"b?f\d")
_COLLECTIVE = re.compile(r"/(psum|all_|reduce_scatter|ppermute)\w*$")
_STACKS = re.compile(r"/dynamic_update_slice$")  # one step's or layer's after the other
_TO_SCORES = re.compile(r"->bgrqs/dot_general$")
_TO_LOGITS = re.compile(r"(?<!transpose\()jvp\(head\)/(\w+/)*td,dv->tv/dot_general$")
_HIDDEN = re.compile(r"->erf\b")  # of the experts' first matmul
_PLACES_IN_CACHE = re.compile(r"/(scatter|dynamic_slice|dynamic_update_slice)$|dynamic_(update_)?index_in_dim")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
  """Lengths of dimensions on one device, by which arrays are told apart.

  Attributes:
    weights: shapes of the parameters.
    experts: of the whole model.
    hidden, vocabulary: of an expert and of the head, this device's part.
    keys: tokens that attention looks at.
    heads, kv_heads: of one device.
    cached: numbers that a token stores of each of the latter.
    tokens: that the experts of one microbatch are given; arrays of more rows there are dispatch buffers.
  """

  train: bool
  decode: bool
  weights: tuple[tuple[int, ...], ...]
  d_model: int
  experts: int
  hidden: int
  vocabulary: int
  heads: int
  kv_heads: int
  cached: int
  keys: int
  tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
  """Of one buffer.

  Attributes:
    names: op names of what makes it, or of what surrounds it if that has none.
    argument: class of the arguments whose numbers it holds; empty if it is computed.
    crosses: needed when the first layer's backward pass starts, and made before.
  """

  names: Sequence[str]
  dtype: str
  dims: tuple[int, ...]
  argument: str = ""
  crosses: bool = False


def class_of(facts: Facts, sizes: Sizes) -> str:
  """One of `CLASSES`; the first rule that holds decides."""
  if facts.argument:
    return _OF_ARGUMENTS[facts.argument]
  buffer = _Computed(facts, sizes)
  return next((name for holds, name in _RULES if holds(buffer)), UNKNOWN)


class _Computed:
  """What the rules ask of a buffer that is no argument's."""

  def __init__(self, facts: Facts, sizes: Sizes):
    self.names, self.dtype, self.dims, self.sizes = facts.names, facts.dtype, facts.dims, sizes
    self.within = {scope for name in facts.names for scope in scopes.path(name)}
    self.backward = self.made_by(_BACKWARD)
    self.kept = facts.crosses and not self.backward
    self.elements = math.prod(facts.dims)
    self.long = _long(facts.dims)

  def made_by(self, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(name) for name in self.names)

  def inside(self, *parts: str) -> bool:
    return not self.within.isdisjoint(parts)

  def carries_numbers(self) -> bool:
    """Floats; or words that a collective packs 8- or 16-bit floats into."""
    return bool(_FLOATING.match(self.dtype)) or (self.dtype.startswith("u") and self.made_by(_COLLECTIVE))

  def is_cache(self) -> bool:
    """Keys or values: those of attention's own work count only in decode, where they can come from nowhere else."""
    wanted = Counter(_long((self.sizes.keys, self.sizes.kv_heads, self.sizes.cached)))
    if self.sizes.train or wanted - Counter(self.dims):
      return False
    elsewhere = not self.names or any("attention" not in scopes.path(name) for name in self.names)
    return self.sizes.decode or elsewhere or self.made_by(_PLACES_IN_CACHE)

  def is_weight_shaped(self) -> bool:
    """Has the dimensions of a parameter: whole, or of one layer."""
    return any(self.long in (_long(weight), _long(weight[1:])) for weight in self.sizes.weights)

  def is_gradient(self) -> bool:
    """Of one parameter; or of several, joined for one collective."""
    if self.is_weight_shaped() and (self.backward or (self.kept and not self.made_by(_STACKS))):
      return True
    return self.backward and len(self.dims) == 1 and self.elements > self.sizes.d_model

  def is_weight(self) -> bool:
    unlike_tokens = self.sizes.tokens not in self.dims or len(self.long) > 2
    return self.is_weight_shaped() and not self.within and unlike_tokens

  def is_logits(self) -> bool:
    """As wide as the vocabulary; where the model is as wide, by what makes them."""
    if not self.inside("head", "loss") or self.sizes.vocabulary not in self.dims:
      return False
    return self.sizes.vocabulary != self.sizes.d_model or self.inside("loss") or self.made_by(_TO_LOGITS)

  def is_scores(self) -> bool:
    """Heads by keys, and no dimension of what a head or a token is wide."""
    sizes, rest = self.sizes, Counter(self.dims) - Counter((self.sizes.keys,))
    if sizes.keys not in self.dims or sizes.cached in rest:
      return False
    if self.made_by(_TO_SCORES):
      return True
    if "attention" not in self.within and (self.within or len(self.long) < 4 or sizes.keys == sizes.d_model):
      return False  # without a scope, of as many tokens as the model is wide, it is what layers hand on
    heads = {sizes.heads, sizes.kv_heads} & {*rest, 1}
    return bool(heads) and sizes.d_model not in rest and len(self.long) > 1

  def is_dispatched(self) -> bool:
    """Rows as wide as the model, more than there are tokens, and not hidden ones."""
    rows, rest = divmod(self.elements, self.sizes.d_model)
    wide = Counter(self.dims) - Counter((self.sizes.d_model,))
    hidden = self.made_by(_HIDDEN) or self.sizes.hidden in wide
    return self.inside("experts", "router") and not rest and rows > self.sizes.tokens and not hidden

  def is_counts(self) -> bool:
    """At most one dimension, or as long as what the balance of experts is judged by."""
    return len(self.dims) < 2 or not {self.sizes.experts, 2 * self.sizes.experts + 1}.isdisjoint(self.dims)


_RULES: tuple[tuple[Callable[[_Computed], bool], str], ...] = (
  (lambda b: not b.carries_numbers(), INDICES),
  (lambda b: b.inside("optimizer") and not b.backward, OPTIMIZER),
  (_Computed.is_cache, CACHE),
  (_Computed.is_gradient, GRADIENTS),
  (_Computed.is_weight, WEIGHTS),
  (_Computed.is_logits, LOGITS),
  (_Computed.is_scores, SCORES),
  (lambda b: b.kept, KEPT),
  (_Computed.is_dispatched, DISPATCH),
  (lambda b: bool(b.within) or b.elements % b.sizes.d_model == 0, WORKING),
  (_Computed.is_counts, INDICES),
)


def _long(dims: Sequence[int]) -> list[int]:
  return sorted(length for length in dims if length > 1)
