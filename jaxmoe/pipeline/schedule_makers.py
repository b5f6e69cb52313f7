"""The known pipeline schedules: what each stage does in which order, laid out at the earliest ticks. No jax.

S stages, M microbatches. One piece of work takes one tick here; `schedule_timing` gives the same order other costs.
"""

import itertools
from collections.abc import Iterable, Sequence

from jaxmoe.meshes.errors import UsageError
from jaxmoe.pipeline.schedules import KINDS, Cell, Kind, Needs, Route, Schedule, Work, check_sizes, through

type Pass = tuple[Kind, int]  # of the next microbatch that comes this way


def forward_only(stages: int, microbatches: int) -> Schedule:
  """Serving: stage s works on microbatch m at tick m + s, M + S - 1 ticks in all."""
  check_sizes(stages, microbatches)
  return _lay_out([_passes("F", microbatches)] * stages, microbatches, kinds=("F",))


def gpipe(stages: int, microbatches: int) -> Schedule:
  """All forwards, then all backwards from the last microbatch to the first, as a differentiated loop runs them.

  Huang et al., arXiv 1811.06965. Every stage holds M microbatches.
  """
  check_sizes(stages, microbatches)
  return _lay_out([_passes("F", microbatches) + _passes("B", microbatches)[::-1]] * stages, microbatches)


def one_forward_one_backward(stages: int, microbatches: int) -> Schedule:
  """1F1B: stage s starts with S - 1 - s forwards, then does one forward, one backward in turn.

  Narayanan et al., arXiv 1806.03377 and 2006.09503. GPipe's bubble, but stage s holds S - s microbatches.
  """
  check_sizes(stages, microbatches)
  return _lay_out([_one_in_turn(stages, s, microbatches) for s in range(stages)], microbatches)


def interleaved(stages: int, microbatches: int, chunks: int) -> Schedule:
  """1F1B over `chunks` smaller chunks of each stage's layers: 1/chunks of the bubble, chunks times the messages.

  Narayanan et al., arXiv 2104.04473. Rounds of S microbatches go through chunk 0, then chunk 1, ...; stage s starts
  with 2 (S - 1 - s) + (chunks - 1) S forwards. One chunk is plain 1F1B.

  Raises:
    UsageError: microbatches do not fill the rounds.
  """
  check_sizes(stages, microbatches, chunks)
  if chunks == 1:
    return one_forward_one_backward(stages, microbatches)
  if microbatches % stages:
    raise UsageError(
      f"an interleaved schedule needs microbatches in multiples of its {stages} stages, got {microbatches}"
    )
  visits = [
    (first + place, chunk)
    for first in range(0, microbatches, stages)
    for chunk in range(chunks)
    for place in range(stages)
  ]
  forwards = [Work("F", m, chunk) for m, chunk in visits]
  backwards = [Work("B", m, chunks - 1 - chunk) for m, chunk in visits]
  warm_ups = [2 * (stages - 1 - s) + (chunks - 1) * stages for s in range(stages)]
  orders = [_in_turn(forwards, backwards, warm_up) for warm_up in warm_ups]
  return _lay_out(orders, microbatches, route=through(stages, chunks))


def zero_bubble(stages: int, microbatches: int) -> Schedule:
  """ZB-H1: 1F1B with backward split into B and W; stage s does W of a microbatch s backwards late, to fill its bubble.

  Qi et al., arXiv 2401.10241. Every stage holds S microbatches until W, and S - s until B. From M = S on, and while W
  costs no more than F and than B, the bubble is (S - 1)(F + B - W).
  """
  check_sizes(stages, microbatches)
  orders = [_late_weights(_one_in_turn(stages, s, microbatches), s) for s in range(stages)]
  return _lay_out(orders, microbatches, kinds=("F", "B", "W"))


def lockstep(stages: int, microbatches: int) -> Schedule:
  """1F1B where every tick has room for one F and one B: stage s does F of m at tick m + s, B at m + 2 (S - 1) - s.

  The order of a loop whose every turn ends in a message to both neighbours. Stage s holds 2 (S - 1 - s) + 1
  microbatches.
  """
  check_sizes(stages, microbatches)

  def cell(tick: int, stage: int) -> Cell:
    work = (Work("F", tick - stage), Work("B", tick - 2 * (stages - 1) + stage))
    return tuple(item for item in work if 0 <= item.microbatch < microbatches)

  table = tuple(tuple(cell(tick, s) for s in range(stages)) for tick in range(microbatches + 2 * (stages - 1)))
  return Schedule(stages=stages, microbatches=microbatches, routes=(through(stages),), per_tick=2, table=table)


def dualpipe(stages: int, microbatches: int) -> Schedule:
  """DualPipe: even microbatches go from the first stage to the last through chunk 0, odd ones back through chunk 1.

  DeepSeek-AI, arXiv 2412.19437. Stage s holds the layers of stages s and S - 1 - s, and S + 1 microbatches. A forward
  and the whole backward of a microbatch that comes the other way run at once, for F&B; elsewhere W waits where that
  lets another stage begin. While neither F nor W costs more than B, the bubble of the stages in the middle is
  (S/2 - 1)(F&B + B - 2W), published as (S/2 - 1)(F&B + B - 3W) with the whole backward for B; where F&B takes
  F + B + W, it is that of all stages.

  Raises:
    UsageError: an odd number of either, or microbatches fewer than two a stage.
  """
  check_sizes(stages, microbatches)
  if stages % 2 or microbatches % 2 or microbatches < 2 * stages:
    raise UsageError(
      "dualpipe needs an even number of stages, and an even number of microbatches, two a stage or more; got"
      f" {stages} stages and {microbatches} microbatches"
    )
  back: Route = tuple((stage, 1) for stage in reversed(range(stages)))
  orders = [_both_ways(stages, stage, microbatches) for stage in range(stages)]
  routes = (through(stages), back)
  table = _earliest(orders, Needs(routes))
  return Schedule(
    stages=stages,
    microbatches=microbatches,
    routes=routes,
    kinds=KINDS,
    per_tick=len(KINDS),
    joined=True,
    table=table,
  )


def _passes(kind: Kind, microbatches: int) -> list[Work]:
  return [Work(kind, m) for m in range(microbatches)]


def _one_in_turn(stages: int, stage: int, microbatches: int) -> list[Work]:
  return _in_turn(_passes("F", microbatches), _passes("B", microbatches), stages - 1 - stage)


def _in_turn(forwards: list[Work], backwards: list[Work], warm_up: int) -> list[Work]:
  """`warm_up` forwards, then one forward and one backward in turn, then the backwards that are left."""
  pairs = list(itertools.chain.from_iterable(zip(forwards[warm_up:], backwards, strict=False)))
  return forwards[:warm_up] + pairs + backwards[len(pairs) // 2 :]


def _late_weights(order: list[Work], late: int) -> list[Work]:
  """The same order, with W of each microbatch once `late` more backwards are done, and the last ones at the end."""
  backwards = [work for work in order if work.kind == "B"]
  weights = [Work("W", work.microbatch, work.chunk) for work in backwards]
  after = dict(zip(backwards[late:], weights, strict=False))
  filled = [item for work in order for item in ((work, after[work]) if work in after else (work,))]
  return filled + weights[len(after) :]


def _both_ways(stages: int, stage: int, microbatches: int) -> list[Cell]:
  """What a stage does that is the k-th from its end of the pipeline, and `inner` short of the middle.

  Microbatches from its own end come first. Of the backwards after the last forward the first half is whole, the other
  without W.
  """
  k = min(stage + 1, stages - stage)
  inner = stages // 2 - k
  near, far = (0, 1) if stage < stages // 2 else (1, 0)
  passes: list[list[Pass]] = [[(kind, way) for kind in KINDS] for way in (near, far)]
  (Fn, Bn, Wn), (Ff, Bf, Wf) = passes
  last = [(Bf, Wf), (Bn, Wn)] * k
  late = [W for _, W in last[k:]] + [Wn] * inner
  steps: tuple[list[tuple[Pass, ...]], ...] = (
    [(Fn,)] * (2 * inner),
    [(Fn,), (Ff,)] * k,
    [(Bf,), (Wf,), (Ff,)] * inner,
    [(Fn, Bf, Wf), (Ff, Bn, Wn)] * (microbatches // 2 - stages + k),
    [(Bf, Wf), (Ff, Bn, Wn)] * inner,
    [*last[:k]],
    [(B,) for B, _ in last[k:]],
    [cell for W in late[:inner] for cell in ((W,), (Bn,))],
    [(W,) for W in late[inner:]],
  )
  return _numbered(itertools.chain.from_iterable(steps))


def _numbered(cells: Iterable[tuple[Pass, ...]]) -> list[Cell]:
  """Passes of each kind that come the same way are those of its microbatches in turn: 0, 2, ..., or 1, 3, ..."""
  ways = {(kind, way): itertools.count(way, 2) for kind, way in itertools.product(KINDS, (0, 1))}
  return [tuple(Work(kind, next(ways[kind, way]), way) for kind, way in cell) for cell in cells]


def _lay_out(
  orders: Sequence[list[Work]], microbatches: int, *, route: Route | None = None, kinds: tuple[Kind, ...] = ("F", "B")
) -> Schedule:
  """Each stage's work in its order, each piece at the first tick when the stage is free and its needs are met."""
  stages = len(orders)
  routes = (route or through(stages),)
  table = _earliest([[(work,) for work in order] for order in orders], Needs(routes))
  return Schedule(stages=stages, microbatches=microbatches, routes=routes, kinds=kinds, table=table)


def _earliest(orders: Sequence[list[Cell]], needs: Needs) -> tuple[tuple[Cell, ...], ...]:
  """The table in which each cell stands at the first tick when the stage is free and its needs are met."""
  table: list[tuple[Cell, ...]] = []
  done: set[tuple[int, Work]] = set()
  waiting = [order[::-1] for order in orders]
  while any(waiting):
    row = tuple(left[-1] if left and _ready(stage, left[-1], done, needs) else () for stage, left in enumerate(waiting))
    assert any(row), "the orders wait for each other"
    done |= {(stage, work) for stage, cell in enumerate(row) for work in cell}
    for left, cell in zip(waiting, row, strict=True):
      if cell:
        left.pop()
    table.append(row)
  return tuple(table)


def _ready(stage: int, cell: Cell, done: set[tuple[int, Work]], needs: Needs) -> bool:
  """Whether all that the cell needs and does not make itself is done."""
  own = {(stage, work) for work in cell}
  return all(need in done or need in own for work in cell for need in needs(stage, work))
