"""What any true price keeps, whatever the formulas: sums, bounds by physics, and which way each change must go."""

import collections
import dataclasses
import itertools
import math

import pytest
from drawn_deployments import KINDS, REMATS, TRANSPORTS, deployments, with_job, with_strategy
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jaxmoe.config.job import Precision
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.flops import balanced_rows, executed_flops, flops_per_token, useful_flops
from jaxmoe.cost.memory import activation_bytes, cache_bytes, memory
from jaxmoe.cost.parameters import parameter_tensors, total_parameters
from jaxmoe.cost.passes import peak_flops_per_s
from jaxmoe.cost.stage import stage_layers
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.axes import AXES

UP = 1 + 1e-9  # more than rounding
some = settings(
  max_examples=120,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
TRAIN = deployments(kinds=("train",))


def peak(d):
  """FLOP/s of a device in the fastest dtype that anything is multiplied in."""
  precision = d.job.precision
  return max(peak_flops_per_s(d.cluster, dtype) for dtype in (precision.compute, precision.matmuls) if dtype)


def devices(strategy):
  """Coordinates of every device by axis."""
  for place in itertools.product(*(range(strategy.size(axis)) for axis in AXES)):
    yield dict(zip(AXES, place, strict=True))


def layers_of(tensor):
  """How many layers a stack holds; nothing for what stands outside."""
  return [size for letter, size in zip(tensor.letters, tensor.shape, strict=True) if letter == "L"]


@some
@given(d=deployments())
def test_shards_of_all_devices_are_the_whole_once_a_replica(d):
  """Every block of every tensor lies on equally many devices; blocks add up to all parameters."""
  strategy, blocks = d.strategy, 0
  assume(all(n % strategy.stage == 0 for t in parameter_tensors(d.model) for n in layers_of(t)))
  for tensor in parameter_tensors(d.model):
    entries = d.rules.partition(tensor.role, tensor.letters)
    held = collections.Counter(
      tuple(tuple(place[axis] for axis in axes) for axes in entries) for place in devices(strategy)
    )
    assert len(set(held.values())) == 1
    assert len(held) * tensor.local_count(d.rules) == tensor.count
    blocks += tensor.local_count(d.rules) * strategy.devices / held.popitem()[1]
  assert blocks == total_parameters(d.model)


@some
@given(d=deployments(), axis=st.sampled_from(AXES))
def test_more_devices_never_hold_more_weights_each(d, axis):
  wider = with_strategy(d, **{axis: 2 * d.strategy.size(axis)})
  assert memory(wider).parameters <= memory(d).parameters * UP


@some
@given(d=deployments(kinds=("train",), precisions=(Precision(), Precision(weights="bfloat16"))))
def test_zero_never_raises_what_is_stored_nor_lowers_the_traffic_of_gradients(d):
  levels = [with_job(d, zero=level) for level in range(4)]
  held = [memory(one) for one in levels]
  seconds = [step_time(one).gradients for one in levels]
  for less, more in itertools.pairwise(held[:3]):
    assert more.total <= less.total * UP
  if len(stage_layers(d)) == 1:  # else another stage may be the heaviest
    for less, more in itertools.pairwise(held):
      for name in ("parameters", "gradients", "optimizer"):
        assert getattr(more, name) <= getattr(less, name) * UP
  for less, more in itertools.pairwise(seconds):
    assert less <= more * UP


@some
@given(d=TRAIN)
def test_zero_3_gathers_nothing_that_has_no_replica(d):
  alone = with_job(with_strategy(d, data=1, context=1, expert=1, tensor=1), zero=3)
  assert memory(alone).total == memory(with_job(alone, zero=0)).total


@some
@given(d=TRAIN)
def test_recomputing_more_keeps_less_and_executes_more(d):
  kinds = [with_job(d, remat=remat) for remat in REMATS]
  kept = [max(activation_bytes(one, stage) for stage in stage_layers(one)) for one in kinds]
  executed = [executed_flops(one).total for one in kinds]
  seconds = [step_time(one).total_s for one in kinds]
  assert kept[0] * UP >= kept[1] and kept[1] * UP >= kept[2]
  assert executed[0] <= executed[1] <= executed[2]
  assert seconds[0] <= seconds[1] * UP and seconds[1] <= seconds[2] * UP


@some
@given(d=deployments(), load=st.sampled_from((1.0, 1.5, 4.0)))
def test_activations_by_remat_hold_the_deployments_own(d, load):
  """Of the busiest device of the heaviest stage, as all of its memory."""
  e = estimate(d, dataclasses.replace(d.assumptions, load=load))
  assert e.activation_bytes_by_remat[d.job.remat] == e.memory.activations


@some
@given(d=deployments(clusters_of=("torus", "switch")), order=st.permutations(AXES))
def test_where_all_devices_are_equally_far_their_order_changes_nothing(d, order):
  reordered = step_time(with_strategy(d, order=tuple(order))).plain()
  assert reordered.terms() == pytest.approx(step_time(d).plain().terms(), rel=1e-12)


@some
@given(d=deployments())
def test_twice_the_batch_is_twice_the_useful_flops(d):
  assert useful_flops(with_job(d, batch=2 * d.job.batch)).total == pytest.approx(2 * useful_flops(d).total)
  assert flops_per_token(with_job(d, batch=2 * d.job.batch)) == flops_per_token(d)


@some
@given(d=deployments())
def test_what_is_useful_is_executed(d):
  useful, executed = useful_flops(d), executed_flops(d)
  for part in ("attention", "router", "experts", "head"):
    assert getattr(useful, part) <= getattr(executed, part) * UP, part


@some
@given(d=deployments(transports=("ragged",)))
def test_no_device_repeats_heads_or_experts_of_another(d):
  """Of equal stages, what is executed is what is useful, once a tick."""
  d = with_job(d, remat="none")
  executed, useful = executed_flops(d), useful_flops(d)
  assume(d.model.mtp_layers == 0 and len(stage_layers(d)) == 1)
  assume(d.model.num_layers % d.strategy.stage == 0)
  assert executed.head == pytest.approx(useful.head)
  assert executed.experts == pytest.approx(useful.experts * d.ticks / d.microbatches)


@some
@given(d=deployments())
def test_no_plan_beats_physics(d):
  time = step_time(d)
  assert min(time.terms().values()) >= 0
  assert time.total_s * UP >= useful_flops(d).total / peak(d)
  assert time.total_s * UP >= executed_flops(d).total * d.microbatches / d.ticks / peak(d)


@some
@given(d=deployments(kinds=("train", "decode")))
def test_tokens_a_second_stay_below_peak_over_flops_of_a_token(d):
  """In training three passes a token; prefill scores only the last token of a sequence."""
  passes = 3 if d.train else 1
  most = d.strategy.devices * peak(d) / (passes * flops_per_token(d))
  assert estimate(d).tokens_per_s <= most * UP


@some
@given(d=TRAIN)
def test_the_bubble_shrinks_with_more_microbatches(d):
  shares = [estimate(with_job(d, microbatches=M, batch=64 * d.strategy.batch_shards)).bubble for M in (1, 2, 4, 8, 16)]
  if d.strategy.stage == 1:
    assert shares == [0] * 5
  else:
    assert all(more < less for less, more in itertools.pairwise(shares))


@some
@given(d=deployments(transports=("ragged", "gather", "dense")))
def test_a_longer_sequence_never_lowers_cache_flops_or_time(d):
  longer = with_job(d, sequence_length=2 * d.job.sequence_length)
  assert useful_flops(d).total <= useful_flops(longer).total * UP
  assert executed_flops(d).total <= executed_flops(longer).total * UP
  assert step_time(d).total_s <= step_time(longer).total_s * UP
  if not d.train:
    assert cache_bytes(d) <= cache_bytes(longer) <= 2 * cache_bytes(d)


def changed_tiers(cluster, change):
  return dataclasses.replace(cluster, tiers=tuple(change(tier) for tier in cluster.tiers))


BETTER = {
  "bandwidth": lambda c: changed_tiers(
    c, lambda tier: dataclasses.replace(tier, bandwidth_bytes_per_s=2 * tier.bandwidth_bytes_per_s)
  ),
  "latency": lambda c: changed_tiers(c, lambda tier: dataclasses.replace(tier, latency_s=tier.latency_s / 2)),
  "outer tier": lambda c: dataclasses.replace(
    c, tiers=(*c.tiers[:-1], dataclasses.replace(c.tiers[-1], bandwidth_bytes_per_s=1e12))
  ),
  "memory": lambda c: dataclasses.replace(c, memory_bandwidth_bytes_per_s=2 * c.memory_bandwidth_bytes_per_s),
  "peak": lambda c: dataclasses.replace(
    c, peak_flops_per_s={name: 2 * peak for name, peak in c.peak_flops_per_s.items()}
  ),
}


@pytest.mark.parametrize("what", BETTER)
@some
@given(d=deployments())
def test_a_better_cluster_is_never_slower(what, d):
  better = dataclasses.replace(d, cluster=BETTER[what](d.cluster))
  fast, slow = step_time(better), step_time(d)
  for name, seconds in fast.terms().items():
    assert seconds <= slow.terms()[name] * UP, name
  assert fast.total_s * 2 * UP >= slow.total_s or what == "outer tier"  # and gains no more than twice


@some
@given(d=deployments(transports=("capacity",)))
def test_fixed_buffers_have_room_for_a_balanced_load(d):
  """At a factor of E they have room for every token at every expert, and never more."""
  m = d.model
  assert balanced_rows(d) >= d.dispatch_tokens * m.experts_per_token
  assert balanced_rows(with_job(d, capacity_factor=float(m.num_experts))) == d.dispatch_tokens * m.num_experts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@settings(some, max_examples=25)
@given(data=st.data())
def test_devices_that_only_repeat_a_replica_keep_its_price(kind, transport, data):
  """Twice the replicas on twice the batch: what a layer computes and exchanges stays, its weights too."""
  d = data.draw(deployments(kinds=(kind,), transports=(transport,), clusters_of=("two tiers",)))
  doubled = with_strategy(with_job(d, batch=2 * d.job.batch, zero=0), data=2 * d.strategy.data)
  once, twice = step_time(with_job(d, zero=0)), step_time(doubled)
  assert twice.matmuls == pytest.approx(once.matmuls)
  assert twice.head == pytest.approx(once.head)
  assert twice.gradients * UP >= once.gradients
  assert memory(doubled).total == memory(with_job(d, zero=0)).total
  assert math.isfinite(twice.total_s)
