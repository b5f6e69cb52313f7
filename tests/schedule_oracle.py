"""Schedules drawn by hypothesis, tables read from drawings, and dependencies written out anew for the tests."""

import itertools

from hypothesis import strategies as st

from jaxmoe.pipeline.schedule_makers import (
  dualpipe,
  forward_only,
  gpipe,
  interleaved,
  lockstep,
  one_forward_one_backward,
  zero_bubble,
)

PLAIN = (gpipe, one_forward_one_backward, zero_bubble, lockstep, forward_only)


def parse(drawing):
  """Table [tick][stage] of a drawing without its head."""
  rows = [[cell(token) for token in line.split()] for line in drawing.strip().splitlines()]
  return tuple(zip(*rows, strict=True))


def cell(token):
  parts = [] if token == "." else token.split("+")
  return tuple((part[0], *map(int, (part[1:] + ":0").split(":")[:2])) for part in parts)


def schedules():
  """Any schedule of the seven makers, at small sizes."""
  sizes = st.tuples(st.integers(1, 4), st.integers(1, 7))
  plain = st.builds(lambda maker, sizes: maker(*sizes), st.sampled_from(PLAIN), sizes)
  rounds = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
  pairs = st.tuples(st.integers(1, 3), st.integers(0, 3))
  rounded = st.builds(lambda sizes: interleaved(sizes[0], sizes[0] * sizes[1], sizes[2]), rounds)
  return plain | rounded | st.builds(lambda sizes: dualpipe(2 * sizes[0], 4 * sizes[0] + 2 * sizes[1]), pairs)


def oracle_needs(schedule, stage, work):
  """(stage, work) that must come before, case by case."""
  kind, m, chunk = work
  if kind == "W":
    return [(stage, ("B", m, chunk))]
  return _both_ways_needs(schedule, stage, work) if schedule.joined else _one_way_needs(schedule, stage, work)


def _both_ways_needs(schedule, stage, work):
  """Odd microbatches meet the stages as if they were counted from the other end."""
  kind, m, chunk = work
  place = schedule.stages - 1 - stage if m % 2 else stage
  source = stage + (1 if (kind == "B") == (m % 2 == 0) else -1)
  outermost = place == (0 if kind == "F" else schedule.stages - 1)
  return [(stage, ("F", m, chunk))] * (kind == "B") + [(source, (kind, m, chunk))] * (not outermost)


def _one_way_needs(schedule, stage, work):
  kind, m, chunk = work
  S, last_chunk = schedule.stages, schedule.chunks - 1
  if kind == "F" and stage > 0:
    return [(stage - 1, ("F", m, chunk))]
  if kind == "F":
    return [(S - 1, ("F", m, chunk - 1))] if chunk > 0 else []
  own = (stage, ("F", m, chunk))
  if stage < S - 1:
    return [own, (stage + 1, ("B", m, chunk))]
  return [own, (0, ("B", m, chunk + 1))] if chunk < last_chunk else [own]


def oracle_valid(schedule, table):
  """Whether the table does every piece of work once and after its needs; in a joined cell, only W with its own."""
  at = [(s, tuple(w), t) for t, row in enumerate(table) for s, one in enumerate(row) for w in one]
  order = {(s, w): (t, place) for place, (s, w, t) in enumerate(at)}
  wanted = [
    (s, (kind, m, chunk))
    for s, kind, m in itertools.product(range(schedule.stages), schedule.kinds, range(schedule.microbatches))
    for chunk in ([m % 2] if schedule.joined else range(schedule.chunks))
  ]
  if sorted((s, w) for s, w, _ in at) != sorted(wanted):
    return False
  return all(
    order[source, need] < order[s, w]
    and (order[source, need][0] < t or (source == s and (w[0] == "W" or not schedule.joined)))
    for s, w, t in at
    for source, need in oracle_needs(schedule, s, w)
  )
