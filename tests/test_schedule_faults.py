"""A schedule that breaks a rule cannot be built: faults planted by hand and at random, judged by an oracle."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_oracle import oracle_valid, schedules

from jaxmoe.meshes.errors import UsageError
from jaxmoe.pipeline.schedule_makers import (
  dualpipe,
  forward_only,
  gpipe,
  interleaved,
  lockstep,
  one_forward_one_backward,
  zero_bubble,
)
from jaxmoe.pipeline.schedules import Schedule, Work, through, validate


@given(schedule=schedules())
@settings(max_examples=100, deadline=None)
def test_makers_give_valid_tables(schedule):
  assert oracle_valid(schedule, schedule.table)
  assert max(len(one) for row in schedule.table for one in row) <= schedule.per_tick
  validate(schedule)


@given(schedule=schedules(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_swap_is_refused_just_when_it_breaks_an_order(schedule, data):
  cells = [(t, s) for t in range(schedule.ticks) for s in range(schedule.stages)]
  one, other = data.draw(st.sampled_from(cells)), data.draw(st.sampled_from(cells))
  table = planted(schedule, {one: at(schedule, other), other: at(schedule, one)})
  if oracle_valid(schedule, table):
    dataclasses.replace(schedule, table=table)
  else:
    with pytest.raises(ValueError, match="stage"):
      dataclasses.replace(schedule, table=table)


@given(schedule=schedules(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_dropped_or_doubled_cell_is_refused(schedule, data):
  busy = data.draw(st.sampled_from([(t, s) for t, s, _ in schedule.work()]))
  extra = tuple(at(schedule, busy) if s == busy[1] else () for s in range(schedule.stages))
  for table in (planted(schedule, {busy: ()}), (*schedule.table, extra)):
    with pytest.raises(ValueError, match="stage"):
      dataclasses.replace(schedule, table=table)


def at(schedule, place):
  tick, stage = place
  return schedule.table[tick][stage]


def planted(schedule, cells):
  """The table with these cells, {(tick, stage): cell}, in place of its own."""
  rows = enumerate(schedule.table)
  return tuple(tuple(cells.get((t, s), one) for s, one in enumerate(row)) for t, row in rows)


FAULTS = {  # what is wrong: maker, sizes, cells planted, the message
  "swapped": (
    one_forward_one_backward, (2, 4), {(2, 1): (Work("F", 1),), (3, 1): (Work("B", 0),)},
    "stage 0 does B0 at tick 3, which needs B0 of stage 1 first",
  ),
  "dropped": (gpipe, (2, 3), {(7, 0): ()}, "stage 0 never does B0"),
  "dropped early": (gpipe, (2, 3), {(0, 0): ()}, "stage 1 does F0 at tick 1, which needs F0 of stage 0 first"),
  "doubled": (gpipe, (2, 3), {(4, 0): (Work("F", 1),)}, "stage 0 does F1 at tick 4, which it already did at tick 1"),
  "chunks in the wrong order": (
    interleaved, (2, 2, 2), {(0, 0): (Work("F", 0, 1),), (2, 0): (Work("F", 0),)},
    "stage 0 does F0:1 at tick 0, which needs F0 of stage 1 first",
  ),
  "backward through chunks in the wrong order": (
    interleaved, (2, 2, 2), {(4, 1): (Work("B", 0),), (7, 1): (Work("B", 0, 1),)},
    "stage 1 does B0 at tick 4, which needs B0:1 of stage 0 first",
  ),
  "on another stage": (
    gpipe, (2, 3), {(0, 0): (), (0, 1): (Work("F", 0),)}, "stage 1 does F0 at tick 0, which needs F0 of stage 0 first",
  ),
  "at the tick when its input is made": (
    forward_only, (2, 1), {(0, 1): (Work("F", 0),), (1, 1): ()},
    "stage 1 does F0 at tick 0, which needs F0 of stage 0 first",
  ),
  "weight gradient first": (
    zero_bubble, (2, 3), {(3, 0): (Work("W", 0),), (4, 0): (Work("B", 0),)},
    "stage 0 does W0 at tick 3, which needs B0 of stage 0 first",
  ),
  "no weight gradient": (zero_bubble, (2, 3), {(9, 1): ()}, "stage 1 never does W2"),
  "two things at once": (
    gpipe, (2, 3), {(0, 0): (Work("F", 0), Work("F", 1)), (1, 0): ()},
    "stage 0 does F0+F1 at tick 0; at most 1 may be done",
  ),
  "backward before forward in one cell": (
    lockstep, (3, 4), {(2, 2): (Work("B", 0), Work("F", 0))},
    "stage 2 does B0 at tick 2, which needs F0 of stage 2 first",
  ),
  "of a microbatch that comes the other way": (
    dualpipe, (4, 8), {(0, 3): (Work("F", 0, 1),)},
    "stage 3 does F0:1 at tick 0, which is none of F, B, W of 8 microbatches in 2 chunks",
  ),
  "at once with what it needs": (
    dualpipe, (2, 4), {(1, 0): (Work("F", 1, 1), Work("B", 1, 1))},
    "stage 0 does B1:1 at tick 1, which needs F1:1 of stage 0 first",
  ),
  "of another schedule": (
    gpipe, (2, 3), {(3, 0): (Work("W", 0),)},
    "stage 0 does W0 at tick 3, which is none of F, B of 3 microbatches in 1 chunks",
  ),
  "of no microbatch": (
    gpipe, (2, 3), {(3, 0): (Work("F", 3),)},
    "stage 0 does F3 at tick 3, which is none of F, B of 3 microbatches in 1 chunks",
  ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_named(fault):
  maker, sizes, cells, message = FAULTS[fault]
  schedule = maker(*sizes)
  with pytest.raises(ValueError) as raised:
    dataclasses.replace(schedule, table=planted(schedule, cells))
  assert str(raised.value) == message


def test_ragged_table():
  with pytest.raises(ValueError, match="tick 1 has 1 cells, expected one for each of 2 stages"):
    Schedule(stages=2, microbatches=1, routes=(through(2),), kinds=("F",), table=(((Work("F", 0),), ()), ((),)))


@pytest.mark.parametrize(
  "call,message",
  [
    (lambda: gpipe(0, 4), "stages of at least 1, got 0"),
    (lambda: zero_bubble(4, 0), "microbatches of at least 1, got 0"),
    (lambda: interleaved(4, 4, 0), "chunks of at least 1, got 0"),
    (lambda: interleaved(4, 6, 2), "multiples of its 4 stages, got 6"),
    (lambda: dualpipe(3, 8), "even number of stages.* got 3 stages"),
    (lambda: dualpipe(4, 6), "two a stage or more; got 4 stages and 6 microbatches"),
    (lambda: dualpipe(2, 5), "got 2 stages and 5 microbatches"),
    (lambda: dataclasses.replace(gpipe(1, 1), kinds=("F", "W")), "kinds must be"),
  ],
)
def test_wrong_sizes(call, message):
  with pytest.raises(UsageError, match=message):
    call()
