"""The packaged facts about schedules against the tables that they come from, and against the literature's formulas."""

import json

import numpy as np
import pytest

from jaxmoe.meshes.errors import UsageError
from jaxmoe.pipeline import schedule_facts_make as maker
from jaxmoe.pipeline.schedule_facts import idle_s, in_flight, supported
from jaxmoe.pipeline.schedule_timing import Costs, time_schedule
from jaxmoe.pipeline.schedules import in_flight as held_by_stage

KINDS = [(schedule, chunks) for schedule in maker.CHUNKS for chunks in maker.CHUNKS[schedule]]
EVERY_STAGES = np.arange(1, maker.MOST_STAGES + 1)[:, None]
EVERY_ROUNDS = np.array([*range(1, 200), 1000, 2**14, 2**20])
LARGE = [
  ("gpipe", 1, 128),
  ("1f1b", 1, 128),
  ("interleaved", 2, 4),
  ("zero_bubble", 1, 40),
  ("zero_bubble", 1, 128),
  ("dualpipe", 1, 5),
]
# Schedule -> idle time of a stage by the literature, where one microbatch passes a stage in F, B and W.
IDLE = {
  "gpipe": lambda S, M, v, F, B, W: (S - 1) * (F + B),
  "1f1b": lambda S, M, v, F, B, W: (S - 1) * (F + B),
  "interleaved": lambda S, M, v, F, B, W: (S - 1) * (F + B) / v,
  "zero_bubble": lambda S, M, v, F, B, W: (S - 1) * (F + B) - (np.minimum(S, M) - 1) * np.minimum(np.minimum(F, B), W),
  "dualpipe": lambda S, M, v, F, B, W: (S / 2 - 1) * (F + B + np.maximum(F, B) - np.minimum(B, W)),
}
HELD = {
  "gpipe": lambda S, M, v: M,
  "1f1b": lambda S, M, v: np.minimum(S, M),
  "interleaved": lambda S, M, v: np.minimum(M, (2 * (S - 1) + (v - 1) * S + 1) / v),
  "zero_bubble": lambda S, M, v: np.minimum(S, M),
  "dualpipe": lambda S, M, v: S + 1,
}


def takes(schedule, chunks, S, rounds):
  """The number of microbatches that comes in this place of those that a schedule takes: 1 for the fewest."""
  if schedule == "dualpipe":
    return 2 * S + 2 * (rounds - 1)
  return rounds * (S if chunks > 1 else 1)


def measured(schedule, chunks, S, rounds, costs):
  """(idle time, microbatches held) of the table itself; costs of a chunk."""
  table = maker.make(schedule, chunks, S, rounds)
  held = 2 if schedule == "dualpipe" else chunks
  assert (table.stages, table.microbatches, table.chunks) == (S, takes(schedule, chunks, S, rounds), held)
  (idle,) = set(time_schedule(table, Costs(**dict(zip("FBW", costs, strict=True)))).idle)
  return idle, max(held_by_stage(table)) / chunks


@pytest.mark.parametrize("schedule,chunks", KINDS)
def test_facts_are_those_of_the_tables(schedule, chunks):
  """Fewer microbatches than stages, as many, more; whole costs, some of nothing, so that sums are exact."""
  counts = range(2, 9, 2) if schedule == "dualpipe" else range(1, 7)
  sizes = [(S, rounds) for S in counts for rounds in (*range(1, S + 3), 3 * S + 1)] * 2
  costs = np.random.default_rng(chunks).integers(0, 40, (len(sizes), 3)).tolist()
  table = [measured(schedule, chunks, *size, cost) for size, cost in zip(sizes, costs, strict=True)]
  S = np.transpose(sizes)[0]
  M = np.array([takes(schedule, chunks, *size) for size in sizes])
  found = [idle_s(schedule, chunks, S, M, *np.transpose(costs) * chunks), in_flight(schedule, chunks, S, M)]
  np.testing.assert_array_equal(np.transpose(found), table)


@pytest.mark.parametrize("schedule,chunks,rounds", LARGE)
def test_facts_are_those_of_large_tables(schedule, chunks, rounds):
  """Sums of over a thousand costs that floats do not hold exactly; idle time is what of them cancels."""
  table = maker.make(schedule, chunks, 64, rounds)
  for F, B, W in [(1, 0.5, 0.3), (1, 3, 1.5), (1, 0.5, 1.5), (1, 2.2, 0.9)]:
    idle = time_schedule(table, Costs(F=F / chunks, B=B / chunks, W=W)).idle
    np.testing.assert_allclose(idle_s(schedule, chunks, 64, table.microbatches, F, B, W), idle, rtol=1e-9)
  assert in_flight(schedule, chunks, 64, table.microbatches) == max(held_by_stage(table)) / chunks


@pytest.mark.parametrize("schedule,chunks", KINDS)
def test_facts_follow_the_formulas(schedule, chunks):
  """Every number of stages, any of microbatches: an entry that the samples above miss is held to these."""
  S, v = EVERY_STAGES[1::2] if schedule == "dualpipe" else EVERY_STAGES, chunks
  M = takes(schedule, chunks, S, EVERY_ROUNDS)
  for cost in np.random.default_rng(0).uniform((1, 0.5, 0.3), (1, 3, 1.5), (8, 3)):
    idle = idle_s(schedule, chunks, S, M, *cost)
    np.testing.assert_allclose(idle, np.broadcast_to(IDLE[schedule](S, M, v, *cost), idle.shape), rtol=1e-9, atol=1e-9)
  held = in_flight(schedule, chunks, S, M)
  np.testing.assert_array_equal(held, np.broadcast_to(HELD[schedule](S, M, v), held.shape))


@pytest.mark.parametrize("schedule,chunks", KINDS)
@pytest.mark.parametrize("S", [1, 2, 5, 12])
def test_file_is_what_the_generator_measures(schedule, chunks, S):
  assert json.loads(maker.FILE.read_text())[schedule][str(chunks)][S - 1] == maker.rows((schedule, chunks, S))


def test_file_is_written_by_the_generator():
  """Its text too: no line was edited, and every schedule has every number of stages."""
  data = json.loads(maker.FILE.read_text())
  kinds = [(schedule, int(chunks)) for schedule in data for chunks in data[schedule]]
  found = {
    (schedule, chunks, place + 1): rows
    for schedule, chunks in kinds
    for place, rows in enumerate(data[schedule][str(chunks)])
  }
  assert maker.text(found) == maker.FILE.read_text()
  assert kinds == KINDS
  assert {(*case, len(rows)) for case, rows in found.items()} == {
    (*kind, S, maker.rounds_measured(kind[0], S)) for kind in KINDS for S in range(1, maker.MOST_STAGES + 1)
  }


def test_generator_refuses_what_a_row_cannot_say():
  """A row of which one multiple is wrong by one is no longer that of the costs between."""
  for schedule in ("zero_bubble", "dualpipe"):
    table = maker.make(schedule, 1, 4, 6)
    row = maker.row(table)
    assert maker.is_exact(table, row)
    for place in range(1, len(row)):
      assert not maker.is_exact(table, [*row[:place], row[place] + 1, *row[place + 1 :]])


def test_one_chunk_is_plain_1f1b():
  assert idle_s("interleaved", 1, 4, 6, 1.0, 2.0) == idle_s("1f1b", 1, 4, 6, 1.0, 2.0) == 3 * 3


def test_arguments_broadcast():
  S, M, F = np.array([1, 2, 4])[:, None, None], np.array([1, 2, 4, 8])[:, None], np.array([1.0, 3.0])
  assert idle_s("zero_bubble", 1, S, M, F, 2.0, 1.0).shape == (3, 4, 2)
  assert in_flight("1f1b", 1, S, M).shape == supported("1f1b", 1, S, M).shape == (3, 4, 1)
  assert idle_s("zero_bubble", 1, S, M, F, 2.0, 1.0)[2, 2, 1] == idle_s("zero_bubble", 1, 4, 4, 3.0, 2.0, 1.0) == 12


def test_what_has_no_facts():
  """No such pipeline; more stages than the file has; rounds that are not full."""
  S, M = np.array([0, 1, 64, 65, 4, 4, 4]), np.array([4, 4, 64, 64, 0, 6, 8])
  plain, interleaved, dualpipe = [0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]
  for schedule, chunks, expected in (
    ("zero_bubble", 1, plain),
    ("interleaved", 2, interleaved),
    ("dualpipe", 1, dualpipe),
  ):
    assert supported(schedule, chunks, S, M).tolist() == expected
    assert np.isfinite(idle_s(schedule, chunks, S, M, 1.0, 2.0, 1.0)).tolist() == expected
    assert np.isfinite(in_flight(schedule, chunks, S, M)).tolist() == expected


def test_chunks_and_names_without_facts():
  assert supported("interleaved", 5, S := np.array([1, 4]), S).tolist() == [False, False]
  with pytest.raises(UsageError, match="with 2, 3, 4, 8 chunks, got 5"):
    idle_s("interleaved", 5, 4, 4, 1.0, 2.0)
  with pytest.raises(UsageError, match="zero_bubble, dualpipe, got 'hanayo'"):
    supported("hanayo", 1, 4, 4)


def test_both_ways_take_even_numbers_of_stages_and_microbatches():
  S, M = np.arange(1, 9)[:, None], np.arange(1, 40)
  np.testing.assert_array_equal(supported("dualpipe", 1, S, M), (S % 2 == 0) & (M % 2 == 0) & (M >= 2 * S))
