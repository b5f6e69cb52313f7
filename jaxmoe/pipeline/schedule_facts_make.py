"""Measures the tables of the schedules and writes `schedule_facts.json`, in minutes: `make schedules`. No jax."""

import concurrent.futures
import itertools
import pathlib
from collections.abc import Callable

from jaxmoe.pipeline.schedule_facts import fewest_and_step, parts
from jaxmoe.pipeline.schedule_makers import dualpipe, gpipe, interleaved, one_forward_one_backward, zero_bubble
from jaxmoe.pipeline.schedule_timing import Costs, time_schedule
from jaxmoe.pipeline.schedules import Schedule, in_flight

MOST_STAGES = 64
CHUNKS = {"gpipe": (1,), "1f1b": (1,), "interleaved": (2, 3, 4, 8), "zero_bubble": (1,), "dualpipe": (1,)}
MAKERS: dict[str, Callable[..., Schedule]] = {
  "gpipe": gpipe,
  "1f1b": one_forward_one_backward,
  "interleaved": interleaved,
  "zero_bubble": zero_bubble,
  "dualpipe": dualpipe,
}
FILE = pathlib.Path(__file__).with_name("schedule_facts.json")
WORKERS = 2  # as many as the tests take


def rounds_measured(schedule: str, stages: int) -> int:
  """After which nothing changes but what is held, which goes on as between the last two; `tests/` looks further.

  GPipe's idle time never changes, nor does that of dualpipe. Interleaved schedules are full in their second round of S
  microbatches, the others when every stage has a microbatch: from S on.
  """
  if schedule == "dualpipe" and stages % 2:
    return 0
  return {"gpipe": 2, "dualpipe": 2, "interleaved": 3}.get(schedule, stages + 1)


def make(schedule: str, chunks: int, stages: int, rounds: int) -> Schedule:
  """The table of the first, second, ... number of microbatches that the schedule takes."""
  fewest, step = fewest_and_step(schedule, chunks, stages)
  more = (chunks,) if chunks > 1 else ()
  return MAKERS[schedule](stages, fewest + step * (rounds - 1), *more)


def row(table: Schedule) -> list[int]:
  """Chunks held, then the multiples that idle time is made of: a row of the file.

  With costs of one in some kinds and of none in the rest, idle time is the sum of the multiples of all parts that are
  among these kinds.
  """
  multiples: dict[tuple[int, ...], int] = {}
  for part in parts(len(table.kinds)):
    costs = tuple(int(kind in part) for kind in range(len(table.kinds)))
    multiples[part] = idle(table, costs) - sum(of for inner, of in multiples.items() if set(inner) < set(part))
  return [max(in_flight(table)), *multiples.values()]


def idle(table: Schedule, costs: tuple[int, ...]) -> int:
  """Ticks without work; where stages cost the same, no stage has more than another."""
  (ticks,) = set(time_schedule(table, Costs(**dict(zip(table.kinds, costs, strict=True)))).idle)
  return int(ticks)


def is_exact(table: Schedule, row: list[int]) -> bool:
  """Whether the row gives the idle time of all costs there are.

  It does so at the edges of each cone of costs in one order: where a number of them, the last in this order, are one
  and the rest nothing. Idle time is convex, as a longest path, so nowhere in the cone above what is linear between its
  edges; where it meets that inside, as at costs of 1, 2, 3 in this order, it does so everywhere.
  """
  kinds, multiples = len(table.kinds), row[1:]
  return all(
    idle(table, costs)
    == sum(min(costs[kind] for kind in part) * of for part, of in zip(parts(kinds), multiples, strict=True))
    for costs in itertools.permutations(range(1, kinds + 1))
  )


def rows(case: tuple[str, int, int]) -> list[list[int]]:
  """What the file has of a schedule in some chunks over some stages: a row for each number of rounds."""
  schedule, chunks, stages = case
  tables = [make(schedule, chunks, stages, rounds + 1) for rounds in range(rounds_measured(schedule, stages))]
  found = [row(table) for table in tables]
  assert all(map(is_exact, tables, found)), f"idle time of {case} has more critical paths than a row can say"
  return found


def main() -> None:
  kinds = [(schedule, chunks) for schedule in CHUNKS for chunks in CHUNKS[schedule]]
  cases = [(*kind, stages + 1) for kind, stages in itertools.product(kinds, range(MOST_STAGES))]
  with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
    found = dict(zip(cases, pool.map(rows, cases), strict=True))
  FILE.write_text(text(found))


def text(found: dict[tuple[str, int, int], list[list[int]]]) -> str:
  """JSON with a line for each number of stages."""

  def of_chunks(schedule: str, chunks: int) -> str:
    lines = [str(rows).replace(" ", "") for case, rows in found.items() if case[:2] == (schedule, chunks)]
    return f'"{chunks}": [\n' + ",\n".join(lines) + "\n]"

  parts = [f'"{name}": {{' + ",\n".join(of_chunks(name, chunks) for chunks in CHUNKS[name]) + "}" for name in CHUNKS]
  return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
  main()
