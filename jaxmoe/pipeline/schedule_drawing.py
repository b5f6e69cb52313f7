"""Schedules as text: a row a stage, a column a tick. No jax."""

import itertools

from jaxmoe.pipeline.schedule_timing import Timeline
from jaxmoe.pipeline.schedules import Cell, Schedule, label

IDLE, GOES_ON = ".", "="


def draw(drawn: Schedule | Timeline) -> str:
  """One line a stage; `.` is an idle tick and, in a timeline, `=` a tick in which work goes on.

  >>> from jaxmoe.pipeline.schedule_makers import one_forward_one_backward
  >>> from jaxmoe.pipeline.schedule_timing import Costs, time_schedule
  >>> schedule = one_forward_one_backward(stages=3, microbatches=4)
  >>> print(draw(schedule))
  tick    0  1  2  3  4  5  6  7  8  9  10 11
  stage 0 F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
  stage 1 .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
  stage 2 .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
  >>> print(draw(time_schedule(one_forward_one_backward(stages=2, microbatches=2), Costs(F=1, B=2))))
  tick    0  1  2  3  4  5  6  7  8
  stage 0 F0 F1 .  .  B0 =  .  B1 =
  stage 1 .  F0 B0 =  F1 B1 =  .  .

  Raises:
    ValueError: a timeline whose work starts or ends between ticks.
  """
  rows = _of_table(drawn) if isinstance(drawn, Schedule) else _of_timeline(drawn)
  ticks = [str(tick) for tick in range(len(rows[0]))]
  width = max(map(len, itertools.chain(ticks, *rows)), default=0)
  named = [("tick", ticks), *((f"stage {stage}", row) for stage, row in enumerate(rows))]
  head = len(named[-1][0])
  return "\n".join(" ".join([name.ljust(head), *(cell.ljust(width) for cell in row)]).rstrip() for name, row in named)


def _of_table(schedule: Schedule) -> list[list[str]]:
  return [[_name(row[stage]) or IDLE for row in schedule.table] for stage in range(schedule.stages)]


def _of_timeline(timeline: Timeline) -> list[list[str]]:
  times = [time for span in itertools.chain(*timeline.spans) for time in (span.start, span.end)]
  if any(time != int(time) for time in times):
    raise ValueError("only whole ticks can be drawn: give costs in whole numbers")
  rows = [[IDLE] * int(timeline.makespan) for _ in timeline.spans]
  for row, stage in zip(rows, timeline.spans, strict=True):
    for cell, start, end in stage:
      row[int(start) : int(end)] = [_name(cell), *[GOES_ON] * int(end - start - 1)][: int(end - start)]
  return rows


def _name(cell: Cell) -> str:
  return "+".join(map(label, cell))
