"""Every collective that one device executes: what it moves, how often, and over which mesh axes."""

import dataclasses
import math
from collections.abc import Mapping

from jaxmoe.xla import between_slices, groups, opcodes
from jaxmoe.xla.between_slices import Slices
from jaxmoe.xla.declared import NOTHING, Declared
from jaxmoe.xla.hlo import Instruction, Module, item_bytes
from jaxmoe.xla.loops import Frame
from jaxmoe.xla.overlap import Overlap, Overlaps, continues, is_asynchronous
from jaxmoe.xla.padding import is_halo, program_shape
from jaxmoe.xla.walk import Visit, walk


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute`, ...
    axes: mesh axes in mesh order; `("?",)` if its groups are no sub-mesh; `()` if it moves nothing.
    group_size: devices in one group; 2 for a permute.
    payload_bytes: of one execution on one device, as executed: the operand, or an all-gather's result.
    elements: of that buffer, of the program's dtype where 32-bit words hold several of them.
    dtype: HLO's spelling; several joined by `+`.
    count: executions by one device in one run.
    bound: the count is an upper bound, see `Visit`.
    asynchronous: it is started, and awaited later.
    padding: of `elements`, those that a pad or the tiles of the operand add.
    packs: dtype of the elements that 32-bit words hold; empty if they hold none.
    halo: a permute that hands on what equal shares of a padded array hold for a neighbour.
    between_slices: hosts do it, between TPU slices.
    source: `file.py:12` where jax traced it; empty if the compiler dropped that.
    overlap: of an asynchronous one; None where its module does not say.
  """

  name: str
  kind: str
  axes: tuple[str, ...]
  group_size: int
  payload_bytes: float
  elements: int
  dtype: str
  count: float
  op_name: str
  bound: bool
  asynchronous: bool = False
  padding: int = 0
  packs: str = ""
  halo: bool = False
  between_slices: bool = False
  source: str = ""
  overlap: Overlap | None = None

  @property
  def place(self) -> str:
    """Where it comes from: a line, or the argument or path of scopes that the compiler names."""
    return self.source or self.op_name.replace("\\'", "'")


def collectives(
  module: Module, axis_sizes: Mapping[str, int], declared: Declared = NOTHING, slices: Slices | None = None
) -> list[Collective]:
  """Those that move data between devices; `axis_sizes` lists the mesh axes outermost first.

  Args:
    slices: where the ranks lie, of a program for several TPU slices.

  Raises:
    ValueError: the axes make up another number of devices than the module is for.
    NotImplementedError: groups, or a transfer between slices, in a spelling that is not known.
    UnknownOperation, UnknownTripCount: see `walk`.
  """
  return [one for one in every_collective(module, axis_sizes, declared, slices) if one.axes]


def every_collective(
  module: Module, axis_sizes: Mapping[str, int], declared: Declared = NOTHING, slices: Slices | None = None
) -> list[Collective]:
  """Also those within groups of one device, with `axes == ()`."""
  devices = module.devices * (slices.count if slices else 1)
  if math.prod(axis_sizes.values()) != devices:
    raise ValueError(f"axis sizes {dict(axis_sizes)} must multiply to the module's {devices} devices")
  visits = list(walk(module, declared, weight=lambda visit: _traffic(visit, module)))
  _check_chains(visits)
  reader = _Reader(module, axis_sizes, slices, Overlaps(module, visits, declared))
  return [reader.read(visit) for visit in visits if _is_collective(visit)]


def _is_collective(visit: Visit) -> bool:
  x = visit.instruction
  return _names_one(x) and not continues(visit)


def _names_one(x: Instruction) -> bool:
  named = opcodes.executes(x.opcode) and opcodes.base(x.opcode) in opcodes.COLLECTIVES
  return named or between_slices.is_transfer(x)


def _check_chains(visits: list[Visit]) -> None:
  """Raises NotImplementedError for a collective that only continues: it would be counted nowhere."""
  named = [visit for visit in visits if _names_one(visit.instruction)]
  begun = {_chain(visit.instruction) for visit in named if not continues(visit)}
  for visit in named:
    if continues(visit) and _chain(visit.instruction) not in begun:
      raise NotImplementedError(
        f"cannot find where {visit.instruction.name} begins: {visit.instruction.attributes[:200]}"
      )


def _chain(x: Instruction) -> tuple[str, str]:
  return opcodes.base(x.opcode), x.word("channel_id")


def _traffic(visit: Visit, module: Module) -> float:
  if not _is_collective(visit):
    return 0.0
  x = visit.instruction
  size = 1 if between_slices.is_transfer(x) else _group_size(x, module)
  return visit.count * _sent_bytes(x, _kind(x), size)


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
  module: Module
  axis_sizes: Mapping[str, int]
  slices: Slices | None
  overlaps: Overlaps

  def read(self, visit: Visit) -> Collective:
    x, kind = visit.instruction, _kind(visit.instruction)
    axes, group_size = self._members(x, kind)
    asynchronous = is_asynchronous(visit)
    payload = _payload(self.module, visit.frame, x, kind, group_size)
    return Collective(
      name=x.name,
      kind=kind,
      axes=axes,
      group_size=group_size,
      count=visit.count,
      op_name=visit.op_name,
      bound=visit.bound,
      asynchronous=asynchronous,
      halo=_is_permute(kind) and is_halo(self.module, x),
      between_slices=between_slices.is_transfer(x),
      source=self.module.source(x),
      overlap=self.overlaps.of(visit, (kind, axes)) if asynchronous else None,
      **payload,
    )

  def _members(self, x: Instruction, kind: str) -> tuple[tuple[str, ...], int]:
    """Axes and size of the groups."""
    pairs = _is_permute(kind)
    if between_slices.is_transfer(x):
      if self.slices is None:
        raise NotImplementedError(f"{x.name} goes between slices, and nobody says where they lie")
      found = self.slices.ranks(between_slices.members(x))
    else:
      read = groups.source_target_pairs if pairs else groups.replica_groups
      found = read(x, self.module.devices, groups.replicas(self.module))
      found = self.slices.everywhere(found) if self.slices else found
    if pairs:
      return groups.pair_axes(found, self.axis_sizes), 2
    if self.slices:
      return between_slices.part_axes(found, self.axis_sizes, self.slices), found.shape[1]
    return groups.group_axes(found, self.axis_sizes), found.shape[1]


def _kind(x: Instruction) -> str:
  return between_slices.kind(x) if between_slices.is_transfer(x) else opcodes.base(x.opcode)


def _is_permute(kind: str) -> bool:
  return kind == "collective-permute"


def _group_size(x: Instruction, module: Module) -> int:
  if _is_permute(_kind(x)):
    return 2
  return groups.replica_groups(x, module.devices, groups.replicas(module)).shape[1]


def _buffers(x: Instruction) -> tuple[Instruction, ...]:
  """The operands that travel; a ragged all-to-all, a permute in place and a send also take buffers, offsets, tokens."""
  alone = opcodes.base(x.opcode) in ("ragged-all-to-all", "collective-permute", "send")
  return x.operands[:1] if alone else x.operands


def _sent_bytes(x: Instruction, kind: str, group_size: int) -> float:
  """Bytes of the full-side buffer; an asynchronous start has the same operands."""
  return _gathered(kind, group_size) * sum(operand.shape.bytes for operand in _buffers(x))


def _gathered(kind: str, group_size: int) -> int:
  return group_size if kind == "all-gather" else 1


def _payload(module: Module, frame: Frame, x: Instruction, kind: str, group_size: int) -> dict:
  """Sizes and dtypes of the full-side buffer, as fields of a `Collective`."""
  sent, inside = [y.shape for y in _buffers(x)], [program_shape(module, y, frame) for y in _buffers(x)]
  packed = [ours.dtype != theirs.dtype and theirs.dtype == "u32" for ours, theirs in zip(inside, sent, strict=True)]
  items = [(a if by_words else b).dtype for by_words, a, b in zip(packed, inside, sent, strict=True)]
  elements = [shape.bytes / (item_bytes(dtype) or 1) for shape, dtype in zip(sent, items, strict=True)]
  padding = [max(0, int(all_) - shape.elements) for all_, shape in zip(elements, inside, strict=True)]
  gathered = _gathered(kind, group_size)
  return {
    "payload_bytes": _sent_bytes(x, kind, group_size),
    "elements": gathered * int(sum(elements)),
    "padding": gathered * sum(padding),
    "dtype": "+".join(sorted({shape.dtype for shape in sent})),
    "packs": "+".join(sorted({shape.dtype for shape, by_words in zip(inside, packed, strict=True) if by_words})),
  }
