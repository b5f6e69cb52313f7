"""Every collective that one device's program executes, from the deployment alone.

Derivations are in docs/cost_model.md. Payload is the full-side buffer of one device, in the program's dtype: the
operand, or an all-gather's result. Sizes may be arrays, one entry a plan; docs speak of one.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from jaxmoe.config.arrays import ceil_div, least, most
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import INT_BYTES, WIDE_BYTES
from jaxmoe.cost.groups import members_within
from jaxmoe.cost.parameters import parameter_tensors
from jaxmoe.cost.stage import StageLayers, stage_layers
from jaxmoe.meshes.axes import AXES, CONTEXT, STAGE

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
  """`count` executions in one step of a collective over all of `axes` at once.

  Attributes:
    outer_bytes: what of the payload leaves the block of the innermost network tier, where a token that visits several
      devices of another block is sent there once; None, the share of the group that lies outside.
  """

  part: str
  kind: Kind
  axes: tuple[str, ...]
  payload_bytes: Any
  count: Any
  outer_bytes: Any = None

  @property
  def total_bytes(self) -> Any:
    return self.payload_bytes * self.count


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCollective:
  """What one layer does with one microbatch: executions in forward, where forward runs again, and in backward."""

  part: str
  kind: Kind
  axes: tuple[str, ...]
  payload_bytes: Any
  forward: Any = 0
  again: Any = 0
  backward: Any = 0
  outer_bytes: Any = None


def collectives(d: Shares) -> list[Collective]:
  """All that move data: groups of one device are left out, axes of size one are not named.

  A deployment alone: arrays of plans are priced by `cost/time.py`.
  """
  found: list[Collective] = []
  for collective in _program(d):
    axes = tuple(axis for axis in (*AXES, CONTEXT) if axis in collective.axes and d.strategy.size(axis) > 1)
    if axes and collective.count:
      found.append(dataclasses.replace(collective, axes=axes))
  return found


def _program(d: Shares) -> Iterator[Collective]:
  """Layers at every tick, and what a step does once."""
  sizes = Sizes(d)
  stage = stage_layers(d)[0]
  parts = (
    (attention(sizes), stage.all),
    (experts(sizes), stage.routed),
    (shared(sizes), stage.routed),
    (dense(sizes), stage.dense),
  )
  for layer_collectives, layers in parts:
    for c in layer_collectives:
      runs = c.forward + d.recomputed * c.again + d.train * c.backward
      yield Collective(c.part, c.kind, c.axes, c.payload_bytes, runs * d.ticks * layers, c.outer_bytes)
  yield from pipeline(sizes)
  yield from vocabulary(sizes)
  yield from statistics(sizes, stage)
  if d.train:
    yield from gradients(d, stage)


class Sizes:
  """Bytes and axes that the collectives of one step are made of."""

  def __init__(self, d: Shares):
    s = d.strategy
    self.d, self.strategy, self.model, self.train, self.ticks = d, s, d.model, d.train, d.ticks
    self.item = ITEM_BYTES[d.job.precision.compute]
    self.wide_item = max(WIDE_BYTES, self.item)  # softmax, statistics and losses are kept in at least float32
    self.slice_bytes = d.dispatch_tokens * d.model.d_model * self.item
    self.full_bytes = d.microbatch_tokens * d.model.d_model * self.item
    self.M = d.microbatches
    self.unsliced_heads = _without(s.heads_over, s.slice_axes)
    self.unsliced_vocabulary = _without(s.vocabulary_axes, s.slice_axes)
    # Axes over which tokens are equal, and the residual stream is sliced by sequence parallelism alone.
    self.sequence_axes = s.sequence_axes if s.sequence_parallel else ()
    # What one device sends to another stage: its part, where the tokens of its slice are divided further.
    self.shared_bytes = ceil_div(self.slice_bytes, s.size(*self.sequence_axes))
    scattered = s.sequence_axes if d.scatters_messages else self.sequence_axes
    self.message_bytes = ceil_div(self.slice_bytes, s.size(*scattered))

  def summed(self, part: str, axes: tuple[str, ...], *, again: int) -> Iterator[LayerCollective]:
    """Parts of a slice of tokens summed over `axes`, forward and backward: at once, or scattered and gathered."""
    pair = axes and axes == self.sequence_axes
    for kind in ("reduce-scatter", "all-gather") if pair else ("all-reduce",):
      yield LayerCollective(part, kind, axes, self.slice_bytes, forward=1, again=again, backward=1)


def attention(z: Sizes) -> Iterator[LayerCollective]:
  """Tokens gathered before the heads, their parts summed after; backward is the mirror image."""
  slices = z.strategy.slice_axes
  for kind in ("all-gather", "reduce-scatter"):
    yield LayerCollective("attention", kind, slices, z.full_bytes, forward=1, again=1, backward=1)
  yield from z.summed("attention", z.unsliced_heads, again=1)
  width = z.model.cache_width
  if z.model.latent is None:
    width //= z.d.rules.shards("attention", "G")
  keys_bytes = z.d.microbatch_sequences * z.d.job.sequence_length * width * z.item
  yield LayerCollective("attention", "all-gather", (CONTEXT,), keys_bytes, forward=1, again=1, backward=1)
  yield LayerCollective("attention", "reduce-scatter", (CONTEXT,), keys_bytes, backward=1)


def dense(z: Sizes) -> Iterator[LayerCollective]:
  """A dense layer's network is split as heads are."""
  for kind in ("all-gather", "reduce-scatter"):
    yield LayerCollective("dense", kind, z.strategy.slice_axes, z.full_bytes, forward=1, again=1, backward=1)
  yield from z.summed("dense", z.unsliced_heads, again=0)


def shared(z: Sizes) -> Iterator[LayerCollective]:
  """As a dense layer; where routed experts are split over the same axes, both are summed at once."""
  if z.model.shared is None:
    return
  for kind in ("all-gather", "reduce-scatter"):
    yield LayerCollective("shared", kind, z.strategy.slice_axes, z.full_bytes, forward=1, again=1, backward=1)
  yield from z.summed("shared", _without(z.unsliced_heads, z.strategy.width_axes), again=0)


def experts(z: Sizes) -> Iterator[LayerCollective]:
  """Tokens to their experts and back, and the sum over the parts of an expert's width."""
  transports = {
    "capacity": capacity_dispatch,
    "gather": gather_dispatch,
    "dense": dense_dispatch,
    "ragged": ragged_dispatch,
  }
  yield from transports[z.d.job.transport](z)
  width = z.strategy.width_axes
  yield from z.summed("experts", width, again=0)  # recomputing it would change nothing
  gate_bytes = z.d.dispatch_tokens * z.model.experts_per_token * z.wide_item
  yield LayerCollective("experts", "all-reduce", width, gate_bytes, backward=1)


def capacity_dispatch(z: Sizes) -> Iterator[LayerCollective]:
  """Buffers go out and come back; twice more in backward."""
  buffer_bytes = z.model.num_experts * z.d.expert_capacity * z.model.d_model * z.item
  yield _exchange(z, buffer_bytes)


def ragged_dispatch(z: Sizes) -> Iterator[LayerCollective]:
  """As many rows as are chosen, in two steps: a token once to each block that it visits, then on inside the block.

  On the way back a block's results of a token are summed before they leave it.
  """
  m, axes = z.model, z.strategy.experts_over
  row_bytes = z.d.dispatch_tokens * m.d_model * z.item
  blocks = z.strategy.size(*axes) / members_within(z.strategy, axes, z.d.cluster.tiers[0].devices)
  visited = blocks * (1 - (1 - 1 / blocks) ** m.experts_per_token)
  if m.routing.groups > 1:
    visited = least(visited, m.routing.groups_per_token * most(1, blocks / m.routing.groups))
  outer_bytes = row_bytes * visited * (1 - 1 / blocks)
  yield _exchange(z, row_bytes * visited, outer_bytes, times=2 * (blocks > 1))
  yield _exchange(z, row_bytes * m.experts_per_token, 0.0)


def _exchange(z: Sizes, payload_bytes: Any, outer_bytes: Any = None, *, times: Any = 2) -> LayerCollective:
  axes = z.strategy.experts_over
  return LayerCollective("experts", "all-to-all", axes, payload_bytes, times, times, times, outer_bytes)


def dense_dispatch(z: Sizes) -> Iterator[LayerCollective]:
  """Tokens are gathered and results scattered over the group; backward is the mirror image."""
  axes = z.strategy.experts_over
  group_bytes = z.slice_bytes * z.strategy.size(*axes)
  gate_bytes = z.d.dispatch_tokens * z.model.num_experts * z.item
  yield LayerCollective("experts", "all-to-all", axes, gate_bytes, forward=1, again=1, backward=1)
  yield LayerCollective("experts", "all-gather", axes, group_bytes, forward=1, again=1, backward=1)
  yield LayerCollective("experts", "reduce-scatter", axes, group_bytes, forward=1, backward=1)


def gather_dispatch(z: Sizes) -> Iterator[LayerCollective]:
  """Tokens, their gates and their choices are gathered, results scattered; choices have no gradient."""
  axes = z.strategy.experts_over
  group = z.strategy.size(*axes)
  choices = group * z.d.dispatch_tokens * z.model.experts_per_token
  for payload_bytes in (group * z.slice_bytes, choices * z.wide_item):
    yield LayerCollective("experts", "all-gather", axes, payload_bytes, forward=1, again=1)
    yield LayerCollective("experts", "reduce-scatter", axes, payload_bytes, backward=1)
  yield LayerCollective("experts", "all-gather", axes, choices * INT_BYTES, forward=1, again=1)
  yield LayerCollective("experts", "reduce-scatter", axes, group * z.slice_bytes, forward=1)
  yield LayerCollective("experts", "all-gather", axes, group * z.slice_bytes, backward=1)


def pipeline(z: Sizes) -> Iterator[Collective]:
  """Each tick hands a microbatch on; the last stage's output, and backward the first's input, goes to all stages.

  Chunks hand it on each: communication grows by their number (Narayanan et al. 2021, section 2.2.2).
  """
  hops = z.ticks * (1 + z.train) * z.d.chunks
  yield Collective("pipeline", "collective-permute", (STAGE,), z.message_bytes, hops)
  if z.d.scatters_messages and not z.sequence_axes:
    yield Collective("pipeline", "all-gather", z.strategy.sequence_axes, z.slice_bytes, hops)
  if z.train:
    shared = (STAGE,) if STAGE in z.strategy.vocabulary_axes else ()  # by those that hold a part of the head
    yield Collective("pipeline", "all-reduce", shared, z.M * z.shared_bytes, 2)
  else:
    last_bytes = z.d.microbatch_sequences * z.model.d_model * z.item
    yield Collective("pipeline", "all-reduce", (STAGE,), z.M * last_bytes, 1)
    yield Collective("pipeline", "all-gather", z.strategy.slice_axes, z.full_bytes, z.ticks)


def vocabulary(z: Sizes) -> Iterator[Collective]:
  """Rows found anywhere are summed; the loss needs each token's maximum, normaliser and target over all columns."""
  slices, rest, M = z.strategy.slice_axes, z.unsliced_vocabulary, z.M
  yield Collective("embedding", "reduce-scatter", slices, M * z.full_bytes, 1)
  yield Collective("embedding", "all-reduce", rest, M * z.slice_bytes, 1)
  if not z.train:
    return
  yield Collective("embedding", "all-gather", slices, M * z.full_bytes, 1)
  yield Collective("head", "all-gather", slices, M * z.full_bytes, 1)
  yield Collective("head", "reduce-scatter", slices, M * z.full_bytes, 1)
  yield Collective("head", "all-reduce", rest, M * z.slice_bytes, 1)
  token_bytes = M * z.d.microbatch_tokens * z.wide_item
  yield Collective("loss", "all-reduce", z.strategy.vocabulary_axes, token_bytes, 1)
  yield Collective("loss", "all-reduce", z.strategy.vocabulary_axes, 2 * token_bytes, 1)
  yield Collective("loss", "all-reduce", z.strategy.batch_axes, z.wide_item, 1)


def statistics(z: Sizes, stage: StageLayers) -> Iterator[Collective]:
  """Probability sums and choice counts of every expert, and one count of drops, for each layer of the stage."""
  entries = stage.experts * (2 * z.model.num_experts + 1)
  yield Collective("balance", "all-reduce", z.strategy.token_axes, entries * z.wide_item, 1)
  yield Collective("balance", "all-reduce", (STAGE,), 2 * z.wide_item, 1)


def gradients(d: Shares, stage: StageLayers) -> Iterator[Collective]:
  """Each weight's gradient is summed over the axes whose tokens it saw, less those that split it.

  So it is over the two devices that hold it, where microbatches go through the stages both ways.
  """
  for tensor in parameter_tensors(d.model):
    copies = 1 if tensor.stack == "none" else d.copies
    count = tensor.layer_count(d.rules) * stage.of(tensor.stack) * copies
    payload = count * ITEM_BYTES[tensor.dtype(d.job.precision)]
    yield Collective("gradients", "all-reduce", tensor.replica_axes(d.strategy), payload, 1)
    yield Collective("gradients", "collective-permute", (STAGE,), payload, copies - 1)


def _without(axes: tuple[str, ...], removed: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(axis for axis in axes if axis not in removed)
