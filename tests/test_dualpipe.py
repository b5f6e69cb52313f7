"""DualPipe: microbatches from both ends, against the published bubble and memory, and as part of a plan."""

import random

import pytest
import tiny
from schedule_oracle import parse

from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.memory import kept_microbatches
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.pipeline.schedule_drawing import draw
from jaxmoe.pipeline.schedule_facts import idle_s
from jaxmoe.pipeline.schedule_makers import dualpipe
from jaxmoe.pipeline.schedule_timing import Costs, time_schedule
from jaxmoe.pipeline.schedules import in_flight
from jaxmoe.planner.question import Question
from jaxmoe.planner.search import search
from jaxmoe.planner.space import ORDERS, Space
from jaxmoe.report.balance import stages_table, weight_bytes_by_module
from jaxmoe.report.html_pipeline import pipeline, timed
from jaxmoe.report.placement import placements

SIZES = [(S, M) for S in (2, 4, 6, 8, 16) for M in (2 * S, 2 * S + 2, 5 * S)]
DRAWN = """
  F0 F2 F4 F1:1 B1:1 W1:1 F3:1 F6+B3:1+W3:1 F5:1+B0+W0 B5:1+W5:1 F7:1+B2+W2 B7:1+W7:1 B4 W4 B6 W6
  . F0 F1:1 F2 F3:1 F4+B1:1+W1:1 F5:1+B0+W0 . F6+B3:1+W3:1 F7:1+B2+W2 B5:1+W5:1 B4+W4 B7:1 B6 W7:1 W6
  . F1:1 F0 F3:1 F2 F5:1+B0+W0 F4+B1:1+W1:1 . F7:1+B2+W2 F6+B3:1+W3:1 B4+W4 B5:1+W5:1 B6 B7:1 W6 W7:1
  F1:1 F3:1 F5:1 F0 B0 W0 F2 F7:1+B2+W2 F4+B1:1+W1:1 B4+W4 F6+B3:1+W3:1 B6+W6 B5:1 W5:1 B7:1 W7:1
"""


def published(S, F, input_gradient, W, both):
  """(PP/2 - 1)(F&B + B - 3W), B being the whole backward."""
  return (S // 2 - 1) * (both + (input_gradient + W) - 3 * W)


def test_table_of_four_stages():
  """The order that the paper's steps give: 2, 0, 0, 2 forwards, then both ways in turn, then W's in the gaps, ..."""
  schedule = dualpipe(4, 8)
  assert schedule.table == parse(DRAWN)
  drawn = [line.split() for line in draw(schedule).splitlines()[1:]]
  assert drawn == [["stage", str(stage), *line.split()] for stage, line in enumerate(DRAWN.strip().splitlines())]


@pytest.mark.parametrize("S,M", SIZES)
def test_bubble_is_the_published_one(S, M):
  """While neither F nor W costs more than the input gradient; forwards and backwards at once hide nothing."""
  schedule, rng = dualpipe(S, M), random.Random(S)
  for _ in range(20):
    F, B, W = (rng.randint(0, 40) for _ in "FBW")
    B = max(F, B, W)
    assert time_schedule(schedule, Costs(F=F, B=B, W=W)).idle == (published(S, F, B, W, F + B + W),) * S
  assert time_schedule(schedule, Costs()).idle == ((S // 2 - 1) * 2,) * S


@pytest.mark.parametrize("S,M", SIZES)
def test_bubble_where_other_passes_are_longest(S, M):
  """A longer forward, or weight gradient: (PP/2 - 1)(F + B + max(F, B) - min(B, W)), B the input gradient alone."""
  schedule, rng = dualpipe(S, M), random.Random(M)
  for _ in range(20):
    F, B, W = (rng.randint(0, 40) for _ in "FBW")
    assert time_schedule(schedule, Costs(F=F, B=B, W=W)).idle == ((S // 2 - 1) * (F + B + max(F, B) - min(B, W)),) * S


@pytest.mark.parametrize("S,M", SIZES)
def test_bubble_with_what_overlapping_hides(S, M):
  """F&B at a cost of its own: the stages in the middle do most of them, and idle as published."""
  rng = random.Random(S * M)
  for _ in range(20):
    F, W = rng.randint(0, 40), rng.randint(0, 40)
    B = max(F, W) + rng.randint(0, 20)
    both = rng.randint(max(F, B + W), F + B + W)
    idle = time_schedule(dualpipe(S, M), Costs(F=F, B=B, W=W, FBW=both)).idle
    assert idle[S // 2 - 1] == idle[S // 2] == published(S, F, B, W, both) == max(idle)


@pytest.mark.parametrize("S,M", SIZES)
def test_every_stage_holds_one_microbatch_more_than_there_are_stages(S, M):
  schedule = dualpipe(S, M)
  assert in_flight(schedule) == (S + 1,) * S
  assert schedule.chunks == 2


def test_both_ends_are_alike():
  """Counted from the other end, with even and odd microbatches exchanged, the table is the same."""
  schedule = dualpipe(6, 14)
  for row in schedule.table:
    other = [tuple((kind, m + 1 - 2 * (m % 2), 1 - chunk) for kind, m, chunk in cell) for cell in row]
    assert list(row) == other[::-1]


def test_what_runs_at_once_ends_at_once():
  """By hand, two stages: F of the own end, of the other, then pairs of 5 in the place of 1 + 2 + 3."""
  timeline = time_schedule(dualpipe(2, 4), Costs(F=1, B=2, W=3, FBW=5, send=1))
  pairs = [[(start, end) for cell, start, end in stage if len(cell) == 3] for stage in timeline.spans]
  assert pairs[0] == pairs[1]
  assert all(end - start == 5 for start, end in pairs[0])
  assert [(start, end) for _, start, end in timeline.spans[0][:2]] == [(0, 1), (2, 3)]


# In a plan


def deployment(**job):
  strategy = Strategy(stage=4, expert=2, data=2)
  return tiny.deployment(strategy, **{"sizes": {"num_layers": 12}, "microbatches": 8, "batch": 64, **job})


def test_a_device_stores_two_stages():
  """But of embedding and head, which all stages share, its part alone."""
  one, two = (estimate(deployment(schedule=name)) for name in ("1f1b", "dualpipe"))
  shared_bytes = 4 * (2 * 256 * 32 // 4 + 32)  # embedding and head over the stages, and the last norm
  assert two.memory.parameters == 2 * one.memory.parameters - shared_bytes
  assert two.memory.gradients == two.memory.parameters
  assert sum(weight_bytes_by_module(two.deployment).values()) == two.memory.parameters
  assert kept_microbatches(two.deployment) == 4 + 1
  assert two.time.gradients > 1.5 * one.time.gradients


def test_the_accuracy_page_prices_the_published_case():
  """16 stages; B whole 2.1, of which W is 0.9."""
  assert float(idle_s("dualpipe", 1, 16, 64, 1.0, 1.2, 0.9)) == pytest.approx(7 * (1 + 2.1 + 2.1 - 3 * 0.9))


def test_the_search_may_use_it():
  """Both schedules are found, each where it exists, at the price that the plan has by itself."""
  d = deployment(schedule="dualpipe")
  space = Space(schedules=(("zero_bubble", 1), ("dualpipe", 1)), orders=ORDERS[:1], remats=("none",), zeros=(0,))
  question = Question(model=d.model, cluster=d.cluster, job=d.job, devices=16, space=space)
  found = search(question, keep=400).best
  plans = [candidate.deployment(question) for candidate in found]
  assert {plan.job.schedule for plan in plans} == {"zero_bubble", "dualpipe"}
  for candidate, plan in zip(found, plans, strict=True):
    e = estimate(plan)
    assert e.time.total_s == pytest.approx(candidate.step_s)
    assert e.memory.total == pytest.approx(candidate.memory_bytes, abs=64)
    both_ways = plan.job.schedule == "dualpipe"
    assert not both_ways or (plan.strategy.stage % 2 == 0 and plan.job.microbatches >= 2 * plan.strategy.stage)


def test_the_bubble_is_that_of_the_table():
  e = estimate(deployment(schedule="dualpipe"))
  assert max(timed(e.deployment).idle) == pytest.approx(e.time.bubble)
  (figure,) = pipeline(e).figures
  assert {name for lane in figure.lanes for name, *_ in lane} >= {"F0", "F5:1+B0+W0"}


def test_layers_of_both_stages_are_placed():
  d = deployment(schedule="dualpipe")
  layers = {place.coordinates["stage"]: place.layers for place in placements(d)}
  assert layers == {
    0: (0, 1, 2, 9, 10, 11),
    1: (3, 4, 5, 6, 7, 8),
    2: (6, 7, 8, 3, 4, 5),
    3: (9, 10, 11, 0, 1, 2),
  }
  one, two = (stages_table(deployment(schedule=name)).rows for name in ("1f1b", "dualpipe"))
  assert [row[5] for row in two] == [row[5] for row in one]  # a microbatch's FLOPs


@pytest.mark.parametrize(
  "strategy,job,message",
  [
    (Strategy(stage=3), {"microbatches": 8}, "stage=3 must be even .* nearest legal strategy.stage is 4"),
    (Strategy(stage=4), {"microbatches": 4}, "at least 2 x stage = 8 .* nearest legal job.microbatches is 8"),
    (Strategy(stage=2), {"microbatches": 1}, "must be even .* nearest legal job.microbatches is 4"),
    (Strategy(stage=2), {"microbatches": 4, "chunks": 2}, "chunks must be 1"),
    (Strategy(stage=2), {"microbatches": 4, "kind": "prefill"}, "belong to training"),
  ],
)
def test_what_does_not_go_both_ways(strategy, job, message):
  with pytest.raises(UsageError, match=message):
    tiny.deployment(strategy, sizes={"num_layers": 12}, schedule="dualpipe", **{"batch": 64, **job})
