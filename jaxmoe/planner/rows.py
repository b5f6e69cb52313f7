"""Every strategy of a number of devices with every size of microbatch, as columns; what is illegal is counted."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmoe.config.job import Job
from jaxmoe.config.legal import divisors
from jaxmoe.cost.plans import Plans, StrategyColumns
from jaxmoe.meshes.axes import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Folding
from jaxmoe.planner.question import Question
from jaxmoe.planner.space import Space

type Column = NDArray[Any]

ROWS_AS_CHOSEN = ("ragged", "gather")  # transports that do the same where nothing is sent
REPEATED = "the same plan as one with other axes"
BATCH = "batch"  # columns beside the axes: sequences of a step, and of a microbatch on one device
SEQUENCES = "sequences"
_NONE: Column = np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
  """Choices that change the formulas' axes, so that plans alike in them are priced together."""

  heads_over: tuple[str, ...]
  experts_over: tuple[str, ...]
  order: tuple[str, ...]
  sequence_parallel: bool
  transport: str


def families(space: Space) -> Iterator[Family]:
  choices = (space.heads_over, space.experts_over, space.orders, space.sequence_parallel, space.transports)
  return itertools.starmap(Family, itertools.product(*choices))


@functools.cache
def strategies(devices: int) -> Column:
  """Every product data x stage x expert x tensor of so many devices: (4, number of them)."""
  found = [
    (devices // (stage * expert * tensor), stage, expert, tensor)
    for stage in divisors(devices)
    for expert in divisors(devices // stage)
    for tensor in divisors(devices // stage // expert)
  ]
  return np.array(found, np.int64).T


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
  """Legal rows of one family and how many plans were left out for which reason."""

  columns: dict[str, Column]
  rejected: Counter[str]

  def __len__(self) -> int:
    return len(self.columns[STAGE])


def legal_rows(question: Question, devices: int, family: Family) -> Rows:
  """Strategies that divide the model and the job, with every number of sequences in a microbatch that divides."""
  space, batches, rejected = question.space, question.batches or (question.job.batch,), Counter[str]()
  columns: dict[str, Column] = {**dict(zip(AXES, strategies(devices), strict=True))}
  columns[CONTEXT] = np.ones_like(columns[STAGE])
  columns = _kept(columns, rejected, space.choices * len(batches), _strategy_faults(question, family))
  columns = _crossed(columns, CONTEXT, [2**n for n in range(space.largest_context.bit_length())])
  columns = _kept(columns, rejected, space.choices * len(batches), _context_faults(question.job))
  columns = _crossed(columns, BATCH, batches)
  columns = _kept(columns, rejected, space.choices, _batch_faults(family))
  columns = _with_sequences(columns, family)
  columns = _kept(columns, rejected, space.choices, _microbatch_faults(question.job, family))
  return Rows(columns, rejected)


def _share(columns: dict[str, Column], family: Family) -> Column:
  """Sequences of one device; with context parallelism a part of each."""
  return columns[BATCH] // np.asarray(_columns(columns, family).batch_shards)


def _with_sequences(columns: dict[str, Column], family: Family) -> dict[str, Column]:
  """Every row with every number of sequences that divides its batch and is not above its device's share."""
  share, rows, sequences = _share(columns, family), [_NONE], [_NONE]
  for batch in np.unique(columns[BATCH]):
    of_batch = np.flatnonzero(columns[BATCH] == batch)
    parts = np.array(divisors(int(batch)), np.int64)
    which, at = np.nonzero(parts[:, None] <= share[of_batch])
    rows.append(of_batch[at])
    sequences.append(parts[which])
  return {**_where(np.concatenate(rows), columns), SEQUENCES: np.concatenate(sequences)}


def _where(kept: Column, columns: dict[str, Column]) -> dict[str, Column]:
  return {name: column[kept] for name, column in columns.items()}


type Faults = list[tuple[str, Callable[[dict[str, Column]], Any]]]


def _kept(columns: dict[str, Column], rejected: Counter[str], weight: int, faults: Faults) -> dict[str, Column]:
  """Rows without a fault; each other counts under its first one."""
  for reason, is_fault in faults:
    bad = np.broadcast_to(is_fault(columns), columns[STAGE].shape)  # one answer for all where no axis splits it
    count = int(bad.sum())
    if count:
      rejected[reason] += count * weight
      columns = _where(~bad, columns)
  return columns


def _crossed(columns: dict[str, Column], name: str, values: Sequence[int]) -> dict[str, Column]:
  """Every row with every value."""
  count = len(columns[STAGE])
  crossed = {key: np.tile(column, len(values)) for key, column in columns.items()}
  return {**crossed, name: np.repeat(np.array(values, np.int64), count)}


def _columns(columns: dict[str, Column], family: Family) -> StrategyColumns:
  return StrategyColumns(
    data=columns[DATA],
    stage=columns[STAGE],
    expert=columns[EXPERT],
    tensor=columns[TENSOR],
    context=columns[CONTEXT],
    heads_over=family.heads_over,
    experts_over=family.experts_over,
    order=family.order,
  )


def _strategy_faults(question: Question, family: Family) -> Faults:
  """What the model's dimensions do not allow."""
  m = question.model
  space = question.space
  scans = question.job.kind == "train" and all(name == "gpipe" for name, _ in space.schedules)

  def splits(role: str, letter: str, size: int) -> Callable[[dict[str, Column]], Any]:
    return lambda c: size % PartitionRules(_columns(c, family)).shards(role, letter) != 0

  hidden = [("dense", "I", m.dense), ("shared", "J", m.shared)]
  return [
    (REPEATED, lambda c: _repeats(c, family, question.space)),
    ("attention repeated: tensor devices without heads", lambda c: _idle_tensor(c, family)),
    ("more stages than layers", lambda c: c[STAGE] > m.num_layers),
    *([("layers do not divide over stages", splits("attention", "L", m.num_layers))]
      if scans or space.equal_stages else []),
    ("query heads do not divide", splits("attention", "H", m.num_heads)),
    ("fewer key-value heads than parts of attention", splits("attention", "G", m.num_kv_heads)),
    ("experts do not divide", splits("expert", "E", m.num_experts)),
    ("an expert's width does not divide", splits("expert", "F", m.d_expert)),
    *((f"width of {role} layers does not divide", splits("dense", x, n.d_hidden)) for role, x, n in hidden if n),
    ("vocabulary does not divide", splits("vocabulary", "V", m.vocab_size)),
  ]  # fmt: skip


def _repeats(c: dict[str, Column], family: Family, space: Space) -> Column:
  """Whether an earlier choice of the space differs from this one only in axes of one device, which change nothing."""
  strategy, repeated = _columns(c, family), np.zeros(len(c[STAGE]), bool)
  for folding, options in ((family.heads_over, space.heads_over), (family.experts_over, space.experts_over)):
    for other in _earlier(options, folding):
      repeated |= strategy.size(*{*folding} ^ {*other}) == 1
  for other in _earlier(space.orders, family.order):
    swapped = [pair for pair in itertools.combinations(other, 2) if pair not in _pairs(family.order)]
    repeated |= np.all([(c[a] == 1) | (c[b] == 1) for a, b in swapped], axis=0)
  if _earlier(space.sequence_parallel, family.sequence_parallel):
    repeated |= (c[TENSOR] == 1) | (not strategy.sequence_axes)
  if family.transport in ROWS_AS_CHOSEN and {*ROWS_AS_CHOSEN} & {*_earlier(space.transports, family.transport)}:
    repeated |= strategy.size(*family.experts_over) == 1
  return repeated


def _earlier[Option](options: tuple[Option, ...], option: Option) -> tuple[Option, ...]:
  return options[: options.index(option)]


def _pairs(order: tuple[str, ...]) -> set[tuple[str, str]]:
  return {*itertools.combinations(order, 2)}


def _idle_tensor(c: dict[str, Column], family: Family) -> Column:
  return (c[TENSOR] > 1) & (TENSOR not in family.heads_over)


def _context_faults(job: Job) -> Faults:
  return [
    ("no devices to share a sequence", lambda c: c[DATA] % c[CONTEXT] != 0),
    ("a sequence does not divide over its devices", lambda c: job.query_length % c[CONTEXT] != 0),
  ]


def _batch_faults(family: Family) -> Faults:
  return [("the batch does not divide", lambda c: c[BATCH] % _columns(c, family).batch_shards != 0)]


def _microbatch_faults(job: Job, family: Family) -> Faults:
  def tokens(c: dict[str, Column]) -> Column:
    return c[SEQUENCES] * job.query_length // c[CONTEXT]

  def slices(strategy: Folding) -> Any:
    return strategy.size(*strategy.slice_axes)

  return [
    ("microbatches do not divide a device's sequences", lambda c: _share(c, family) % c[SEQUENCES] != 0),
    ("a microbatch's tokens do not divide over their slices", lambda c: tokens(c) % slices(_columns(c, family)) != 0),
  ]


def plans(question: Question, family: Family, columns: dict[str, Column]) -> Plans:
  """Rows crossed with the space's schedules, rematerialisations and levels of zero."""
  space = question.space
  deep = {name: column.reshape(-1, 1, 1, 1) for name, column in columns.items()}
  strategy = dataclasses.replace(_columns(deep, family), sequence_parallel=family.sequence_parallel)
  train = question.job.kind == "train"
  return Plans(
    model=question.model,
    cluster=question.cluster,
    job=dataclasses.replace(question.job, transport=family.transport),
    strategy=strategy,
    batch=deep[BATCH],
    microbatches=deep[BATCH] // strategy.batch_shards // deep[SEQUENCES],
    schedules=space.schedules,
    executes_idle=_along(1, [int(name == "gpipe") for name, _ in space.schedules]),
    recomputed=_along(2, [int(train and remat == "full") for remat in space.remats]),
    hidden_recomputed=_along(2, [int(train and remat == "selective") for remat in space.remats]),
    zero=_along(3, list(space.zeros)),
  )


def _along(dimension: int, values: list[int]) -> Column:
  shape = [1, 1, 1, 1]
  shape[dimension] = len(values)
  return np.array(values, np.int64).reshape(shape)
