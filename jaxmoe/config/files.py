"""Reading of users' YAML and JSON files: a mapping with text keys, or one `UsageError`.

Numbers follow YAML 1.2, in which `400e12` is a number, `010` is text and `no` is text; `_` may group digits.
Anchors and aliases are refused, for a few of them can stand for more data than memory holds.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxmoe.meshes.errors import UsageError

MAX_BYTES = 1 << 20
MAX_DIGITS = 400  # of a whole number; beyond 309 none fits a float


def read_mapping(path: Path) -> dict[str, Any]:
  """The top-level mapping of one file; `.json` is read as JSON, everything else as YAML."""
  return parse_mapping(read_bytes(path), origin=str(path), is_json=path.suffix == ".json")


def read_bytes(path: Path) -> bytes:
  """The bytes of a regular file of at most 1 MiB."""
  label = shown(path)
  try:
    if path.is_dir():
      raise UsageError(f"{label}: expected a file, got a directory; name a file in it")
    if not path.exists():
      raise UsageError(f"{label}: no such file; check the path")
    if not path.is_file():
      raise UsageError(f"{label}: expected a regular file, got a device or pipe; save it to a file first")
    with path.open("rb") as file:
      content = file.read(MAX_BYTES + 1)
  except UsageError:
    raise
  except (OSError, ValueError) as error:
    raise UsageError(f"{label}: cannot be read: {_reason(error)}") from error
  if len(content) > MAX_BYTES:
    raise UsageError(f"{label}: expected at most {MAX_BYTES} bytes, got more; is this the right file?")
  return content


def parse_mapping(content: bytes, *, origin: str, is_json: bool = False) -> dict[str, Any]:
  """The top-level mapping of a file's content; `origin` opens every message."""
  label = shown(origin)
  try:
    text = content.decode("utf-8-sig")
    data = _parse_json(text) if is_json else yaml.load(text, Loader=_Loader)
  except UnicodeDecodeError as error:
    raise UsageError(f"{label}: expected UTF-8 text, got byte {content[error.start]:#04x} at {error.start}") from error
  except RecursionError as error:
    raise UsageError(f"{label}: nested too deeply; write it flatter") from error
  except (yaml.YAMLError, ValueError) as error:
    raise UsageError(f"{label}: {_problem(error, 'JSON' if is_json else 'YAML')}") from error
  if not isinstance(data, dict):
    raise UsageError(f"{label}: expected a mapping of `key: value` lines, got {got(data)}")
  return data


def shown(value: object) -> str:
  """A user's text on one line and without control characters, cut at 120."""
  text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
  return text if len(text) <= 120 else text[:117] + "..."


def got(value: object) -> str:
  """A value as a message shows it, with its kind where that matters."""
  match value:
    case None:
      return "nothing"
    case bool():
      return "true" if value else "false"
    case str():
      return f"the text '{shown(value)}'"
    case dict():
      return "a mapping"
    case list():
      return "a list"
    case int() if abs(value) >= 10**30:
      return "a number of more than 30 digits"
    case _:
      return shown(value)


def closest(wish: str, options: Iterable[str], *, cutoff: float = 0.5) -> str:
  """` (did you mean 'x'?)`, or nothing when no option is near."""
  by_lower = {option.lower(): option for option in options}
  near = difflib.get_close_matches(wish.lower()[:80], by_lower, n=1, cutoff=cutoff)
  return f" (did you mean '{by_lower[near[0]]}'?)" if near else ""


class _FileError(ValueError):
  """A fault of the text that yaml or json would let pass."""


class _Loader(yaml.SafeLoader):
  """SafeLoader with YAML 1.2 numbers, text keys, no duplicates and no aliases."""

  yaml_implicit_resolvers: Mapping[str, list] = {}

  def compose_node(self, parent, index):
    event = self.peek_event()
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
      raise _FileError(f"line {_line(event)}: anchors (&) and aliases (*) are not read; write the value out")
    return super().compose_node(parent, index)

  def construct_mapping(self, node, deep=False):
    seen: set[str] = set()
    for key_node, _ in node.value:
      key = self.construct_object(key_node, deep=True)
      if not isinstance(key, str):
        raise _FileError(f"line {_line(key_node)}: expected a key of text, got {got(key)}; put it in quotes")
      if key in seen:
        raise _FileError(f"line {_line(key_node)}: key '{shown(key)}' stands twice; keep one")
      if _is_broken(key):
        raise _FileError(f"line {_line(key_node)}: {_broken_key(key)}")
      seen.add(key)
    return super().construct_mapping(node, deep)

  def construct_number(self, node):
    text = node.value.replace("_", "")
    return _whole_number(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


# PyYAML's own rules are YAML 1.1, where `no` is false, `010` is 8, `1:30` is 90 and `400e12` is text.
for _tag, _pattern, _first in [
  ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
  ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
  ("number", r"[-+]?(0|[1-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
]:
  _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:number", _Loader.construct_number)


def _parse_json(text: str) -> Any:
  return json.loads(
    text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant, parse_int=_whole_number
  )  # fmt: skip


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise _FileError(f"key '{shown(twice)}' stands twice; keep one")
  for key in filter(_is_broken, result):
    raise _FileError(_broken_key(key))
  return result


def _is_broken(key: str) -> bool:
  """Whether a key holds half of a surrogate pair, which escapes can spell and nothing can print."""
  return any("\ud800" <= character <= "\udfff" for character in key)


def _broken_key(key: str) -> str:
  return f"key '{shown(key)}' holds half of a character (a lone surrogate); write the whole character"


def _whole_number(text: str) -> int:
  """A written whole number, cut where no field takes it anyway, so that its field's check and not Python refuses it."""
  return int(text[:MAX_DIGITS])


def _refuse_constant(constant: str) -> None:
  raise _FileError(f"expected a finite number, got {constant}")


def _line(node: Any) -> int:
  return node.start_mark.line + 1


def _problem(error: Exception, language: str) -> str:
  """What is wrong with the text, with its line where the parser knows it."""
  mark = getattr(error, "problem_mark", None)
  where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
  match error:
    case _FileError():
      return str(error)
    case json.JSONDecodeError():
      return f"not valid JSON in line {error.lineno}, column {error.colno}: {error.msg}"
    case yaml.MarkedYAMLError():
      return f"not valid {language}{where}: {shown(error.problem or error.context)}"
    case yaml.reader.ReaderError():
      return f"not valid {language}: character {error.character!r:.12} is not allowed in text"
  return f"not valid {language}: {shown(error)}"


def _reason(error: Exception) -> str:
  return (getattr(error, "strerror", None) or str(error)).lower()
