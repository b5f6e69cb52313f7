"""The search equals brute force: every plan of small spaces, built and priced one at a time (tests/plan_oracle.py)."""

import dataclasses
import itertools
import math
import random

import plan_oracle as oracle
import pytest
import tiny

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.catalogue import load_model
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.parts import DenseLayers, LatentAttention, SharedExpert
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.memory import memory
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.cluster import NetworkTier
from jaxmoe.planner.answer import answer
from jaxmoe.planner.question import OBJECTIVES, Constraints, Question
from jaxmoe.planner.search import DOES_NOT_FIT, LIMITS, NO_REPLICAS, search
from jaxmoe.planner.space import ORDERS, Space, runnable_space, whole_space
from jaxmoe.report import units
from jaxmoe.report.shortage import sentence

EVERY = 10**6  # plans to keep
SEEDS = range(24)
PARTED_BYTES = 64  # an array deals out parts of a byte; one deployment rounds up, once for each group of replicas
PARTED_S = PARTED_BYTES / (tiny.CLUSTER.memory_bandwidth_bytes_per_s * tiny.CLUSTER.memory_efficiency)

MODELS = {
  "grouped": tiny.model(num_kv_heads=2, num_layers=6, vocab_size=288),
  "sixths": tiny.model(num_heads=12, num_kv_heads=6, num_layers=6, num_experts=12, d_expert=96, vocab_size=288),
  "mixed": tiny.model(
    num_layers=5,
    num_experts=12,
    d_expert=96,
    vocab_size=1440,
    dense=DenseLayers(layers=(0,), d_hidden=192),
    shared=SharedExpert(d_hidden=96),
    latent=LatentAttention(query_rank=12, rank=10, plain_dim=6, rotary_dim=2, value_dim=5),
    mtp_layers=1,
  ),
}
CLUSTER = dataclasses.replace(
  tiny.CLUSTER,
  tiers=(
    NetworkTier(name="node", devices=4, bandwidth_bytes_per_s=1e11, latency_s=1e-6),
    NetworkTier(name="fabric", devices=64, bandwidth_bytes_per_s=1e10, latency_s=1e-5),
  ),
)  # fmt: skip
SMALL = {  # of each kind of choice, so many at once, that plain loops end in a second
  "heads_over": 2, "experts_over": 2, "orders": 2, "transports": 2, "schedules": 2, "remats": 1, "zeros": 2,
}  # fmt: skip


def part_of(space, rng):
  """Some of its choices, in its order."""
  parts = {name: sorted(rng.sample(options := getattr(space, name), min(count, len(options))), key=options.index)
           for name, count in SMALL.items()}  # fmt: skip
  return dataclasses.replace(space, **{name: tuple(part) for name, part in parts.items()}, largest_context=4)


def question_of(seed):
  """Any model, number of devices, kind of job, objective and part of a space."""
  rng = random.Random(seed)
  kind, devices = ("train", "prefill", "decode")[seed % 3], rng.choice((1, 2, 4, 6, 8, 12))
  space = rng.choice((whole_space, whole_space, runnable_space))(kind)
  job = Job(
    kind=kind,
    batch=rng.choice((8, 12, 24)),
    sequence_length=rng.choice((12, 16, 48)),
    precision=Precision(weights=rng.choice(("float32", "bfloat16"))),
  )
  return Question(
    model=MODELS[rng.choice(sorted(MODELS))],
    cluster=dataclasses.replace(CLUSTER, memory_bytes=10**15),
    devices=devices,
    job=job,
    batches=rng.choice(((), (6, 16))),
    space=part_of(space, rng),
    objective=rng.choice(sorted(OBJECTIVES)),
    assumptions=rng.choice((Assumptions(), Assumptions(dispatch_overlap=0.5, gradient_overlap=1, load=1.5))),
  )


def some_question(**changes):
  """A search in which much differs."""
  plain = Question(
    model=MODELS["sixths"],
    cluster=CLUSTER,
    devices=8,
    job=Job(kind="train", batch=16, sequence_length=48),
    space=dataclasses.replace(whole_space("train"), remats=("none", "full"), transports=("ragged",)),
  )
  return dataclasses.replace(plain, **changes)


def with_memory(question, memory_bytes):
  return dataclasses.replace(question, cluster=dataclasses.replace(question.cluster, memory_bytes=round(memory_bytes)))


def between(values, share):
  """A limit that this share of the values keeps, not near any of them."""
  ordered = sorted(values)
  kept = ordered[: max(1, round(share * len(ordered)))]
  above = [value for value in ordered if value > kept[-1] + 2 * PARTED_BYTES] or [2 * kept[-1]]
  return (kept[-1] + above[0]) / 2


def assert_same_plan(found, expected):
  assert found.step_s == pytest.approx(expected.step_s, rel=1e-9, abs=PARTED_S)
  assert found.memory_bytes == pytest.approx(expected.memory_bytes, abs=PARTED_BYTES)


@pytest.mark.parametrize("seed", SEEDS)
def test_legal_plans_and_their_prices(seed):
  question = question_of(seed)
  plans = oracle.all_plans(question)
  found = search(question, EVERY)
  assert found.priced == found.fitting == len(plans)
  kept = {oracle.unordered(oracle.key(c.deployment(question))) for c in found.best}
  assert kept == {oracle.unordered(key) for key in plans}
  for candidate in found.best:
    assert_same_plan(candidate, plans[oracle.key(candidate.deployment(question))])


@pytest.mark.parametrize("seed", SEEDS)
def test_best_within_limits(seed):
  """Memory that some plans keep, a limit of time that some of those keep, and a rate that some of these reach."""
  rng, question = random.Random(seed), question_of(seed)
  plans = list(oracle.all_plans(question).values())
  if not plans:
    assert search(question).smallest is None
    return
  room = between([p.memory_bytes for p in plans], rng.choice((0.2, 0.6, 1)))
  fitting = [p for p in plans if p.memory_bytes <= room]
  max_step_s = between([p.step_s * 1e9 for p in fitting], rng.choice((0.3, 1))) / 1e9
  punctual = [p for p in fitting if p.step_s <= max_step_s]
  rates = [p.tokens / p.step_s / p.devices for p in punctual]
  least_rate = rng.choice((min(rates) / 2, 0.999 * sum(rates) / len(rates)))
  kept = [p for p, rate in zip(punctual, rates, strict=True) if rate >= least_rate]
  limits = Constraints(max_step_s=max_step_s, min_tokens_per_s_per_device=least_rate, reserve_bytes=1000)
  found = search(dataclasses.replace(with_memory(question, room + 1000), constraints=limits))
  assert (found.priced, found.fitting) == (len(plans), len(kept))
  assert [found.rejected[reason] for reason in LIMITS] == [
    len(plans) - len(fitting), len(fitting) - len(punctual), len(punctual) - len(kept)
  ]  # fmt: skip
  assert found.smallest.memory_bytes == pytest.approx(min(p.memory_bytes for p in plans), abs=PARTED_BYTES)
  assert found.fastest.step_s == pytest.approx(min(p.step_s for p in fitting), rel=1e-9, abs=PARTED_S)
  score, step_s = min(p.score(question.objective) for p in kept)
  assert found.best[0].score == pytest.approx(score, rel=1e-6)
  assert found.best[0].step_s == pytest.approx(step_s, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS[:12])
def test_everything_considered_is_counted(seed):
  """Strategies that no job mends count once, those that this job does not take once for each size of context."""
  question = question_of(seed)
  found, choices = search(question), question.space.choices
  assert found.considered == found.priced + sum(n for reason, n in found.rejected.items() if reason not in LIMITS)
  assert found.fitting == found.priced - sum(found.rejected[reason] for reason in LIMITS)
  space, counts = question.space, oracle.counts_of(question.devices, question.objective)
  families = math.prod(len(part) for part in (space.heads_over, space.experts_over, space.orders, space.transports))
  each = families * choices * len(question.batches or (1,))
  if question.objective == "devices" and found.best:
    counts = [devices for devices in counts if devices <= found.best[0].devices]  # none after the first with a plan
  strategies = sum(len(oracle.factorisations(devices)) for devices in counts)
  contexts = len(oracle.powers(space.largest_context))
  sequences = max(question.batches or (question.job.batch,))
  assert each * strategies <= found.considered <= each * strategies * contexts * sequences


def test_plans_that_do_the_same_are_priced_the_same():
  """But for latency: gradients are summed group by group of axes, and an axis of one device may part two groups."""
  tiers = tuple(dataclasses.replace(tier, latency_s=0.0) for tier in CLUSTER.tiers)
  space = dataclasses.replace(whole_space("train"), remats=("none",), zeros=(0,))
  question = some_question(devices=4, space=space, cluster=dataclasses.replace(CLUSTER, tiers=tiers))
  prices = {}
  for d in oracle.deployments(question):
    prices.setdefault(oracle.key(d), []).append((memory(d).total, step_time(d).total_s))
  assert max(len(same) for same in prices.values()) > 4
  for kept, *others in prices.values():
    assert all(price == pytest.approx(kept, rel=1e-12) for price in others)


def test_zero_without_replicas_is_left_out():
  alone = some_question(devices=1)
  found = search(alone, EVERY)
  assert {c.deployment(alone).job.zero for c in found.best} == {0}
  assert found.rejected[NO_REPLICAS] == 3 * found.priced


@pytest.mark.parametrize("transport", ["ragged", "gather", "capacity", "dense"])
@pytest.mark.parametrize("heads_over", [("tensor",), ("expert",), ("expert", "tensor")])
def test_a_space_of_one_choice_still_has_its_plans(transport, heads_over):
  """What would repeat another choice repeats nothing where that choice is missing."""
  space = Space(transports=(transport,), heads_over=(heads_over,), orders=ORDERS[1:], schedules=(("zero_bubble", 1),))
  found = search(some_question(devices=1, space=space))
  assert found.best and found.best[0].deployment(some_question(space=space)).job.transport == transport


def test_a_scan_over_ticks_beside_other_schedules():
  """It alone needs equal stages, and on one stage it alone keeps every microbatch."""
  space = Space(schedules=(("gpipe", 1), ("1f1b", 1)), transports=("ragged",), remats=("none",), zeros=(0,))
  question = some_question(model=MODELS["mixed"], devices=4, space=space)
  kept = {oracle.unordered(oracle.key(c.deployment(question))) for c in search(question, EVERY).best}
  assert kept == {oracle.unordered(key) for key in oracle.all_plans(question)}
  assert {key[10] for key in kept} == {("gpipe", 1), ("1f1b", 1), ("any", 1)}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ties_are_broken_the_same_way_every_time(objective):
  """Equal plans come in the order of their memory, then of the fewest features."""
  question = some_question(objective=objective)
  first, second = search(question, 50).best, search(question, 50).best
  assert first == second and [c.sizes for c in first] == [c.sizes for c in second]
  ranks = [(c.score, c.step_s, c.memory_bytes, c.features) for c in first]
  assert ranks == sorted(ranks)
  longer = search(question, 200).best
  assert [(c.family, c.sizes, c.choice) for c in longer[:50]] == [(c.family, c.sizes, c.choice) for c in first]


def test_shown_plans_are_distinct():
  question = some_question()
  kept = [oracle.key(c.deployment(question)) for c in search(question, 100).best]
  assert len(set(kept)) == len(kept) == 100


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_more_room_or_a_faster_network_is_never_worse(objective):
  question = with_memory(some_question(objective=objective), 1_800_000)
  tight = search(question).best[0]
  tiers = [dataclasses.replace(t, bandwidth_bytes_per_s=2 * t.bandwidth_bytes_per_s) for t in CLUSTER.tiers]
  faster = dataclasses.replace(question, cluster=dataclasses.replace(question.cluster, tiers=tuple(tiers)))
  for better in (with_memory(question, 1_900_000), with_memory(question, 10**9), faster):
    assert search(better).best[0].score <= tight.score


@pytest.mark.parametrize("field", [*SMALL, "largest_context"])
def test_a_larger_space_is_never_worse(field):
  question = some_question(space=whole_space("train"))
  whole = search(question).best[0]
  options = getattr(question.space, field)
  parts = [1] if field == "largest_context" else [(option,) for option in options]
  for part in parts:
    found = search(some_question(space=dataclasses.replace(question.space, **{field: part})))
    assert found.best[0].score >= whole.score * (1 - 1e-12) and found.considered < search(question).considered


def test_reserved_memory_is_kept_free():
  question = some_question()
  needed = search(question).best[0].memory_bytes
  reserve = question.cluster.memory_bytes - math.floor(needed) + 1
  kept = search(dataclasses.replace(question, constraints=Constraints(reserve_bytes=reserve))).best
  assert kept and all(c.memory_bytes <= question.cluster.memory_bytes - reserve for c in kept)
  assert kept[0].score > search(question).best[0].score


def test_fewest_devices():
  """A number that keeps the limits, where half of it does not."""
  question = with_memory(some_question(objective="devices", devices=12), 3_000_000)
  assert answer(question).best.deployment.strategy.devices == 6
  fitting = {n: search(dataclasses.replace(question, devices=n, objective="latency")).fitting for n in (12, 6, 3)}
  assert fitting[12] and fitting[6] and not fitting[3]


def test_memory_is_short():
  question = with_memory(some_question(), 1_000_000)
  plans = list(oracle.all_plans(question).values())
  least = min(p.memory_bytes for p in plans)
  found = answer(question)
  shortage = found.shortage
  assert not found.plans and found.rejected[DOES_NOT_FIT] == found.priced == len(plans)
  assert shortage.closest.memory.total == pytest.approx(least, abs=PARTED_BYTES)
  said, over = sentence(question, shortage), units.bytes_(shortage.closest.memory.total - 1_000_000)
  assert shortage.what == "memory" and "memory is short" in said and f"{over} too many" in said
  assert shortage.closest.deployment.name in said
  assert_nearest(question, shortage.fitting)


def assert_nearest(question, fitting):
  """It keeps the limits, and on half as many devices nothing does."""
  d, limits = fitting.deployment, question.constraints
  assert d.strategy.devices > question.devices and estimate(d, question.assumptions) == fitting
  assert fitting.memory.total <= question.cluster.memory_bytes - limits.reserve_bytes
  assert limits.max_step_s is None or fitting.time.total_s <= limits.max_step_s
  cluster = dataclasses.replace(
    question.cluster, devices=4096, tiers=(CLUSTER.tiers[0], dataclasses.replace(CLUSTER.tiers[1], devices=4096))
  )
  half = dataclasses.replace(question, cluster=cluster, devices=d.strategy.devices // 2)
  assert not search(half).best
  assert search(dataclasses.replace(half, devices=d.strategy.devices)).best


def test_time_is_short():
  """What misses is said with its size, and the plan named is the fastest that fits."""
  question = some_question()
  fastest = min(p.step_s for p in oracle.all_plans(question).values())
  limited = dataclasses.replace(question, constraints=Constraints(max_step_s=0.9 * fastest))
  shortage = answer(limited).shortage
  assert shortage.closest.time.total_s == pytest.approx(fastest)
  said = sentence(limited, shortage)
  assert shortage.what == "step" and "time is short" in said and f"takes {units.seconds(fastest)}" in said
  assert f"{units.seconds(0.9 * fastest)} are allowed, {units.seconds(0.1 * fastest)} too long" in said
  if shortage.fitting is not None:
    assert_nearest(limited, shortage.fitting)


def test_a_rate_that_nothing_reaches():
  question = some_question(constraints=Constraints(min_tokens_per_s_per_device=1e11))
  shortage = answer(question).shortage
  assert shortage.fitting is None and shortage.what == "tokens"
  assert "100000000 tokens/ms are asked for" in sentence(question, shortage)


@pytest.mark.parametrize("devices", [3, 5, 6, 7, 12])
def test_numbers_of_devices_that_are_no_powers_of_two(devices):
  question = some_question(devices=devices, job=Job(kind="decode", batch=15, sequence_length=48))
  question = dataclasses.replace(question, space=whole_space("decode"))
  plans = oracle.all_plans(question)
  assert search(question).priced == len(plans)


@pytest.mark.parametrize("kind", ["train", "prefill", "decode"])
@pytest.mark.parametrize("batch, length", [(2**12, 2**24), (2**24, 2**12)])
def test_the_largest_jobs_overflow_nowhere(kind, batch, length):
  """Arrays count in 64 bits, one deployment without end."""
  question = Question(
    model=load_model("kimi-k2"),
    cluster=dataclasses.replace(CLUSTER, memory_bytes=10**30),
    devices=1,
    job=Job(kind=kind, batch=batch, sequence_length=length),
    space=dataclasses.replace(whole_space(kind), transports=("ragged", "gather", "dense", "capacity")),
  )
  for candidate in search(question, EVERY).best:
    d = candidate.deployment(question)
    assert candidate.memory_bytes == pytest.approx(memory(d).total, rel=1e-9)
    assert candidate.step_s == pytest.approx(step_time(d).total_s, rel=1e-9)


def test_nothing_legal_names_what_the_model_refuses():
  """Repetitions are no reason why nothing is legal."""
  question = some_question(devices=7, job=Job(kind="train", batch=15, sequence_length=16))
  shortage = answer(question).shortage
  assert "no plan is legal" in shortage.what and "same plan" not in shortage.what and shortage.closest is None


def test_numbers_of_devices_that_are_searched():
  question = some_question(objective="cost", devices=12)
  assert question.device_counts == (1, 2, 3, 4, 6, 8, 12) == tuple(oracle.counts_of(12, "cost"))
  assert {c.devices for c in search(question, EVERY).best} == {1, 2, 3, 4, 6, 8, 12}
  assert some_question(objective="devices", devices=16).device_counts == (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16)


def test_plans_come_best_first_and_as_their_deployments_are_priced():
  question = some_question(assumptions=Assumptions(load=1.2, dispatch_overlap=0.3))
  best = answer(question, 20).plans
  assert len(best) == 20
  assert all(one.time.total_s <= other.time.total_s for one, other in itertools.pairwise(best))
  candidates = search(question, 20).best
  for one, candidate in zip(best, candidates, strict=True):
    assert one.time.total_s == pytest.approx(candidate.step_s, rel=1e-9)
    assert one.memory.total == pytest.approx(candidate.memory_bytes, abs=PARTED_BYTES)
