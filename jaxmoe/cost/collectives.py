"""Every collective that one device's program executes, from the deployment alone.

Derivations are in docs/cost_model.md. Payload is the full-side buffer of one device, in the program's dtype: the
operand, or an all-gather's result.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.cost.parameters import parameter_tensors
from jaxmoe.cost.support import check_priced
from jaxmoe.meshes.axes import AXES, STAGE

INDEX_BYTES = 4  # an expert's number, int32

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
  """`count` executions in one step of a collective over all of `axes` at once."""

  part: str
  kind: Kind
  axes: tuple[str, ...]
  payload_bytes: int
  count: int

  @property
  def total_bytes(self) -> int:
    return self.payload_bytes * self.count


def collectives(deployment: Deployment) -> list[Collective]:
  """All that move data: groups of one device are left out, axes of size one are not named."""
  check_priced(deployment.model)
  found: list[Collective] = []
  for collective in _Step(deployment).all():
    axes = tuple(axis for axis in AXES if axis in collective.axes and deployment.strategy.size(axis) > 1)
    if axes:
      found.append(dataclasses.replace(collective, axes=axes))
  return found


def ticks(deployment: Deployment) -> int:
  """Times that each stage runs its layers in one step, idle ticks of the pipeline included."""
  return deployment.job.microbatches + deployment.strategy.stage - 1


class _Step:
  """Sizes of one step, and the collectives of each of its parts."""

  def __init__(self, deployment: Deployment):
    d = self.d = deployment
    s = self.strategy = d.strategy
    self.train = d.job.kind == "train"
    self.remat = self.train and d.job.remat == "full"
    self.item = ITEM_BYTES[d.job.precision.compute]
    self.wide_item = max(4, self.item)  # softmax, statistics and losses are kept in at least float32
    self.slice_bytes = d.dispatch_tokens * d.model.d_model * self.item
    self.full_bytes = d.microbatch_tokens * d.model.d_model * self.item
    self.M = d.job.microbatches
    self.ticks = ticks(d)
    self.layer_runs = self.ticks * d.layers_per_stage
    self.unsliced_heads = _without(s.heads_over, s.slice_axes)
    self.unsliced_vocabulary = _without(s.vocabulary_axes, s.slice_axes)
    self.token_axes = (*s.batch_axes, *s.slice_axes)

  def all(self) -> Iterator[Collective]:
    yield from self.attention()
    yield from self.experts()
    yield from self.pipeline()
    yield from self.vocabulary()
    yield from self.statistics()
    if self.train:
      yield from self.gradients()

  def attention(self) -> Iterator[Collective]:
    """Tokens gathered before the heads, their parts summed after; backward is the mirror image."""
    slices, heads, n = self.strategy.slice_axes, self.unsliced_heads, self.layer_runs
    forward = n * (2 if self.remat else 1)
    yield Collective("attention", "all-gather", slices, self.full_bytes, forward)
    yield Collective("attention", "reduce-scatter", slices, self.full_bytes, forward)
    yield Collective("attention", "all-reduce", heads, self.slice_bytes, forward)
    if self.train:
      yield Collective("attention", "all-gather", slices, self.full_bytes, n)
      yield Collective("attention", "reduce-scatter", slices, self.full_bytes, n)
      yield Collective("attention", "all-reduce", heads, self.slice_bytes, n)

  def experts(self) -> Iterator[Collective]:
    transports = {"capacity": self.capacity_dispatch, "gather": self.gather_dispatch, "dense": self.dense_dispatch}
    yield from transports[self.d.job.transport]()
    width, n = self.strategy.width_axes, self.layer_runs
    yield Collective("experts", "all-reduce", width, self.slice_bytes, n)  # recomputing it would change nothing
    if self.train:
      gate_bytes = self.d.dispatch_tokens * self.d.model.experts_per_token * self.wide_item
      yield Collective("experts", "all-reduce", width, self.slice_bytes, n)
      yield Collective("experts", "all-reduce", width, gate_bytes, n)

  def capacity_dispatch(self) -> Iterator[Collective]:
    """Buffers go out and come back; twice more in backward, and again if the layer is recomputed."""
    m = self.d.model
    buffer_bytes = m.num_experts * self.d.expert_capacity * m.d_model * self.item
    passes = 1 + self.train + self.remat
    yield Collective("experts", "all-to-all", self.strategy.experts_over, buffer_bytes, 2 * passes * self.layer_runs)

  def dense_dispatch(self) -> Iterator[Collective]:
    """Tokens are gathered and results scattered over the group; backward is the mirror image."""
    axes, n = self.strategy.experts_over, self.layer_runs
    group_bytes = self.slice_bytes * self.strategy.size(*axes)
    gate_bytes = self.d.dispatch_tokens * self.d.model.num_experts * self.item
    passes = 1 + self.train + self.remat
    yield Collective("experts", "all-to-all", axes, gate_bytes, passes * n)
    yield Collective("experts", "all-gather", axes, group_bytes, passes * n)
    yield Collective("experts", "reduce-scatter", axes, group_bytes, (1 + self.train) * n)

  def gather_dispatch(self) -> Iterator[Collective]:
    """Tokens, their gates and their choices are gathered, results scattered; choices have no gradient."""
    axes, n, passes = self.strategy.experts_over, self.layer_runs, 1 + self.remat
    group = self.strategy.size(*axes)
    choices = group * self.d.dispatch_tokens * self.d.model.experts_per_token
    for payload_bytes in (group * self.slice_bytes, choices * self.wide_item):
      yield Collective("experts", "all-gather", axes, payload_bytes, passes * n)
      yield Collective("experts", "reduce-scatter", axes, payload_bytes, self.train * n)
    yield Collective("experts", "all-gather", axes, choices * INDEX_BYTES, passes * n)
    yield Collective("experts", "reduce-scatter", axes, group * self.slice_bytes, n)
    yield Collective("experts", "all-gather", axes, group * self.slice_bytes, self.train * n)

  def pipeline(self) -> Iterator[Collective]:
    """Each tick hands a microbatch on; the last stage's output, and backward the first's input, goes to all stages."""
    yield Collective("pipeline", "collective-permute", (STAGE,), self.slice_bytes, self.ticks * (1 + self.train))
    if self.train:
      yield Collective("pipeline", "all-reduce", (STAGE,), self.M * self.slice_bytes, 2)
    else:
      last_bytes = self.d.microbatch_sequences * self.d.model.d_model * self.item
      yield Collective("pipeline", "all-reduce", (STAGE,), self.M * last_bytes, 1)
      yield Collective("pipeline", "all-gather", self.strategy.slice_axes, self.full_bytes, self.ticks)

  def vocabulary(self) -> Iterator[Collective]:
    """Rows found anywhere are summed; the loss needs each token's maximum, normaliser and target over all columns."""
    slices, rest, M = self.strategy.slice_axes, self.unsliced_vocabulary, self.M
    yield Collective("embedding", "reduce-scatter", slices, M * self.full_bytes, 1)
    yield Collective("embedding", "all-reduce", rest, M * self.slice_bytes, 1)
    if not self.train:
      return
    yield Collective("embedding", "all-gather", slices, M * self.full_bytes, 1)
    yield Collective("head", "all-gather", slices, M * self.full_bytes, 1)
    yield Collective("head", "reduce-scatter", slices, M * self.full_bytes, 1)
    yield Collective("head", "all-reduce", rest, M * self.slice_bytes, 1)
    token_bytes = M * self.d.microbatch_tokens * self.wide_item
    yield Collective("loss", "all-reduce", self.strategy.vocabulary_axes, token_bytes, 1)
    yield Collective("loss", "all-reduce", self.strategy.vocabulary_axes, 2 * token_bytes, 1)
    yield Collective("loss", "all-reduce", self.strategy.batch_axes, self.wide_item, 1)

  def statistics(self) -> Iterator[Collective]:
    """Probability sums and choice counts of every expert, and one count of drops, for each layer of the stage."""
    entries = self.d.layers_per_stage * (2 * self.d.model.num_experts + 1)
    yield Collective("balance", "all-reduce", self.token_axes, entries * self.wide_item, 1)
    yield Collective("balance", "all-reduce", (STAGE,), 2 * self.wide_item, 1)

  def gradients(self) -> Iterator[Collective]:
    """Each weight's gradient is summed over the axes whose tokens it saw, less those that split it."""
    d = self.d
    for tensor in parameter_tensors(d.model):
      own = {axis for letter in tensor.letters for axis in d.rules.axes(tensor.role, letter)}
      payload = tensor.local_bytes(d.rules, d.job.precision)
      yield Collective("gradients", "all-reduce", tuple(a for a in self.token_axes if a not in own), payload, 1)


def _without(axes: tuple[str, ...], removed: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(axis for axis in axes if axis not in removed)
