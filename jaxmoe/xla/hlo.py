"""A typed view of one HLO module: computations, instructions, shapes and attributes.

jaxlib's own objects lack what a cost walk needs (no shapes in 0.11; no roots, entry or attributes in any
version), so the module is read once from its canonical text, which jaxlib prints and checks.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from jaxlib import _hlo  # pyright: ignore[reportAttributeAccessIssue]

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-$]+) = (?P<rest>.*)$")
_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
  """One array: element type in HLO's spelling (`bf16`, `f8e4m3fn`, `pred`) and dimensions."""

  dtype: str
  dims: tuple[int, ...]

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    return self.elements * item_bytes(self.dtype)


def item_bytes(dtype: str) -> float:
  """Bytes of one element: the first number in the name counts bits (`f8e4m3fn` 1, `s4` 0.5); `pred` is 1."""
  if dtype == "pred":
    return 1
  bits = re.search(r"\d+", dtype)
  return int(bits.group()) / 8 if bits else 0  # `token` and `opaque` hold no data


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Instruction:
  """One line of HLO.

  Attributes:
    opcode: HLO's spelling, `all-reduce`.
    shapes: the result's arrays, a tuple flattened.
    operands: in order.
    literal: what stands in the parentheses of a constant or parameter (`5`, `0`), else the operand list.
    attributes: the text behind the parentheses.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple["Instruction", ...]
  literal: str
  attributes: str

  @property
  def shape(self) -> Shape:
    """The only array of the result, or a tuple's first."""
    return self.shapes[0]

  @property
  def op_name(self) -> str:
    """jax's path of scopes and primitive, `jit(f)/layer/dot_general`; empty if the compiler dropped it."""
    return self.text("op_name")

  @property
  def called(self) -> dict[str, str]:
    """Computation names by role: `calls`, `to_apply`, `body`, `condition`."""
    return dict(_CALLED.findall(self.attributes))

  @property
  def branches(self) -> tuple[str, ...]:
    """Computation names of a conditional, in the order of its operands."""
    listed = _BRANCHES.search(self.attributes)
    if listed:
      return tuple(name.strip().lstrip("%") for name in listed.group(1).split(","))
    return tuple(self.called[role] for role in ("true_computation", "false_computation"))

  @property
  def frontend_attributes(self) -> dict[str, str]:
    listed = re.search(r'\bfrontend_attributes=\{((?:"[^"]*"|[^}"])*)\}', self.attributes)
    return dict(re.findall(r'([\w.\-]+)="?([^",}]*)', listed.group(1))) if listed else {}

  def text(self, key: str) -> str:
    """A quoted attribute, `custom_call_target="TopK"`; empty if absent."""
    found = re.search(rf'\b{key}="((?:[^"\\]|\\.)*)"', self.attributes)
    return found.group(1) if found else ""

  def word(self, key: str) -> str:
    """An unquoted attribute, `direction=LT`; empty if absent."""
    found = re.search(rf"\b{key}=([\w.\->]+)", self.attributes)
    return found.group(1) if found else ""

  def dims(self, key: str) -> tuple[int, ...]:
    """A list of dimensions, `lhs_contracting_dims={1}`; `()` if absent."""
    found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
    return tuple(int(number) for number in found.group(1).split(",") if number) if found else ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Computation:
  name: str
  instructions: tuple[Instruction, ...]
  root: Instruction


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
  """A parsed module; `devices` is partitions x replicas."""

  name: str
  computations: Mapping[str, Computation]
  entry: Computation
  devices: int
  header: str

  @classmethod
  def from_compiled(cls, compiled) -> "Module":
    """The optimised module of a `jax.stages.Compiled`.

    Raises:
      NotImplementedError: the executable holds several modules.
    """
    modules = compiled.runtime_executable().hlo_modules()
    if len(modules) != 1:
      raise NotImplementedError(f"expected one HLO module in the executable, got {len(modules)}")
    return cls._from_canonical(modules[0].to_string())

  @classmethod
  def from_text(cls, text: str) -> "Module":
    """Any HLO text that XLA's parser accepts, dumps included."""
    return cls._from_canonical(_hlo.hlo_module_from_text(text).to_string())

  @classmethod
  def _from_canonical(cls, text: str) -> "Module":
    computations, entry, lines = {}, "", text.splitlines()
    for number, line in enumerate(lines):
      head = _COMPUTATION.match(line)
      if head:
        body = lines[number + 1 : _block_end(lines, number)]
        computations[head["name"]] = _computation(head["name"], body)
        entry = head["name"] if head["entry"] else entry
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if _COMPUTATION.match(line))])
    sizes = dict(re.findall(r"\b(num_partitions|replica_count)=(\d+)", lines[0]))
    devices = math.prod(int(size) for size in sizes.values())
    return cls(lines[0].split()[1].rstrip(","), computations, computations[entry], devices, header)

  def source(self, instruction: Instruction) -> str:
    """`file.py:12` where jax traced it; empty if unknown."""
    return self._sources.get(instruction.word("stack_frame_id"), "")

  @functools.cached_property
  def _sources(self) -> dict[str, str]:
    files = dict(re.findall(r'^(\d+) "(.*)"$', self.header.partition("FunctionNames")[0], re.M))
    locations = {
      number: f"{files.get(file, '?')}:{line}"
      for number, file, line in re.findall(r"^(\d+) \{file_name_id=(\d+) .*?line=(\d+)", self.header, re.M)
    }
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", self.header, re.M)
    return {number: locations.get(location, "") for number, location in frames}


def _block_end(lines: list[str], start: int) -> int:
  return next(number for number in range(start, len(lines)) if lines[number].startswith("}"))


def _computation(name: str, lines: list[str]) -> Computation:
  instructions: dict[str, Instruction] = {}
  root = ""
  for line in lines:
    match = _INSTRUCTION.match(line)
    assert match, f"unreadable HLO line in {name}: {line[:200]}"
    instructions[match["name"]] = _instruction(match["name"], match["rest"], instructions)
    root = match["name"] if match["root"] else root
  return Computation(name, tuple(instructions.values()), instructions[root])


def _instruction(name: str, rest: str, known: dict[str, Instruction]) -> Instruction:
  shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  opcode, _, _ = rest[shape_end:].partition("(")
  opening = shape_end + len(opcode)
  closing = _closing(rest, opening)
  literal = rest[opening + 1 : closing]
  opcode = opcode.strip()
  operands = () if opcode in ("constant", "parameter") else re.findall(r"%([\w.\-$]+)", literal)
  return Instruction(
    name=name,
    opcode=opcode,
    shapes=tuple(Shape(dtype, _dims(dims)) for dtype, dims in _LEAF.findall(rest[:shape_end])),
    operands=tuple(known[operand] for operand in operands),
    literal=literal,
    attributes=rest[closing + 1 :],
  )


def _dims(text: str) -> tuple[int, ...]:
  """A dynamic dimension (`<=10`) counts at its bound."""
  return tuple(int(number) for number in text.replace("<=", "").split(",") if number)


def _closing(text: str, opening: int) -> int:
  depth = 0
  for position in range(opening, len(text)):
    depth += {"(": 1, ")": -1}.get(text[position], 0)
    if depth == 0:
      return position
  raise AssertionError(f"unbalanced parentheses in HLO: {text[:200]}")
