"""Every collective that one device executes: what it moves, how often, and over which mesh axes."""

import dataclasses
import math
from collections.abc import Mapping

from jaxmoe.xla import groups, opcodes
from jaxmoe.xla.declared import NOTHING, Declared
from jaxmoe.xla.hlo import Instruction, Module
from jaxmoe.xla.walk import Visit, walk


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute`, ...
    axes: mesh axes in mesh order; `("?",)` if its groups are no sub-mesh; `()` if it moves nothing.
    group_size: devices in one group; 2 for a permute.
    payload_bytes: of one execution on one device: the operand, or an all-gather's result.
    elements: of that buffer.
    dtype: HLO's spelling; several joined by `+`.
    count: executions by one device in one run.
    bound: the count is an upper bound, see `Visit`.
    asynchronous: it is started, and awaited later.
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


def collectives(module: Module, axis_sizes: Mapping[str, int], declared: Declared = NOTHING) -> list[Collective]:
  """Those that move data between devices; `axis_sizes` lists the mesh axes outermost first.

  Raises:
    ValueError: the axes make up another number of devices than the module is for.
    UnknownOperation, UnknownTripCount: see `walk`.
  """
  return [collective for collective in every_collective(module, axis_sizes, declared) if collective.axes]


def every_collective(module: Module, axis_sizes: Mapping[str, int], declared: Declared = NOTHING) -> list[Collective]:
  """Also those within groups of one device, with `axes == ()`."""
  if math.prod(axis_sizes.values()) != module.devices:
    raise ValueError(f"axis sizes {dict(axis_sizes)} must multiply to the module's {module.devices} devices")
  visits = walk(module, declared, weight=lambda visit: _traffic(visit, module.devices))
  return [_collective(visit, module.devices, axis_sizes) for visit in visits if _is_collective(visit.instruction)]


def _is_collective(x: Instruction) -> bool:
  return opcodes.executes(x.opcode) and opcodes.base(x.opcode) in opcodes.COLLECTIVES


def _traffic(visit: Visit, devices: int) -> float:
  if not _is_collective(visit.instruction):
    return 0.0
  return visit.count * _payload(visit.instruction, _group_size(visit.instruction, devices))[0]


def _collective(visit: Visit, devices: int, axis_sizes: Mapping[str, int]) -> Collective:
  x = visit.instruction
  if _is_permute(x):
    axes = groups.pair_axes(groups.source_target_pairs(x), axis_sizes)
  else:
    axes = groups.group_axes(groups.replica_groups(x, devices), axis_sizes)
  group_size = _group_size(x, devices)
  payload_bytes, elements = _payload(x, group_size)
  return Collective(
    name=x.name,
    kind=opcodes.base(x.opcode),
    axes=axes,
    group_size=group_size,
    payload_bytes=payload_bytes,
    elements=elements,
    dtype="+".join(sorted({operand.shape.dtype for operand in _buffers(x)})),
    count=visit.count,
    op_name=visit.op_name,
    bound=visit.bound,
    asynchronous=_is_asynchronous(visit),
  )


def _is_asynchronous(visit: Visit) -> bool:
  """By its own opcode or that of the call around it; NVIDIA's compiler may then still say that it waits at once."""
  x, site = visit.instruction, visit.frame.site
  around = "" if site is None else site.instruction.opcode
  return (x.opcode.endswith("-start") and '"is_sync":true' not in x.attributes) or around == "async-start"


def _is_permute(x: Instruction) -> bool:
  return opcodes.base(x.opcode) == "collective-permute"


def _group_size(x: Instruction, devices: int) -> int:
  return 2 if _is_permute(x) else groups.replica_groups(x, devices).shape[1]


def _buffers(x: Instruction) -> tuple[Instruction, ...]:
  """The operands that travel; a ragged all-to-all and an in-place permute also take buffers and offsets."""
  alone = opcodes.base(x.opcode) in ("ragged-all-to-all", "collective-permute")
  return x.operands[:1] if alone else x.operands


def _payload(x: Instruction, group_size: int) -> tuple[float, int]:
  """Bytes and elements of the full-side buffer; an asynchronous start has the same operands."""
  gathered = group_size if opcodes.base(x.opcode) == "all-gather" else 1
  shapes = [operand.shape for operand in _buffers(x)]
  return gathered * sum(shape.bytes for shape in shapes), gathered * sum(shape.elements for shape in shapes)
