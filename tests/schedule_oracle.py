"""Schedules drawn by hypothesis, tables read from drawings, and dependencies written out anew for the tests."""

import itertools

from hypothesis import strategies as st

from jaxmoe.pipeline.schedule_makers import (
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
  """Any schedule of the six makers, at small sizes."""
  sizes = st.tuples(st.integers(1, 4), st.integers(1, 7))
  plain = st.builds(lambda maker, sizes: maker(*sizes), st.sampled_from(PLAIN), sizes)
  rounds = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
  return plain | st.builds(lambda sizes: interleaved(sizes[0], sizes[0] * sizes[1], sizes[2]), rounds)


def oracle_needs(schedule, stage, work):
  """(stage, work) that must come before, case by case."""
  kind, m, chunk = work
  S, last_chunk = schedule.stages, schedule.chunks - 1
  if kind == "F" and stage > 0:
    return [(stage - 1, ("F", m, chunk))]
  if kind == "F":
    return [(S - 1, ("F", m, chunk - 1))] if chunk > 0 else []
  if kind == "W":
    return [(stage, ("B", m, chunk))]
  own = (stage, ("F", m, chunk))
  if stage < S - 1:
    return [own, (stage + 1, ("B", m, chunk))]
  return [own, (0, ("B", m, chunk + 1))] if chunk < last_chunk else [own]


def oracle_valid(schedule, table):
  """Whether the table does every piece of work once and after its needs."""
  at = [(s, tuple(w), t) for t, row in enumerate(table) for s, one in enumerate(row) for w in one]
  order = {(s, w): (t, place) for place, (s, w, t) in enumerate(at)}
  wanted = itertools.product(schedule.kinds, range(schedule.microbatches), range(schedule.chunks))
  if sorted((s, w) for s, w, _ in at) != sorted(itertools.product(range(schedule.stages), wanted)):
    return False
  return all(
    order[source, need] < order[s, w] and (source == s or order[source, need][0] < t)
    for s, w, t in at
    for source, need in oracle_needs(schedule, s, w)
  )
