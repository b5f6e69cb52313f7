"""The operations that a disagreement is about: those that one side has and the other lacks."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost import collectives as predicted_collectives
from jaxmoe.meshes.axes import label
from jaxmoe.xla import scopes
from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.compare import Check, Comparison
from jaxmoe.xla.compiled_step import PARTS
from jaxmoe.xla.matmuls import Matmul
from jaxmoe.xla.rewrites import Rewrite

MOST_NAMED = 3  # of one side, the largest

Side = Literal["formula", "program", "compiled"]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """Something that one side has.

  Attributes:
    name: a part of the formulas, jax's primitive, or the compiler's instruction.
    scope: the user scopes around it; empty where nobody says.
    total: bytes or FLOPs of one device in one step.
    line: `file.py:12` where jax traced it, if the compiler kept it; of a collective, else what it kept.
  """

  side: Side
  name: str
  scope: str
  total: float
  line: str = ""


def evidence(c: Comparison, check: Check) -> list[Item]:
  """Of a check that fails by the compiler, what it added and left out; else what formula and program have."""
  program, compiled = _operations(c, check)
  items = [] if check.fault == "compiler" else [*_formula(c.deployment, check), *_by_scope(program)]
  if check.fault != "formula or program":
    items += [*_only("compiled", compiled, program), *_only("program", program, compiled)]
  return items


def added(c: Comparison, rewrite: Rewrite) -> list[Item]:
  """Of an unplanned collective, what the backend's passes have beyond the partitioned program."""
  before, after = (
    [one for one in side if (one.kind, one.axes) == (rewrite.kind, rewrite.axes)]
    for side in (c.compiled.partitioned, c.compiled.optimised)
  )
  return _only("compiled", after, before)


type _Operations = Sequence[Matmul | Collective]


def _operations(c: Comparison, check: Check) -> tuple[_Operations, _Operations]:
  """Of the traced program, and of the module that the check is about."""
  traced, compiled = c.compiled.traced, c.compiled
  if check.axis:
    return _over(traced.collectives, check), _over(compiled.partitioned, check)
  part = check.name.removesuffix(" matmuls")
  if part in (*PARTS, scopes.OTHER):
    return _of_part(traced.matmuls, part), _of_part(compiled.partitioned_matmuls, part)
  return (traced.matmuls, compiled.matmuls) if check.unit == "FLOPs" else ([], [])


def _over(listed: Iterable[Collective], check: Check) -> list[Collective]:
  return [one for one in listed if (one.kind, label(one.axes) or "?") == (check.name, check.axis)]


def _of_part(listed: Iterable[Matmul], part: str) -> list[Matmul]:
  return [one for one in listed if scopes.part(one.op_name, PARTS) == part]


def _formula(d: Deployment, check: Check) -> list[Item]:
  """A collective's parts, as the formulas name them; matmuls are one formula a part."""
  if not check.axis:
    return []
  totals: dict[str, float] = collections.defaultdict(float)
  for one in predicted_collectives.collectives(d):
    if (one.kind, label(one.axes) or "?") == (check.name, check.axis):
      totals[one.part] += one.total_bytes
  return _largest(Item("formula", part, "", total) for part, total in totals.items())


def _by_scope(operations: _Operations) -> list[Item]:
  totals: dict[tuple[str, str], float] = collections.defaultdict(float)
  for one in operations:
    totals[one.name, scopes.joined_path(one.op_name)] += _total(one)
  return _largest(Item("program", *key, total) for key, total in totals.items())


def _only(side: Side, mine: _Operations, others: _Operations) -> list[Item]:
  """What is left of `mine` once each operation of `others` has met one that does as much."""
  met = collections.Counter(round(_total(one)) for one in others)
  left: list[Item] = []
  for one in mine:
    amount = round(_total(one))
    met[amount] -= 1
    if met[amount] < 0:
      line = one.place if isinstance(one, Collective) else one.source
      left.append(Item(side, one.name, scopes.joined_path(one.op_name), _total(one), line))
  return _largest(left)


def _largest(items: Iterable[Item]) -> list[Item]:
  return sorted(items, key=lambda item: -item.total)[:MOST_NAMED]


def _total(one: Matmul | Collective) -> float:
  return one.total if isinstance(one, Matmul) else one.payload_bytes * one.count
