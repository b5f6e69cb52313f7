"""Whether a deployment fits its cluster and divides over its axes, and which other sizes would."""

import itertools
import math
from collections.abc import Iterable

from jaxmoe.config.legal import MOST_LAYERS, MOST_SIZE, IllegalError, Remedy, divisors, multiples, nearest, one
from jaxmoe.config.shares import Shares
from jaxmoe.meshes.axes import AXES, STAGE

_SIZES_OF_AN_AXIS = 12  # tried when several axes must change together
_HEADS = 32


def check(d: Shares) -> None:
  """Raises `IllegalError` at the first thing that does not fit."""
  _check_devices(d)
  _check_schedule(d)
  _check_context(d)
  for field, size, axes in _divisions(d):
    _check_division(d, field, size, axes)
  _check_microbatches(d)
  _check_slices(d)


def _check_devices(d: Shares) -> None:
  if d.strategy.devices > d.cluster.devices:
    raise IllegalError(
      d,
      f"strategy needs {d.strategy.product}, but cluster {d.cluster.name} has {d.cluster.devices}:"
      " name a larger cluster or shrink an axis",
      *_axes(d, AXES),
    )


def _check_schedule(d: Shares) -> None:
  """Every stage has a layer for each of its chunks, and the schedule takes so many stages and microbatches."""
  layers, stages, chunks = d.model.num_layers, d.strategy.stage, d.job.chunks
  if stages * chunks > layers:
    raise IllegalError(
      d,
      f"{stages} stages of {chunks} chunks need a layer each, and the model has {layers}",
      one("strategy.stage", lambda: nearest(range(1, layers // chunks + 1), stages)),
      *([one("job.chunks", lambda: range(layers // stages, 1, -1))] if chunks > 2 else []),
      _all_axes(d),
    )
  if chunks > 1 and d.job.microbatches % stages:
    raise IllegalError(
      d,
      f"job.microbatches={d.job.microbatches} must be a multiple of stage = {stages} with schedule interleaved",
      one(
        "job.microbatches", lambda: [m for m in nearest(divisors(d.sequences_per_device), stages) if m % stages == 0]
      ),
      *_axes(d, (STAGE,)),
    )
  if d.job.schedule == "dualpipe":
    _check_both_ways(d, stages, d.job.microbatches)


def _check_both_ways(d: Shares, stages: int, microbatches: int) -> None:
  """Stages come in pairs that hold the same, microbatches in pairs that come from both ends."""
  if stages % 2:
    raise IllegalError(
      d,
      f"strategy.stage={stages} must be even with schedule dualpipe",
      one("strategy.stage", lambda: multiples(2, stages, most=d.model.num_layers)),
      _all_axes(d),
    )
  if microbatches % 2 or microbatches < 2 * stages:
    counts = [count for count in divisors(d.sequences_per_device) if count % 2 == 0 and count >= 2 * stages]
    raise IllegalError(
      d,
      f"job.microbatches={microbatches} must be even and at least 2 x stage = {2 * stages} with schedule dualpipe",
      one("job.microbatches", lambda: nearest(counts, microbatches)),
      one("strategy.stage", lambda: multiples(2, stages, most=max(2, microbatches // 2))),
      _batch(d),
      _all_axes(d),
    )


def _check_context(d: Shares) -> None:
  """Devices that share sequences take equal parts of each; a decoded token has no parts."""
  length, parts = d.job.query_length, d.strategy.context
  if length % parts:
    raise IllegalError(
      d,
      f"strategy.context={parts} must divide the {length} tokens that a step computes of each sequence",
      one("strategy.context", lambda: nearest(divisors(math.gcd(length, d.strategy.data)), parts)),
    )


def _check_division(d: Shares, field: str, size: int, axes: tuple[str, ...]) -> None:
  parts = d.strategy.batch_shards if field == "job.batch" else d.strategy.size(*axes)
  if size % parts:
    raise IllegalError(
      d,
      f"{field}={size} must be a multiple of {_product(d, axes)}" + (f" / context = {parts}" * _shared(field, d)),
      *_axes(d, axes),
      _field(d, field, size, parts),
      *([Remedy(("model.num_heads", "model.num_kv_heads"), lambda: _heads(d, parts))] if "heads" in field else []),
    )


def _check_microbatches(d: Shares) -> None:
  count, sequences = d.job.microbatches, d.sequences_per_device
  if sequences % count:
    raise IllegalError(
      d,
      f"job.microbatches={count} must divide the {sequences} sequences of a device",
      one("job.microbatches", lambda: nearest(divisors(sequences), count)),
      _batch(d),
      _all_axes(d),
    )


def _check_slices(d: Shares) -> None:
  """Tokens are sliced over the axes on which attention leaves them equal."""
  axes, tokens, sequences = d.strategy.slice_axes, d.microbatch_tokens, d.microbatch_sequences
  parts = d.strategy.size(*axes)
  if tokens % parts:
    step = parts // math.gcd(parts, sequences)
    length = one("job.sequence_length", lambda: multiples(step, d.job.sequence_length))
    raise IllegalError(
      d,
      f"a microbatch of {tokens} tokens ({sequences} x {d.job.query_length}) must divide over {_product(d, axes)}",
      one("job.microbatches", lambda: nearest(divisors(d.sequences_per_device), d.job.microbatches)),
      *([length] if d.job.kind != "decode" else []),
      _batch(d),
      *_axes(d, axes),
    )


def _divisions(d: Shares) -> list[tuple[str, int, tuple[str, ...]]]:
  """(field, its size, the axes that split it)."""
  rules, model = d.rules, d.model
  hidden = (("dense", "I", model.dense), ("shared", "J", model.shared))
  even = d.train and d.job.schedule == "gpipe"  # a scan over ticks; other schedules, and serving, take uneven stages
  return [
    *([("model.num_layers", model.num_layers, rules.axes("attention", "L"))] if even else []),
    ("model.num_heads", model.num_heads, rules.axes("attention", "H")),
    ("model.num_kv_heads", model.num_kv_heads, rules.axes("attention", "G")),
    ("model.num_experts", model.num_experts, rules.axes("expert", "E")),
    ("model.d_expert", model.d_expert, rules.axes("expert", "F")),
    *((f"model.{name}.d_hidden", x.d_hidden, rules.axes("dense", letter)) for name, letter, x in hidden if x),
    ("model.vocab_size", model.vocab_size, rules.axes("vocabulary", "V")),
    ("job.batch", d.job.batch, rules.axes("activation", "B")),
  ]


def _product(d: Shares, axes: tuple[str, ...]) -> str:
  """`stage = 4`, `expert x tensor = 4 x 2 = 8`."""
  sizes = {axis: str(d.strategy.size(axis)) for axis in axes if d.strategy.size(axis) > 1}
  product = [str(d.strategy.size(*axes))] if len(sizes) > 1 else []
  return " = ".join([" x ".join(sizes), " x ".join(sizes.values()), *product])


def _shared(field: str, d: Shares) -> bool:
  return field == "job.batch" and d.strategy.context > 1


def _field(d: Shares, field: str, size: int, parts: int) -> Remedy:
  if field == "job.batch":
    return _batch(d)
  most = MOST_LAYERS if field == "model.num_layers" else MOST_SIZE
  return one(field, lambda: multiples(parts, size, most=most))


def _batch(d: Shares) -> Remedy:
  """A legal batch is a multiple of all microbatches of all devices."""
  return one("job.batch", lambda: multiples(d.strategy.batch_shards * d.job.microbatches, d.job.batch))


def _heads(d: Shares, parts: int) -> Iterable[tuple[int, int]]:
  """Query heads and key-value heads, both split `parts` ways, the nearest pair first."""
  H, G = d.model.num_heads, d.model.num_kv_heads
  heads = itertools.islice(multiples(parts, H), _HEADS)
  pairs = [(h, g) for h in heads for g in divisors(h) if g % parts == 0]
  return sorted(pairs, key=lambda pair: (abs(pair[0] - H) + abs(pair[1] - G), -pair[0], -pair[1]))


def _axes(d: Shares, axes: tuple[str, ...]) -> list[Remedy]:
  """Each of these axes that splits anything, alone; or else all axes of the strategy."""
  used = (axis for axis in axes if d.strategy.size(axis) > 1)
  return [*(one(f"strategy.{axis}", lambda axis=axis: _axis_sizes(d, axis)) for axis in used), _all_axes(d)]


def _all_axes(d: Shares) -> Remedy:
  return Remedy(tuple(f"strategy.{axis}" for axis in AXES), lambda: _strategies(d), last=True)


def _axis_sizes(d: Shares, axis: str) -> list[int]:
  """Sizes at most the cluster's that divide everything split over this axis, the nearest first."""
  whole = math.gcd(*(size * d.strategy.context for _, size, axes in _divisions(d) if axis in axes))
  return nearest((n for n in divisors(whole) if n <= d.cluster.devices), d.strategy.size(axis))


def _strategies(d: Shares) -> Iterable[tuple[int, ...]]:
  """Sizes of all axes that fit the cluster, the fewest changed axes and the smallest changes first."""
  now = [d.strategy.size(axis) for axis in AXES]
  choices = (_axis_sizes(d, axis)[:_SIZES_OF_AN_AXIS] for axis in AXES)
  fitting = [sizes for sizes in itertools.product(*choices) if math.prod(sizes) <= d.cluster.devices]

  def change(sizes: tuple[int, ...]) -> tuple[int, float]:
    ratios = [abs(math.log(new / old)) for new, old in zip(sizes, now, strict=True)]
    return sum(ratio > 0 for ratio in ratios), sum(ratios)

  return sorted(fitting, key=change)
