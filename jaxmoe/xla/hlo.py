"""A typed view of one HLO module: computations, instructions, shapes and attributes.

jaxlib's own objects lack what a cost walk needs (no shapes in 0.11; no roots, entry or attributes in any
version), so the module is read once from its canonical text, which jaxlib prints and checks.
"""

import contextlib
import dataclasses
import functools
import gc
import math
import pathlib
import re
from collections.abc import Iterator, Mapping

from jaxlib import _hlo  # pyright: ignore[reportAttributeAccessIssue]

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_COMPUTATION_END = re.compile(r"\}(, execution_thread=.*)?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-$]+) = ([^\s(]\S*) ([\w\-]+)\(([^()]*)\)(.*)")
_NESTED = re.compile(r"\s+(ROOT )?%?([\w.\-$]+) = (.*)")  # the same where parentheses stand in parentheses
_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{[^}]*?S\((\d+)\)[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-$]+)")
_PARENTHESIS = re.compile(r"[()]")
_OP_NAME = 'op_name="'
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation|select|scatter)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
ROOT = f"{pathlib.Path(__file__).parents[2]}/"  # lines of our own are named from here


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array.

  Attributes:
    dtype: in HLO's spelling: `bf16`, `f8e4m3fn`, `pred`.
    space: the memory that it lies in: 0 is the device's main memory, others are on the chip or the host's.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @functools.cached_property
  def elements(self) -> int:
    return math.prod(self.dims)

  @functools.cached_property
  def bytes(self) -> float:
    return self.elements * item_bytes(self.dtype)


@functools.cache
def item_bytes(dtype: str) -> float:
  """Bytes of one element: the first number in the name counts bits (`f8e4m3fn` 1, `s4` 0.5); `pred` is 1."""
  if dtype == "pred":
    return 1
  bits = re.search(r"\d+", dtype)
  return int(bits.group()) / 8 if bits else 0  # `token` and `opaque` hold no data


@dataclasses.dataclass(eq=False)  # not frozen: a large module has half a million, and frozen ones take twice as long
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

  @functools.cached_property
  def op_name(self) -> str:
    """jax's path of scopes and primitive, `jit(f)/layer/dot_general`; empty if the compiler dropped it."""
    begin = self.attributes.find(_OP_NAME)
    if begin < 0:
      return ""
    begin += len(_OP_NAME)
    end = self.attributes.find('"', begin)
    name = self.attributes[begin:end]
    return self.text("op_name") if name.endswith("\\") else name

  @functools.cached_property
  def called(self) -> dict[str, str]:
    """Computation names by role: `calls`, `to_apply`, `body`, `condition`, `select`, `scatter`."""
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
    found = re.search(rf'\b{key}="([^"\\]*(?:\\.[^"\\]*)*)"', self.attributes)
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
  """A parsed module.

  Attributes:
    devices: partitions x replicas.
    declares: whether some scope declares expected work beside the most.
  """

  name: str
  computations: Mapping[str, Computation]
  entry: Computation
  devices: int
  header: str
  declares: bool

  @classmethod
  def from_compiled(cls, compiled) -> "Module":
    """The optimised module of a `jax.stages.Compiled`.

    Raises:
      NotImplementedError: the executable holds several modules.
    """
    modules = compiled.runtime_executable().hlo_modules()
    if len(modules) != 1:
      raise NotImplementedError(f"expected one HLO module in the executable, got {len(modules)}")
    return cls.from_canonical(modules[0].to_string())

  @classmethod
  def from_text(cls, text: str) -> "Module":
    """Any HLO text that XLA's parser accepts, dumps included."""
    return cls.from_canonical(_hlo.hlo_module_from_text(text).to_string())

  @classmethod
  def from_canonical(cls, text: str) -> "Module":
    """Text as jaxlib prints it; any other raises."""
    lines = _joined(text.splitlines())
    starts = [i for i, line in enumerate(lines) if line.endswith("{") and not line.startswith(" ")]
    computations, entry = {}, ""
    with without_collector():
      for start, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        head = _COMPUTATION.match(lines[start])
        assert head, f"unreadable HLO line: {lines[start][:200]}"
        end = next(i for i in reversed(range(start, following)) if lines[i].startswith("}"))
        computations[head["name"]] = _computation(head["name"], lines[start + 1 : end])
        entry = head["name"] if head["entry"] else entry
    sizes = dict(re.findall(r"\b(num_partitions|replica_count)=(\d+)", lines[0]))
    devices = math.prod(int(size) for size in sizes.values())
    header = "\n".join(lines[: starts[0]])
    return cls(
      lines[0].split()[1].rstrip(","), computations, computations[entry], devices, header, "[expected=" in text
    )

  def source(self, instruction: Instruction) -> str:
    """`jaxmoe/model/layer.py:12` where jax traced it; other files by their full path; empty if unknown."""
    return self._sources.get(instruction.word("stack_frame_id"), "")

  @functools.cached_property
  def _sources(self) -> dict[str, str]:
    files = dict(re.findall(r'^(\d+) "(.*)"$', self.header.partition("FunctionNames")[0], re.M))
    locations = {
      number: f"{files.get(file, '?').removeprefix(ROOT)}:{line}"
      for number, file, line in re.findall(r"^(\d+) \{file_name_id=(\d+) .*?line=(\d+)", self.header, re.M)
    }
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", self.header, re.M)
    return {number: locations.get(location, "") for number, location in frames}


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
  """While millions of objects are made that all stay, looking for unreachable ones takes as long as making them."""
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()


def _joined(lines: list[str]) -> list[str]:
  """Lines, those of an instruction's configuration on one: within a fusion, a TPU kernel's is printed as it came."""
  if not any(line.startswith('"') for line in lines):
    return lines
  joined: list[str] = []
  inside = False
  for line in lines:
    if inside and not line.startswith(" ") and not _COMPUTATION_END.fullmatch(line):
      joined[-1] += line
      continue
    inside = line.startswith(" ") or line.endswith("{")
    joined.append(line)
  return joined


def _computation(name: str, lines: list[str]) -> Computation:
  instructions: dict[str, Instruction] = {}
  root = ""
  for line in lines:
    match = _INSTRUCTION.fullmatch(line)
    is_root, instruction, shape, opcode, literal, attributes = match.groups() if match else _nested(line)
    operands = () if opcode in ("constant", "parameter") else _OPERAND.findall(literal)
    instructions[instruction] = Instruction(
      instruction, opcode, _shapes(shape), tuple([instructions[operand] for operand in operands]), literal, attributes
    )
    root = instruction if is_root else root
  return Computation(name, tuple(instructions.values()), instructions[root])


def _nested(line: str) -> tuple[str | None, str, str, str, str, str]:
  """Root, name, shape, opcode, literal and attributes of a line whose shape or literal holds parentheses."""
  match = _NESTED.fullmatch(line)
  assert match, f"unreadable HLO line: {line[:200]}"
  is_root, name, rest = match.groups()
  shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  opcode, _, _ = rest[shape_end:].partition("(")
  opening = shape_end + len(opcode)
  closing = _closing(rest, opening)
  return is_root, name, rest[:shape_end], opcode.strip(), rest[opening + 1 : closing], rest[closing + 1 :]


@functools.lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
  return tuple(Shape(dtype, _dims(dims), int(space or 0)) for dtype, dims, space in _LEAF.findall(text))


def _dims(text: str) -> tuple[int, ...]:
  """A dynamic dimension (`<=10`) counts at its bound."""
  return tuple(int(number) for number in text.replace("<=", "").split(",") if number)


def _closing(text: str, opening: int) -> int:
  """The parenthesis that closes the one at `opening`."""
  depth = 0
  for found in _PARENTHESIS.finditer(text, opening):
    depth += 1 if found.group() == "(" else -1
    if depth == 0:
      return found.start()
  raise AssertionError(f"unbalanced parentheses in HLO: {text[:200]}")
