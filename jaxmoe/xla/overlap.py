"""What an asynchronous collective overlaps: the work that its module's schedule puts between its start and its end."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from jaxmoe.xla import between_slices, opcodes
from jaxmoe.xla.declared import NOTHING, Declared
from jaxmoe.xla.flops import matmul_counter
from jaxmoe.xla.hlo import Computation, Instruction, Module
from jaxmoe.xla.loops import Frame
from jaxmoe.xla.traffic import Moved
from jaxmoe.xla.walk import Visit

_Key = tuple[int, int]  # identities of a frame and an instruction in it; the visits keep both

START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
  """Work between start and end of one execution.

  Attributes:
    flops: of matmuls.
    moved_bytes: main memory's traffic.
    own_flops, own_bytes: of these, what lies behind no earlier collective of the same kind over the same axes: they add
      up to the work that all of those together overlap.
  """

  flops: float
  moved_bytes: float
  own_flops: float
  own_bytes: float


def is_scheduled(module: Module) -> bool:
  """Whether instructions stand in the order in which they are issued."""
  return "is_scheduled=true" in module.header.partition("\n")[0]


def is_asynchronous(visit: Visit) -> bool:
  """By its own opcode or that of the call around it; NVIDIA's compiler may then still say that it waits at once."""
  x, site = visit.instruction, visit.frame.site
  if x.opcode.endswith("-start"):
    return '"is_sync":true' not in x.attributes
  around = "" if site is None else site.instruction.opcode
  return around == "async-start" or between_slices.is_transfer(x) or _feeds(x, visit.frame.computation, START)


def continues(visit: Visit) -> bool:
  """Whether a collective is another's, begun before: a TPU names one in each fusion that it runs beside."""
  x = visit.instruction
  chained = visit.fused and "chain_id" in x.frontend_attributes
  return chained and not _feeds(x, visit.frame.computation, START)


def _feeds(x: Instruction, inside: Computation, target: str) -> bool:
  return any(y.opcode == "custom-call" and y.text("custom_call_target") == target and x in y.operands
             for y in inside.instructions)  # fmt: skip


class Overlaps:
  """Overlaps of a module's collectives, asked for in program order."""

  def __init__(self, module: Module, visits: Sequence[Visit], declared: Declared = NOTHING):
    self._module, self._visits, self._declared = module, visits, declared
    self._work: dict[_Key, tuple[float, float]] | None = None
    self._seen: dict[object, set[_Key]] = collections.defaultdict(set)

  def of(self, visit: Visit, kin: object) -> Overlap | None:
    """Of an asynchronous collective; `kin` is equal for those of the same kind and axes.

    None where the program does not say: the module is not scheduled, or the end stands elsewhere.
    """
    between = self._between(visit) if is_scheduled(self._module) and visit.count else None
    if between is None:
      return None
    frame, passed = between
    keys = [(id(frame), id(x)) for x in passed]
    seen = self._seen[kin]
    own = [key for key in keys if key not in seen]
    seen.update(keys)
    flops, moved = self._sum(keys, visit)
    own_flops, own_bytes = self._sum(own, visit)
    return Overlap(flops=flops, moved_bytes=moved, own_flops=own_flops, own_bytes=own_bytes)

  def _sum(self, keys: Iterable[_Key], visit: Visit) -> tuple[float, float]:
    if self._work is None:
      self._work = self._all_work()
    found = [self._work[key] for key in keys if key in self._work]
    return sum(flops for flops, _ in found) / visit.count, sum(moved for _, moved in found) / visit.count

  def _between(self, visit: Visit) -> tuple[Frame, Sequence[Instruction]] | None:
    frame, start = visit.frame, visit.instruction
    if not (start.opcode.endswith("-start") or between_slices.is_transfer(start)):
      assert frame.site is not None
      frame, start = frame.site.frame, frame.site.instruction  # the call or fusion that stands for it
    listed = frame.computation.instructions
    first = listed.index(start) + 1
    ends = (i for i in range(first, len(listed)) if self._ends(listed[i], start, visit.instruction))
    last = next(ends, None)
    return None if last is None else (frame, listed[first:last])

  def _ends(self, x: Instruction, start: Instruction, collective: Instruction) -> bool:
    if between_slices.is_transfer(start):
      received = x.opcode == "recv-done" and x.operands[0]
      return bool(received) and between_slices.rendezvous(received) == between_slices.rendezvous(start)
    if start.opcode == "fusion":
      return x.opcode == "fusion" and self._finishes(x, collective)
    return x.opcode.endswith("-done") and _begun(x) is start

  def _finishes(self, fusion: Instruction, collective: Instruction) -> bool:
    """Whether a fusion waits for a collective of the same channel and chain."""
    inside = self._module.computations[fusion.called["calls"]]
    return any(_same(x, collective) and _feeds(x, inside, DONE) for x in inside.instructions)

  def _all_work(self) -> dict[_Key, tuple[float, float]]:
    """FLOPs and bytes of one run, of each instruction in each frame, with all that it calls."""
    counter, moved = matmul_counter(self._module, self._declared), Moved(self._module)
    work: dict[_Key, tuple[float, float]] = collections.defaultdict(lambda: (0.0, 0.0))
    for visit in self._visits:
      flops, size = counter.flops(visit), moved.total(visit)
      frame, x = visit.frame, visit.instruction
      while flops or size:
        before = work[id(frame), id(x)]
        work[id(frame), id(x)] = (before[0] + flops, before[1] + size)
        if frame.site is None:
          break
        frame, x = frame.site.frame, frame.site.instruction
    return dict(work)


def _same(x: Instruction, other: Instruction) -> bool:
  return (
    opcodes.base(x.opcode) == opcodes.base(other.opcode)
    and x.word("channel_id") == other.word("channel_id")
    and x.frontend_attributes.get("chain_id") == other.frontend_attributes.get("chain_id")
  )


def _begun(done: Instruction) -> Instruction:
  """What a `-done` waits for, past updates."""
  x = done.operands[0]
  while x.opcode.endswith("-update") or x.opcode in ("get-tuple-element", "bitcast", "copy"):
    x = x.operands[0]
  return x
