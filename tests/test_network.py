"""Times of collectives against sums done by hand, simulated transfers, published figures and invariants."""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxmoe.config.catalogue import load_cluster
from jaxmoe.cost.collectives import Collective
from jaxmoe.cost.groups import members_within
from jaxmoe.cost.network import Group, collective_s
from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.cluster import NetworkTier
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Folding, Strategy

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
NODE, FABRIC = tiny.CLUSTER.tiers  # of 8 at 100 GB/s and 1 us, of 64 at 10 GB/s and 10 us
POWERS = st.integers(0, 4).map(lambda power: 2**power)
MB = 1_000_000


class Columns(Folding):
  """Arrays of strategies."""

  def __init__(self, **columns):
    self.__dict__.update(columns)


def seconds(kind, axes, payload_bytes, strategy, cluster=tiny.CLUSTER, outer_bytes=None):
  collective = Collective("x", kind, axes if isinstance(axes, tuple) else (axes,), payload_bytes, 1, outer_bytes)
  return collective_s(collective, strategy, cluster)


def network(*tiers):
  return dataclasses.replace(tiny.CLUSTER, devices=1, tiers=tiers)


def tier(devices, bandwidth_bytes_per_s, latency_s, **more):
  return NetworkTier(
    name=f"of {devices}", devices=devices, bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=latency_s, **more
  )


@pytest.mark.parametrize("kind, payload_bytes, microseconds", [
  ("all-gather", 8 * MB, 7 + 7 * 10),
  ("reduce-scatter", 8 * MB, 7 + 7 * 10),
  ("all-to-all", 8 * MB, 1 + 7 * 10),  # messages to all peers leave at once
  ("all-reduce", 8 * MB, 2 * (7 + 7 * 10)),
  ("all-reduce", 8000, 2 * 3 + 2 * 0.08),  # two trees, three levels
  ("collective-permute", 8 * MB, 1 + 80),
])  # fmt: skip
def test_inside_a_node_by_hand(kind, payload_bytes, microseconds):
  """Eight devices: 1 us a message, 100 bytes a nanosecond."""
  assert seconds(kind, EXPERT, payload_bytes, Strategy(expert=8)) == pytest.approx(microseconds * 1e-6)


@pytest.mark.parametrize("kind, payload_bytes, microseconds", [
  # 16 pieces of 1 MB, 15 messages, one of them between nodes; the eight of a node send 15 MB out at 80 GB/s together
  ("all-gather", 16 * MB, 14 + 10 + 15e6 / 80e3),
  ("reduce-scatter", 16 * MB, 14 + 10 + 15e6 / 80e3),
  ("all-reduce", 16 * MB, 2 * (14 + 10 + 15e6 / 80e3)),
  ("all-reduce", 16_000, 2 * (3 + 10) + 2 * 16e3 / 80e3),  # trees: three levels inside, one outside
  ("all-to-all", 16 * MB, 10 + 8e6 / 10e3),  # 8 MB to the other node, while 7 MB go round this one
  ("collective-permute", 16 * MB, 10 + 16e6 / 10e3),
])  # fmt: skip
def test_over_two_nodes_by_hand(kind, payload_bytes, microseconds):
  assert seconds(kind, EXPERT, payload_bytes, Strategy(expert=16)) == pytest.approx(microseconds * 1e-6)


def test_tier_after_tier_where_the_outer_one_is_slow():
  """Outside 1 of 16 MB at 2 GB/s, inside 14 of 16 at 100 GB/s; in one ring 15 MB would leave at 16 GB/s, 938 us."""
  cluster = network(NODE, tier(64, 2e9, 1e-5))
  expected_s = 24e-6 + 1e6 / 2e9 + 14e6 / 100e9
  assert seconds("all-gather", EXPERT, 16 * MB, Strategy(expert=16), cluster) == pytest.approx(expected_s)
  assert seconds("all-reduce", EXPERT, 16 * MB, Strategy(expert=16), cluster) == pytest.approx(2 * expected_s)


def test_an_all_to_all_takes_as_long_as_its_busiest_tier():
  """7 of 16 MB go round the node at 100 GB/s, 8 leave at 200 GB/s."""
  cluster = network(NODE, tier(64, 200e9, 1e-5))
  assert seconds("all-to-all", EXPERT, 16 * MB, Strategy(expert=16), cluster) == pytest.approx(10e-6 + 70e-6)


def test_three_tiers_by_hand():
  """Eight devices, two a board, two boards a node: of 8 pieces 4 move on the board, 2 in the node, 1 outside."""
  cluster = network(tier(2, 100e9, 1e-6), tier(4, 50e9, 2e-6), tier(64, 1e9, 4e-6))
  s = Strategy(expert=8)
  assert seconds("all-gather", EXPERT, 8 * MB, s, cluster) == pytest.approx(
    12e-6 + 4e6 / 100e9 + 2e6 / 50e9 + 1e6 / 1e9
  )
  assert seconds("all-to-all", EXPERT, 8 * MB, s, cluster) == pytest.approx(4e-6 + 4e6 / 1e9)
  assert seconds("collective-permute", EXPERT, 8 * MB, s, cluster) == pytest.approx(4e-6 + 8e6 / 1e9)
  # Of 3 MB that leave the board, a third goes to the other board and two thirds leave the node; then all are spread.
  spread = seconds("all-to-all", EXPERT, 8 * MB, s, cluster, 3 * MB)
  assert spread == pytest.approx(1e-6 + 4e-6 + 2e6 / 1e9)


def test_a_token_sent_once_to_a_node_is_spread_inside():
  """2 of 16 MB leave at 10 GB/s, 200 us; all 16 are spread, 7/8 of them over the node, 140 us; one message each."""
  sent_once = seconds("all-to-all", EXPERT, 16 * MB, Strategy(expert=16), outer_bytes=2 * MB)
  assert sent_once == pytest.approx(10e-6 + 1e-6 + 200e-6)
  spreading = seconds("all-to-all", EXPERT, 16 * MB, Strategy(expert=16), outer_bytes=MB)
  assert spreading == pytest.approx(11e-6 + 140e-6)
  inside = Strategy(expert=8)
  assert seconds("all-to-all", EXPERT, MB, inside, outer_bytes=0) == seconds("all-to-all", EXPERT, MB, inside)


def test_only_what_an_axis_crosses_counts():
  """Tensor neighbours share a node; experts are eight apart, each in a node of its own."""
  s = Strategy(expert=4, tensor=8)
  assert seconds("all-gather", TENSOR, 8 * MB, s) == pytest.approx(77e-6)
  assert seconds("all-gather", EXPERT, 8 * MB, s) == pytest.approx(3 * 10e-6 + 6e6 / 10e9)
  swapped = dataclasses.replace(s, order=(DATA, STAGE, TENSOR, EXPERT))
  assert seconds("all-gather", EXPERT, 8 * MB, swapped) == pytest.approx(3 * 1e-6 + 6e6 / 100e9)
  shared = Strategy(data=16, context=4)
  assert seconds("all-gather", CONTEXT, 8 * MB, shared) == pytest.approx(3 * 1e-6 + 6e6 / 100e9)


def test_efficiency_is_a_share_of_the_bandwidth():
  half = network(dataclasses.replace(NODE, efficiency=0.5), FABRIC)
  for kind in KINDS:
    full, slow = (seconds(kind, EXPERT, 800 * MB, Strategy(expert=8), cluster) for cluster in (tiny.CLUSTER, half))
    empty = seconds(kind, EXPERT, 0, Strategy(expert=8))
    assert slow == pytest.approx(2 * full, rel=1e-2) and slow > full > empty


@pytest.mark.parametrize("name, n, k, ring, gbytes_per_s", [
  ("tpu_v5e", 256, 2, 16, 200), ("tpu_v5e", 16, 1, 16, 100), ("tpu_v5e", 2, 1, 2, 100), ("tpu_v5e", 64, 2, 8, 200),
])  # fmt: skip
def test_torus_of_a_pod_by_hand(name, n, k, ring, gbytes_per_s):
  """16 x 16 chips, 50 GB/s a link and direction: a group of 16 has one axis, a larger one both."""
  s, cluster = Strategy(expert=256 // n, tensor=n), load_cluster(name)
  hops_s = k * ring / 2 * 1e-6
  wire_s = 8 * MB / (gbytes_per_s * 1e9)
  assert seconds("all-gather", TENSOR, 8 * MB, s, cluster) == pytest.approx(hops_s + (n - 1) / n * wire_s)
  assert seconds("all-reduce", TENSOR, 8 * MB, s, cluster) == pytest.approx(2 * (hops_s + (n - 1) / n * wire_s))
  assert seconds("all-to-all", TENSOR, 8 * MB, s, cluster) == pytest.approx(hops_s + 8 * MB * ring / 8 / 50e9)
  assert seconds("collective-permute", TENSOR, 8 * MB, s, cluster) == pytest.approx(1e-6 + 8 * MB / 50e9)


@pytest.mark.parametrize("slice_devices, n, k", [
  (64, 4, 1), (64, 16, 2), (64, 64, 3), (8, 2, 1), (8, 4, 2), (8, 8, 3), (4, 2, 1), (4, 4, 2),
  (1331, 11, 1), (1331, 121, 2),
])  # fmt: skip
def test_axes_of_a_3d_torus_that_a_group_fills(slice_devices, n, k):
  s, cluster = Strategy(expert=slice_devices // n, tensor=n), load_cluster("tpu_v5p")
  assert Group(s, (TENSOR,), cluster).levels[0].bandwidth_bytes_per_s == pytest.approx(k * 200e9)


def test_pods_are_joined_by_a_slower_network():
  """512 v5e chips: 511 of 512 MB pass through 200 GB/s in a pod; 256 chips of a pod have 800 GB/s out of it."""
  s, cluster = Strategy(expert=512), load_cluster("tpu_v5e")
  assert seconds("all-gather", EXPERT, 512 * MB, s, cluster) == pytest.approx(16e-6 + 10e-6 + 511e6 / 200e9)
  away_s = 256e6 / 3.125e9
  assert seconds("all-to-all", EXPERT, 512 * MB, s, cluster) == pytest.approx(16e-6 + away_s)


@pytest.mark.parametrize("ring, axes", [(2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (2, 3), (4, 3)])
def test_torus_all_to_all_is_the_busiest_links_load(ring, axes):
  """Every pair's part along shortest ways, axis after axis; halfway round, half each way."""
  n, loads = ring**axes, collections.Counter()
  for source, target in itertools.product(itertools.product(range(ring), repeat=axes), repeat=2):
    at = list(source)
    for axis in range(axes):
      ahead = (target[axis] - at[axis]) % ring
      ways = [(1, 0.5), (-1, 0.5)] if 2 * ahead == ring else [(1 if 2 * ahead < ring else -1, 1)]
      for step, part in ways:
        for hop in range(min(ahead, ring - ahead)):
          here = (*at[:axis], (at[axis] + step * hop) % ring, *at[axis + 1 :])
          loads[here, axis, step] += part / n
      at[axis] = target[axis]
  links = 2 * axes
  cluster = network(tier(n, links * 1e9, 0, torus_axes=axes))
  assert seconds("all-to-all", TENSOR, 1e9, Strategy(tensor=n), cluster) == pytest.approx(max(loads.values()))


def test_torus_all_to_all_against_published_figures():
  """A quarter of an all-gather of the whole array (JAX scaling book), and a pod's bisection (Cloud TPU, v5e, v6e)."""
  ring = network(tier(64, 100e9, 0, torus_axes=1))
  for n in (2, 8, 64):
    exchange = seconds("all-to-all", TENSOR, 1e6, Strategy(tensor=n), ring)
    gather = seconds("all-gather", TENSOR, n * 1e6, Strategy(tensor=n), ring)
    assert exchange == pytest.approx(gather * n / (n - 1) / 4)
  for name, bisection in (("tpu_v5e", 1.6e12), ("tpu_v6e", 3.2e12)):
    half_to_half_bytes = 128 * 1e9 / 2
    found = seconds("all-to-all", TENSOR, 1e9, Strategy(tensor=256), load_cluster(name))
    assert found == pytest.approx(16e-6 + half_to_half_bytes / bisection)


def test_bus_bandwidth_of_h100_nodes():
  """NCCL: 370 of 450 GB/s in a node (nccl-tests issue 212); N nodes, one NIC a device: N/(N-1) NICs (issue 130)."""
  cluster = load_cluster("dgx_h100")
  nvlink, infiniband = (dataclasses.replace(tier, efficiency=1.0) for tier in cluster.tiers)
  cluster = dataclasses.replace(cluster, tiers=(nvlink, infiniband))
  seen = dataclasses.replace(cluster, tiers=(dataclasses.replace(nvlink, efficiency=370 / 450), infiniband))
  for kind in ("all-to-all", "all-gather"):
    assert 7 / 8 * 1e9 / seconds(kind, EXPERT, 1e9, Strategy(expert=8), seen) == pytest.approx(370e9, rel=0.01)
  for nodes in (2, 4, 16):
    n = 8 * nodes
    found = (n - 1) / n * 64e9 / seconds("all-to-all", EXPERT, 64e9, Strategy(expert=n), cluster)
    assert found == pytest.approx(nodes / (nodes - 1) * 50e9 * (n - 1) / n, rel=0.01)
    assert 15 / 16 * 64e9 / seconds("all-gather", EXPERT, 64e9, Strategy(expert=16), cluster) <= 8 * 50e9


def test_bytes_of_a_gather_tier_after_tier_by_simulation():
  """Outermost first, each member of every inner block sends what it has to its counterparts; 2 x 3 x 4 devices."""
  blocks, n = (4, 12, 24), 24
  held, sent = {rank: {rank} for rank in range(n)}, collections.Counter()
  for level in (2, 1, 0):
    inner, outer = (1, *blocks)[level], blocks[level]
    peers = {r: [p for p in range(n) if p // outer == r // outer and p % inner == r % inner] for r in held}
    sent[level] = sum(len(held[p]) for p in peers[0] if p)
    held = {r: set().union(*(held[p] for p in peers[r])) for r in held}
  assert all(pieces == set(range(n)) for pieces in held.values())
  cluster = network(*(tier(block, 1e9, 0) for block in blocks))
  levels = Group(Strategy(tensor=n), (TENSOR,), cluster).levels
  assert [n * level.share for level in levels] == pytest.approx([sent[i] for i in range(3)])


@given(st.tuples(POWERS, POWERS, POWERS, POWERS), st.permutations(AXES), st.sets(st.sampled_from(AXES)), POWERS)
def test_members_within_a_block_by_counting(sizes, order, axes, span):
  s = Strategy(**dict(zip(AXES, sizes, strict=True)), order=tuple(order))
  assume(s.devices <= 4096)
  ranks = [sum(c) for c in itertools.product(*(np.arange(s.size(a)) * s.stride(a) for a in axes))]
  assert members_within(s, tuple(axes), span) == sum(rank < span for rank in ranks)


@st.composite
def clusters(draw, slowdown=1.0):
  """One to three tiers, each slower than the one inside by `slowdown` at least."""
  found = [tier(draw(POWERS), draw(st.floats(1e9, 1e12)), draw(st.floats(0, 1e-4)))]
  for _ in range(draw(st.integers(0, 2))):
    last = found[-1]
    bandwidth = last.bandwidth_bytes_per_s / slowdown * draw(st.floats(0.1, 1))
    found.append(tier(last.devices * 2 * draw(POWERS), bandwidth, last.latency_s + draw(st.floats(0, 1e-4))))
  if draw(st.booleans()):
    found[0] = dataclasses.replace(found[0], torus_axes=draw(st.integers(1, 3)))
  return network(*found)


PLANS = st.lists(st.tuples(POWERS, POWERS, POWERS, POWERS), min_size=1, max_size=6)
GROUPS = st.sampled_from([(DATA,), (STAGE,), (EXPERT,), (TENSOR,), (EXPERT, TENSOR), (DATA, EXPERT), AXES, ()])


@given(PLANS, GROUPS, clusters(), st.floats(0, 1e9), st.booleans())
def test_arrays_of_plans_are_priced_as_each_alone(plans, axes, cluster, payload_bytes, outer):
  columns = Columns(order=AXES, context=1, **{axis: np.array([p[i] for p in plans]) for i, axis in enumerate(AXES)})
  payloads = payload_bytes * np.arange(len(plans))
  for kind in KINDS:
    together = seconds(kind, axes, payloads, columns, cluster, payloads / 3 if outer else None)
    for i, plan in enumerate(plans):
      alone = Strategy(**dict(zip(AXES, plan, strict=True)))
      apart = seconds(kind, axes, payloads[i], alone, cluster, payloads[i] / 3 if outer else None)
      assert np.broadcast_to(together, len(plans))[i] == pytest.approx(apart, rel=1e-12, abs=0)


@given(st.tuples(POWERS, POWERS, POWERS, POWERS), GROUPS, clusters(), st.floats(1e-3, 1e9), st.sampled_from(KINDS))
def test_time_is_positive_and_grows_with_bytes_and_one_device_needs_none(sizes, axes, cluster, payload_bytes, kind):
  s = Strategy(**dict(zip(AXES, sizes, strict=True)))
  less, more = (seconds(kind, axes, v, s, cluster) for v in (payload_bytes, 2 * payload_bytes))
  if s.size(*axes) == 1:
    assert less == more == 0
  else:
    assert 0 < less < more <= 2 * less


@given(POWERS, clusters(slowdown=2), POWERS, st.floats(0, 1e9), st.sampled_from(KINDS))
def test_leaving_a_block_is_never_faster(n, cluster, stride, payload_bytes, kind):
  """The same group on neighbouring ranks and on ranks far apart; a switch of twice the bandwidth each tier inwards."""
  cluster = network(*(dataclasses.replace(tier, torus_axes=None) for tier in cluster.tiers))
  near = seconds(kind, EXPERT, payload_bytes, Strategy(expert=n), cluster)
  far = seconds(kind, EXPERT, payload_bytes, Strategy(expert=n, tensor=stride), cluster)
  assert far >= near * (1 - 1e-12)


@given(POWERS, clusters(), st.floats(0, 1e9))
def test_no_slower_than_one_ring_at_the_slowest_tiers_pace(n, cluster, payload_bytes):
  cluster = network(*(dataclasses.replace(tier, torus_axes=None) for tier in cluster.tiers))
  slowest = next((t for t in cluster.tiers if t.devices >= n), cluster.tiers[-1])
  ring_s = (n - 1) * slowest.latency_s + (n - 1) / n * payload_bytes / slowest.bandwidth_bytes_per_s
  for kind, rounds in (("all-gather", 1), ("all-reduce", 2)):
    assert seconds(kind, EXPERT, payload_bytes, Strategy(expert=n), cluster) <= rounds * ring_s * (1 + 1e-12)


@given(POWERS, POWERS, clusters(), st.floats(0, 1e9), st.sampled_from(KINDS))
def test_names_of_axes_do_not_matter(size, stride, cluster, payload_bytes, kind):
  """Also, the part of a group that one axis has may be two axes'."""
  by_expert = seconds(kind, EXPERT, payload_bytes, Strategy(expert=size, tensor=stride), cluster)
  assert seconds(kind, STAGE, payload_bytes, Strategy(stage=size, expert=stride), cluster) == by_expert
  split = Strategy(data=size, stage=2, expert=1, tensor=stride)
  both = seconds(kind, (DATA, STAGE), payload_bytes, split, cluster)
  whole = Strategy(expert=2 * size, tensor=stride)
  assert both == pytest.approx(seconds(kind, EXPERT, payload_bytes, whole, cluster), rel=1e-12)


@given(POWERS, POWERS, st.floats(0, 1e9), st.sampled_from([kind for kind in KINDS if kind != "all-to-all"]))
def test_a_tier_cut_into_two_alike_is_the_same_tier(n, cut, payload_bytes, kind):
  whole, halves = network(tier(64, 1e10, 1e-5)), network(tier(cut, 1e10, 1e-5), tier(64, 1e10, 1e-5))
  found = seconds(kind, EXPERT, payload_bytes, Strategy(expert=n), halves)
  assert found == pytest.approx(seconds(kind, EXPERT, payload_bytes, Strategy(expert=n), whole), rel=1e-12)


def test_only_the_innermost_tier_is_a_torus():
  with pytest.raises(UsageError, match="only the innermost tier can be a torus"):
    network(NODE, dataclasses.replace(FABRIC, torus_axes=2))
  assert [t.torus_axes for t in load_cluster("tpu_v6e").tiers] == [2, None]


def test_one_plan_has_plain_numbers():
  for kind, name in itertools.product(KINDS, ("dgx_h100", "tpu_v5e")):
    assert type(seconds(kind, EXPERT, MB, Strategy(expert=512), load_cluster(name))) is float


def test_a_group_of_one_device_takes_no_time():
  for kind in KINDS:
    assert seconds(kind, (), MB, Strategy()) == 0 == seconds(kind, EXPERT, MB, Strategy(tensor=8))
  assert math.isfinite(seconds("all-to-all", EXPERT, 0, Strategy(expert=8), outer_bytes=0))
