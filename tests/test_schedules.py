"""Pipeline schedules: tables drawn by hand, the literature's formulas, times against dependencies."""

import doctest
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from schedule_oracle import oracle_needs, parse, schedules

from jaxmoe.meshes.axes import STAGE
from jaxmoe.meshes.errors import UsageError
from jaxmoe.pipeline import schedule_drawing
from jaxmoe.pipeline.executor import run_pipeline
from jaxmoe.pipeline.schedule_drawing import draw
from jaxmoe.pipeline.schedule_makers import (
  forward_only,
  gpipe,
  interleaved,
  lockstep,
  one_forward_one_backward,
  zero_bubble,
)
from jaxmoe.pipeline.schedule_timing import Costs, time_schedule
from jaxmoe.pipeline.schedules import in_flight

# What each maker gives -> the table as drawn by hand: `F0:1` is forward of microbatch 0 through chunk 1.
DRAWN = {
  forward_only: {
    (3, 4): """
      F0 F1 F2 F3 .  .
      .  F0 F1 F2 F3 .
      .  .  F0 F1 F2 F3"""
  },
  gpipe: {
    (2, 3): """
      F0 F1 F2 .  .  B2 B1 B0
      .  F0 F1 F2 B2 B1 B0 . """,
    (4, 2): """
      F0 F1 .  .  .  .  .  .  B1 B0
      .  F0 F1 .  .  .  .  B1 B0 .
      .  .  F0 F1 .  .  B1 B0 .  .
      .  .  .  F0 F1 B1 B0 .  .  . """,
  },
  one_forward_one_backward: {
    (2, 4): """
      F0 F1 .  B0 F2 B1 F3 B2 .  B3
      .  F0 B0 F1 B1 F2 B2 F3 B3 . """,
    (3, 2): """
      F0 F1 .  .  .  B0 .  B1
      .  F0 F1 .  B0 .  B1 .
      .  .  F0 B0 F1 B1 .  . """,
    (4, 6): """
      F0 F1 F2 F3 .  .  .  B0 F4 B1 F5 B2 .  B3 .  B4 .  B5
      .  F0 F1 F2 .  .  B0 F3 B1 F4 B2 F5 B3 .  B4 .  B5 .
      .  .  F0 F1 .  B0 F2 B1 F3 B2 F4 B3 F5 B4 .  B5 .  .
      .  .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 .  .  . """,
  },
  interleaved: {
    (2, 2, 2): """
      F0 F1 F0:1 F1:1 .    B0:1 .    B1:1 B0 B1
      .  F0 F1   F0:1 B0:1 F1:1 B1:1 B0   B1 . """,
    (2, 4, 2): """
      F0 F1 F0:1 F1:1 F2   B0:1 F3   B1:1 F2:1 B0 F3:1 B1   .    B2:1 .    B3:1 B2 B3
      .  F0 F1   F0:1 B0:1 F1:1 B1:1 F2   B0   F3 B1   F2:1 B2:1 F3:1 B3:1 B2   B3 . """,
    (3, 3, 2): """
      F0 F1 F2 F0:1 F1:1 F2:1 .    .    B0:1 .    B1:1 .    B2:1 B0 B1 B2
      .  F0 F1 F2   F0:1 F1:1 F2:1 B0:1 .    B1:1 .    B2:1 B0   B1 B2 .
      .  .  F0 F1   F2   F0:1 B0:1 F1:1 B1:1 F2:1 B2:1 B0   B1   B2 .  . """,
  },
  zero_bubble: {
    (2, 3): """
      F0 F1 .  B0 W0 F2 B1 W1 B2 W2
      .  F0 B0 F1 B1 W0 F2 B2 W1 W2""",
    (3, 4): """
      F0 F1 F2 .  .  B0 W0 F3 B1 W1 B2 W2 B3 W3
      .  F0 F1 .  B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
      .  .  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3""",
    (3, 2): """
      F0 F1 .  .  .  B0 W0 B1 W1
      .  F0 F1 .  B0 .  B1 W0 W1
      .  .  F0 B0 F1 B1 W0 W1 . """,
  },
  lockstep: {
    (3, 4): """
      F0 F1 F2    F3    B0    B1    B2 B3
      .  F0 F1    F2+B0 F3+B1 B2    B3 .
      .  .  F0+B0 F1+B1 F2+B2 F3+B3 .  . """
  },
}
COSTS = [(1, 1), (1, 2), (2, 3), (3, 1)]  # of a forward and a whole backward
SIZES = list(itertools.product(range(1, 6), range(1, 9)))  # S, M
INTERLEAVED = list(itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3)))  # S, M / S, v


@pytest.mark.parametrize("maker,sizes", [(maker, sizes) for maker, drawn in DRAWN.items() for sizes in drawn])
def test_table_equals_the_one_drawn_by_hand(maker, sizes):
  schedule, drawing = maker(*sizes), DRAWN[maker][sizes]
  assert schedule.table == parse(drawing)
  lines = draw(schedule).splitlines()
  assert [line.split() for line in lines[1:]] == [
    ["stage", str(stage), *line.split()] for stage, line in enumerate(drawing.strip().splitlines())
  ]
  assert lines[0].split() == ["tick", *map(str, range(schedule.ticks))]


def test_ticks_of_a_drawing_stand_below_each_other():
  """Every column has the width of the longest label, `F11:1`, and a space."""
  for line in draw(interleaved(2, 12, 2)).splitlines():
    cells = [line[start : start + 6] for start in range(len("stage 0 "), len(line), 6)]
    assert len(cells) == 50
    assert all(" " not in cell.rstrip() and cell[0] != " " == cell.ljust(6)[5] for cell in cells)


def test_docstring_shows_what_is_drawn():
  result = doctest.testmod(schedule_drawing)
  assert (result.attempted, result.failed) == (5, 0)


def test_a_timeline_between_ticks_is_not_drawn():
  timeline = time_schedule(gpipe(2, 2), Costs(F=0.5))
  with pytest.raises(ValueError, match="whole"):
    draw(timeline)


# Measures against formulas, in whole numbers


@pytest.mark.parametrize("F,B", COSTS)
@pytest.mark.parametrize("maker", [gpipe, one_forward_one_backward, lockstep])
def test_plain_bubble_is_a_pass_through_the_other_stages(maker, F, B):
  """(S - 1)(F + B): published for 1F1B beside DualPipe's; GPipe's is the same, and so is lockstep's if not masked."""
  for S, M in SIZES:
    timeline = time_schedule(maker(S, M), Costs(F=F, B=B))
    assert timeline.makespan == M * (F + B) + (S - 1) * (F + B)
    assert timeline.idle == ((S - 1) * (F + B),) * S
    assert timeline.bubble_shares == ((S - 1) / (M + S - 1),) * S


@pytest.mark.parametrize("F,B", COSTS)
def test_interleaved_bubble_divides_by_chunks(F, B):
  """(S - 1)(F + B) / v, where F and B are those of a whole stage and so F / v those of a chunk."""
  for S, rounds, v in INTERLEAVED:
    M = S * rounds
    timeline = time_schedule(interleaved(S, M, v), Costs(F=Fraction(F, v), B=Fraction(B, v)))
    assert timeline.makespan == M * (F + B) + Fraction((S - 1) * (F + B), v)


@pytest.mark.parametrize("F,B,W", [(1, 1, 1), (2, 2, 1), (2, 1, 1), (5, 6, 4), (1, 2, 1), (3, 2, 0)])
def test_zero_bubble_h1_bubble(F, B, W):
  """(S - 1)(F + B - 2W) is published beside DualPipe's with B whole, B + W here; holds if M >= S and W <= F, B."""
  for S, M in SIZES:
    timeline = time_schedule(zero_bubble(S, M), Costs(F=F, B=B, W=W))
    if M >= S:
      assert timeline.makespan - M * (F + B + W) == (S - 1) * (F + (B + W) - 2 * W)


def test_in_flight():
  for S, M in SIZES:
    stages = range(S)
    assert in_flight(gpipe(S, M)) == (M,) * S
    assert in_flight(one_forward_one_backward(S, M)) == tuple(min(M, S - s) for s in stages)
    assert in_flight(zero_bubble(S, M)) == (min(M, S),) * S
    assert in_flight(zero_bubble(S, M), until="B") == tuple(min(M, S - s) for s in stages)
    assert in_flight(lockstep(S, M)) == tuple(min(M, 2 * (S - 1 - s) + 1) for s in stages)
    assert in_flight(forward_only(S, M)) == (1,) * S


def test_in_flight_of_interleaved():
  """Narayanan et al. give the first stage 1 + (S - 1)/(S v) of 1F1B's S microbatches, each v chunks."""
  for S, rounds, v in INTERLEAVED:
    if v > 1:
      held = in_flight(interleaved(S, S * rounds, v))
      assert held == tuple(min(S * rounds * v, 2 * (S - 1 - s) + (v - 1) * S + 1) for s in range(S))
      assert rounds == 1 or held[0] == S * v * (1 + Fraction(S - 1, S * v))


def test_in_flight_of_each_chunk_by_hand():
  """From the table of 2 stages, 4 microbatches and 2 chunks above: stage 0 holds all four of chunk 0 before B0."""
  schedule = interleaved(2, 4, 2)
  assert in_flight(schedule) == (5, 3)
  assert in_flight(schedule, chunk=0) == (4, 3)
  assert in_flight(schedule, chunk=1) == (2, 1)


def test_one_chunk_is_plain_1f1b():
  assert interleaved(4, 6, chunks=1) == one_forward_one_backward(4, 6)


def test_measures_of_a_table_by_hand():
  schedule = one_forward_one_backward(3, 2)  # drawn above: 8 ticks, each stage works in 4 of them
  assert (schedule.ticks, schedule.idle_ticks, schedule.bubble_shares) == (8, (4, 4, 4), (0.5, 0.5, 0.5))
  assert lockstep(3, 4).idle_ticks == (0, 2, 4)
  assert lockstep(3, 4).ticks == 4 + 2 * (3 - 1)  # what a loop that masks idle work executes


def test_in_flight_until_a_pass_that_never_comes():
  with pytest.raises(UsageError, match="only F, B"):
    in_flight(gpipe(2, 2), until="W")


# Timing


def test_timing_by_hand():
  """Stages cost F 1 and 2, B 2 and 4, a message 1: stage 1 starts at 2, and its B0 is back at stage 0 at 9."""
  timeline = time_schedule(one_forward_one_backward(2, 2), Costs(F=(1, 2), B=(2, 4), send=1))
  spans = [[(start, end) for _, start, end in stage] for stage in timeline.spans]
  assert spans == [[(0, 1), (1, 2), (9, 11), (15, 17)], [(2, 4), (4, 8), (8, 10), (10, 14)]]
  assert timeline.makespan == 17
  assert timeline.idle == (17 - 6, 17 - 12)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_work_starts_as_soon_as_it_can_and_not_before(data):
  schedule = data.draw(schedules())
  S, integers = schedule.stages, st.integers(0, 5)
  F, B, W = (data.draw(st.lists(integers, min_size=S, max_size=S)) for _ in "FBW")
  send, cost = data.draw(integers), {"F": F, "B": B, "W": W}
  timeline = time_schedule(schedule, Costs(F=F, B=B, W=W, send=send))
  times = {
    (s, tuple(work)): (start, end)
    for s, stage in enumerate(timeline.spans)
    for cell, start, end in stage
    for work in cell
  }
  for s, stage in enumerate(timeline.spans):
    assert [work for span in stage for work in span.cell] == schedule.order(s)
    free = 0
    for cell, start, end in stage:
      assert schedule.joined or len(cell) == 1
      needs = {need for work in cell for need in oracle_needs(schedule, s, work)} - {(s, tuple(work)) for work in cell}
      assert start == max([free, *(times[source, need][1] + send * (source != s) for source, need in needs)])
      assert end == start + sum(cost[work.kind][s] for work in cell)
      free = end


@given(schedule=schedules())
@settings(max_examples=50, deadline=None)
def test_a_table_of_one_piece_a_tick_is_its_own_timeline(schedule):
  timeline = time_schedule(schedule, Costs())
  if schedule.per_tick == 1:
    assert (timeline.makespan, timeline.idle) == (schedule.ticks, schedule.idle_ticks)
    assert timeline.bubble_shares == schedule.bubble_shares
    assert draw(timeline) == draw(schedule)


def test_costs_of_nothing_have_no_bubble():
  assert time_schedule(gpipe(2, 2), Costs(F=0, B=0)).bubble_shares == (0.0, 0.0)


@pytest.mark.parametrize(
  "costs,message",
  [({"F": (1, 2, 3)}, "3 costs of F for 2 stages"), ({"B": -1}, "0 or more"), ({"send": -1}, "send=-1")],
)
def test_wrong_costs(costs, message):
  with pytest.raises(UsageError, match=message):
    time_schedule(gpipe(2, 2), Costs(**costs))


@pytest.mark.parametrize("S,M", [(1, 3), (2, 3), (4, 2), (4, 6)])
def test_executor_runs_the_forward_table(S, M):
  """What `run_pipeline` does at tick t on stage s, recorded on fake devices: M + S - 1 ticks, m at tick m + s."""

  def record(carry, x, microbatch, active):
    return carry, x, jnp.where(active, microbatch, -1)[None]

  def body(inputs_M):
    return run_pipeline(record, jnp.zeros(()), jax.lax.pcast(inputs_M, STAGE, to="varying"), stages=S)[1]

  mesh = jax.make_mesh((S,), (STAGE,), axis_types=(jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(body, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(None, STAGE))
  ran = jax.jit(mapped)(jnp.zeros((M, 1))).tolist()
  assert len(ran) == forward_only(S, M).ticks == M + S - 1
  assert ran == [[one[0].microbatch if one else -1 for one in row] for row in forward_only(S, M).table]
  forward_half = gpipe(S, M).table[: M + S - 1]
  assert ran == [[one[0].microbatch if one else -1 for one in row] for row in forward_half]
