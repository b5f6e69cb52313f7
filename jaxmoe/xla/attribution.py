"""What each temporary buffer of a compiled step is: by what made it, its shape, and when it is needed."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence

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
  within = {scope for name in facts.names for scope in scopes.path(name)}
  backward = any(_BACKWARD.search(name) for name in facts.names)
  if facts.argument:
    return _OF_ARGUMENTS[facts.argument]
  if not _carries_numbers(facts):
    return INDICES
  if "optimizer" in within and not backward:
    return OPTIMIZER
  if not sizes.train and _is_cache(facts, sizes):
    return CACHE
  if _is_weight(facts, sizes):
    if backward or (facts.crosses and not any(_STACKS.search(name) for name in facts.names)):
      return GRADIENTS
    if not within and (sizes.tokens not in facts.dims or len(_long(facts.dims)) > 2):
      return WEIGHTS
  if backward and len(facts.dims) == 1 and _elements(facts) > sizes.d_model:
    return GRADIENTS  # several, joined for one collective
  return _of_activation(facts, sizes, within, kept=facts.crosses and not backward)


def _of_activation(facts: Facts, sizes: Sizes, within: set[str], *, kept: bool) -> str:
  if within & {"head", "loss"} and _is_logits(facts, sizes):
    return LOGITS
  if _is_scores(facts, sizes, within):
    return SCORES
  if kept:
    return KEPT
  if within & {"experts", "router"} and _is_dispatched(facts, sizes):
    return DISPATCH
  if within or _elements(facts) % sizes.d_model == 0:
    return WORKING
  counts = {sizes.experts, 2 * sizes.experts + 1} & {*facts.dims}  # what the balance of experts is judged by
  return INDICES if len(facts.dims) < 2 or counts else UNKNOWN


def _carries_numbers(facts: Facts) -> bool:
  """Floats; or words that a collective packs 8- or 16-bit floats into."""
  packed = facts.dtype.startswith("u") and any(_COLLECTIVE.search(name) for name in facts.names)
  return packed or bool(_FLOATING.match(facts.dtype))


def _elements(facts: Facts) -> int:
  return math.prod(facts.dims)


def _long(dims: Sequence[int]) -> list[int]:
  return sorted(length for length in dims if length > 1)


def _is_weight(facts: Facts, sizes: Sizes) -> bool:
  """Has the dimensions of a parameter: whole, or of one layer."""
  dims = _long(facts.dims)
  return any(dims in (_long(weight), _long(weight[1:])) for weight in sizes.weights)


def _is_cache(facts: Facts, sizes: Sizes) -> bool:
  """Keys or values: those of attention's own work count only in decode, where they can come from nowhere else."""
  wanted = Counter(_long((sizes.keys, sizes.kv_heads, sizes.cached)))
  if wanted - Counter(facts.dims):
    return False
  moved = any(_PLACES_IN_CACHE.search(name) for name in facts.names)
  return sizes.decode or moved or not all("attention" in scopes.path(name) for name in facts.names) or not facts.names


def _is_logits(facts: Facts, sizes: Sizes) -> bool:
  """As wide as the vocabulary; where the model is as wide, by what makes them."""
  if sizes.vocabulary != sizes.d_model:
    return sizes.vocabulary in facts.dims
  made = any("loss" in scopes.path(name) or _TO_LOGITS.search(name) for name in facts.names)
  return made and sizes.vocabulary in facts.dims


def _is_scores(facts: Facts, sizes: Sizes, within: set[str]) -> bool:
  """Heads by keys, and no dimension of what a head or a token is wide."""
  rest = Counter(facts.dims) - Counter((sizes.keys,))
  if sizes.keys not in facts.dims or sizes.cached in rest:
    return False
  if any(_TO_SCORES.search(name) for name in facts.names):
    return True
  if "attention" not in within and (within or len(_long(facts.dims)) < 4 or sizes.keys == sizes.d_model):
    return False  # without a scope, of as many tokens as the model is wide, it is what layers hand on
  heads = {sizes.heads, sizes.kv_heads} & {*rest, 1}
  return bool(heads) and sizes.d_model not in rest and len(_long(facts.dims)) > 1


def _is_dispatched(facts: Facts, sizes: Sizes) -> bool:
  """Rows as wide as the model, more than there are tokens, and not hidden ones."""
  rows, rest = divmod(_elements(facts), sizes.d_model)
  hidden = any(_HIDDEN.search(name) for name in facts.names)
  wide = Counter(facts.dims) - Counter((sizes.d_model,))
  return not rest and rows > sizes.tokens and not hidden and sizes.hidden not in wide
