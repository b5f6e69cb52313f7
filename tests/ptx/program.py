"""PTX text as instructions and labels."""

import collections
import dataclasses
import itertools
import re
from typing import NamedTuple

from ptx.objection import Unmodelled


class Address(NamedTuple):
  """`[base+offset]`, of a tensor with `{coordinates}`."""

  base: str
  offset: int = 0
  coordinates: tuple["Operand", ...] = ()


# A register or symbol, a number's bits, several in braces or around a bar, an address.
type Operand = str | int | tuple["Operand", ...] | Address


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Done by the threads whose `guard`, a predicate, is not `skipped_if`; by all of them without one."""

  opcode: str
  operands: tuple[Operand, ...]
  guard: str | None
  skipped_if: bool
  text: str


@dataclasses.dataclass(frozen=True)
class Program:
  """Labels give the number of the instruction behind them; `name` is the kernel's."""

  name: str
  instructions: tuple[Instruction, ...]
  labels: dict[str, int]


def parse(text: str) -> Program:
  """The one kernel of a module."""
  head, _, body = re.sub(r"//.*", "", text).partition("\n{")
  (name,) = re.findall(r"\.entry (\w+)\(", head)
  instructions, labels = [], {}
  for statement in _with_names_of_their_own(_statements(body)):
    if statement.endswith(":"):
      labels[statement[:-1]] = len(instructions)
    else:
      instructions.append(_instruction(statement))
  return Program(name, tuple(instructions), labels)


def _statements(body: str):
  """Statements up to the brace that ends the kernel; braces and labels are statements."""
  body = re.sub(r"^\s*\.(?:loc|file)\s.*", "", body, flags=re.MULTILINE)
  depth = 1
  for piece in body.split(";"):
    rest = " ".join(piece.split())
    while found := re.match(r"[{}]|[$\w]+:(?!:)", rest):
      depth += {"{": 1, "}": -1}.get(found[0], 0)
      if not depth:
        return
      yield found[0]
      rest = rest[found.end() :].lstrip()
    if rest:
      yield rest


def _with_names_of_their_own(statements):
  """Statements without braces; what a block declares, registers and labels, bears the block's number."""
  blocks, block, found, names = itertools.count(1), 0, [], collections.defaultdict(set)
  for statement in statements:
    if statement == "{":
      if block:
        raise Unmodelled("blocks within blocks")
      block = next(blocks)
    elif statement == "}":
      block = 0
    elif statement.startswith(".reg "):
      names[block] |= _declared(statement)
    elif statement.startswith("."):
      if not re.match(r"\.(shared|pragma)\b", statement):
        raise Unmodelled(statement)
    else:
      names[block] |= {statement[:-1]} if statement.endswith(":") else set()
      found.append((block, statement))
  for block, statement in found:
    own = names[block] if block else set()
    yield re.sub(r"[$%\w]+", lambda word, own=own, block=block: word[0] + f"@{block}" * (word[0] in own), statement)


def _declared(statement: str) -> set[str]:
  """`.reg .b16 pair<2>` declares pair0 and pair1."""
  names = set()
  for name, count in re.findall(r"([%\w]+)(?:<(\d+)>)?(?:, |$)", statement.split(" ", 2)[2]):
    names |= {f"{name}{i}" for i in range(int(count))} if count else {name}
  return names


def _instruction(statement: str) -> Instruction:
  guard, rest = re.fullmatch(r"(?:@(!?\S+) )?(.*)", statement).groups()
  opcode, _, operands = rest.partition(" ")
  guard = guard or ""
  return Instruction(opcode, _operands(operands), guard.lstrip("!") or None, guard.startswith("!"), statement)


def _operands(text: str) -> tuple[Operand, ...]:
  pieces = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[\]])+", text)
  return tuple(_operand(piece.strip()) for piece in pieces if piece.strip())


def _operand(text: str) -> Operand:
  if text.startswith("{"):
    return _operands(text.strip("{}"))
  if text.startswith("["):
    base, offset, coordinates = re.fullmatch(r"\[(\S+?)(?:\+(-?\d+))?(?:, (\{.*\}) ?)?\]", text).groups()
    return Address(base, int(offset or 0), _operand(coordinates) if coordinates else ())
  if "|" in text:
    return tuple(text.split("|"))
  if re.fullmatch(r"0f[0-9A-F]{8}", text):
    return int(text[2:], 16)
  return int(text, 0) if re.fullmatch(r"-?\d+|0x[0-9A-F]+", text) else text
