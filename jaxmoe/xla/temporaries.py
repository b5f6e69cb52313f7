"""Temporary memory of a compiled step, explained buffer by buffer."""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from jaxmoe.xla import attribution, opcodes, scopes
from jaxmoe.xla.assignment import Assignment, Buffer, Value
from jaxmoe.xla.attribution import Facts, Sizes, class_of
from jaxmoe.xla.buffers import Buffers
from jaxmoe.xla.hlo import Instruction, Module
from jaxmoe.xla.loops import Frame, Site
from jaxmoe.xla.walk import walk

GAPS = "gaps between buffers"
REST = "not in the buffer assignment"

LARGE = 0.01  # of all temporary bytes: whatever is larger is shown by itself

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_PART_OF = frozenset({"all-gather", "dynamic-slice", "slice", "bitcast", "convert", "copy", "reshape", "transpose"})
_BACKWARD_OF_LAYER = re.compile(r"transpose\(.*/(attention|experts|router)\b")
_DEEPEST = 4  # operands of operands in which a name is looked for
_LONG = 160  # characters: such a name is of several operations that were joined


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Temporary:
  """One buffer.

  Attributes:
    kind: one of `attribution.CLASSES`.
    at_peak: it is among those that are needed when most bytes are.
    instruction: the first that makes it; `shape` is as the compiler writes it.
    op_name, source: jax's name and `file.py:12`; empty if the compiler dropped them.
  """

  kind: str
  bytes: int
  at_peak: bool
  instruction: str
  shape: str
  op_name: str
  source: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Temporaries:
  """Bytes of one device.

  Attributes:
    class_bytes: when most bytes are needed, with `GAPS` and `REST`: all temporary bytes.
    on_chip_bytes: beside them, in a TPU's vector memory.
    large: buffers of at least `LARGE` of all temporary bytes, the largest first.
  """

  class_bytes: dict[str, int]
  on_chip_bytes: int
  large: tuple[Temporary, ...]

  @property
  def unknown(self) -> list[Temporary]:
    return [one for one in self.large if one.kind == attribution.UNKNOWN]


def temporaries(
  assignment: Assignment, module: Module, temp_bytes: int, sizes: Sizes, arguments: Sequence[str]
) -> Temporaries:
  """`temp_bytes` are all that there are; `arguments` is the class of each argument of the module."""
  reader = _Reader(assignment, module, sizes, arguments)
  peak, found = dict(assignment.at_peak()), defaultdict(int)
  for buffer, size in peak.items():
    found[reader.kind(buffer)] += size
  found[GAPS] = assignment.heap_bytes - sum(peak.values())
  found[REST] = max(0, temp_bytes - assignment.heap_bytes)
  large = (buffer for buffer in assignment.buffers if buffer.bytes >= LARGE * temp_bytes)
  return Temporaries(
    class_bytes={name: size for name, size in found.items() if size},
    on_chip_bytes=assignment.on_chip_bytes,
    large=tuple(
      reader.read(buffer, at_peak=buffer in peak) for buffer in sorted(large, key=lambda b: (-b.bytes, b.begin))
    ),
  )


class _Reader:
  """Looks buffers up in the module that they are of."""

  def __init__(self, assignment: Assignment, module: Module, sizes: Sizes, arguments: Sequence[str]):
    self._module, self._sizes, self._arguments = module, sizes, arguments
    self._origins = Buffers(module)
    self._sites: dict[str, Site] = {}
    self._op_names: dict[str, str] = {}
    for visit in walk(module):
      self._sites.setdefault(visit.instruction.name, Site(visit.instruction, visit.frame))
      self._op_names.setdefault(visit.instruction.name, visit.op_name)
    values = itertools.chain.from_iterable(buffer.values for buffer in assignment.buffers)
    steps = (value.begin for value in values if _BACKWARD_OF_LAYER.search(self._op_names.get(value.instruction, "")))
    self._backward = min(steps, default=None)

  def read(self, buffer: Buffer, *, at_peak: bool) -> Temporary:
    first = buffer.values[0]
    sites = [site for value in buffer.values for site in self._made_at(value)]
    names = self._names(buffer.values)
    named = [name for name in names if scopes.path(name)] or sorted(
      names, key=lambda name: (len(name) < _LONG, len(name))
    )
    return Temporary(
      kind=self.kind(buffer),
      bytes=buffer.bytes,
      at_peak=at_peak,
      instruction=first.instruction,
      shape=first.shape,
      op_name=named[-1].replace("\\'", "'") if named else "",
      source=next(filter(None, (self._module.source(site.instruction) for site in sites)), ""),
    )

  def kind(self, buffer: Buffer) -> str:
    shape = _SHAPE.match(buffer.values[0].shape)
    dims = tuple(int(length) for length in shape[2].split(",") if length) if shape else ()
    facts = Facts(
      names=self._names(buffer.values),
      dtype=shape[1] if shape else "",
      dims=dims,
      argument=self._argument(buffer),
      crosses=self._crosses(buffer),
    )
    return class_of(facts, self._sizes)

  def _names(self, values: Iterable[Value]) -> list[str]:
    """Of what makes the values; of what that reads, where the compiler kept none."""
    sites = [site for value in values for site in self._made_at(value)]
    for _ in range(_DEEPEST):
      names = [name for site in sites for name in self._named(site.instruction)]
      if names:
        return names
      sites = [read for site in sites for read in self._read(site)]
    return []

  def _read(self, site: Site) -> list[Site]:
    """What an instruction reads; of a parameter, what is passed for it."""
    passed = _passed(site)
    return [passed] if passed else [Site(y, site.frame) for y in site.instruction.operands]

  def _named(self, x: Instruction) -> Iterator[str]:
    """Its own name; without one, those of what is fused in it, or that of the operation that it is all of."""
    if name := self._op_names.get(x.name, x.op_name):
      yield name
    elif "calls" in x.called:
      inside = self._module.computations[x.called["calls"]].instructions
      yield from (y.op_name for y in inside if y.op_name)
    elif around := self._around(x):
      yield from filter(None, [around.op_name])

  def _around(self, x: Instruction) -> Instruction | None:
    """The call, fusion or asynchronous operation that it is a part of."""
    site = self._sites[x.name].frame.site if x.name in self._sites else None
    inside = site is not None and opcodes.base(site.instruction.opcode) not in ("while", "conditional")
    return site.instruction if site is not None and inside else None

  def _crosses(self, buffer: Buffer) -> bool:
    """Whether it is needed when the first layer's backward pass starts, and what was there before is of no backward."""
    step = self._backward
    if step is None or not buffer.begin < step <= buffer.end:
      return False
    before = [value for value in buffer.values if value.begin < step]
    return not any("transpose(" in name for name in self._names(before))

  def _argument(self, buffer: Buffer) -> str:
    """Class of the arguments of which this is a copy, or a part, or all parts gathered."""
    for value in buffer.values:
      for site in self._made_at(value):
        number = None if value.index else self._origin(site.instruction, site.frame)
        if number is not None:
          return self._arguments[number]
    return ""

  def _made_at(self, value: Value) -> list[Site]:
    """The instruction; an asynchronous one where it is the inside of that, which has no text of its own."""
    names = value.instruction, *value.positions
    return [self._sites[name] for name in names if name in self._sites][:1]

  def _origin(self, x: Instruction, frame: Frame) -> int | None:
    """Number of the argument that this is a copy or a part of; None if it is computed."""
    while True:
      number = self._origins.argument(x, frame)
      if number is not None:
        return number
      if passed := _passed(Site(x, frame)):
        x, frame = passed.instruction, passed.frame
      elif not x.operands:
        return None
      elif opcodes.base(x.opcode) in _PART_OF or not opcodes.executes(x.opcode):
        x = x.operands[0]
      elif opcodes.base(x.opcode) == "fusion" and (part := self._fused_part(x)) is not None:
        x = x.operands[part]
      else:
        return None

  def _fused_part(self, fusion: Instruction) -> int | None:
    """The operand that a fusion only takes a part of, or converts."""
    x = self._module.computations[fusion.called["calls"]].root
    while opcodes.base(x.opcode) in _PART_OF and x.operands:
      x = x.operands[0]
    return int(x.literal) if x.opcode == "parameter" else None


def _passed(site: Site) -> Site | None:
  """What a call, a fusion or an asynchronous operation passes for a parameter."""
  around = site.frame.site
  if site.instruction.opcode != "parameter" or around is None:
    return None
  if opcodes.base(around.instruction.opcode) in ("while", "conditional"):
    return None
  return Site(around.instruction.operands[int(site.instruction.literal)], around.frame)
