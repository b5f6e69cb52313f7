"""How busy experts are, as `--load` takes it: a factor, a power law, or what was measured."""

import pathlib
from typing import Any

from jaxmoe.cli.loading import with_home
from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.files import read_mapping, shown
from jaxmoe.meshes.errors import UsageError

KEY = "rows_by_expert"
WANTED = f"expected a factor such as 1.5, a power law such as power:1.2, or a file with `{KEY}: [120, 87, ...]`"


def load_from(text: str, num_experts: int | None = None) -> dict[str, Any]:
  """Fields of `Assumptions`: `1.5`, `power:1.2`, `rows.yaml`.

  Args:
    num_experts: of a layer of the model, if it is known already.

  Raises:
    UsageError: none of the three, or numbers that mean nothing.
  """
  fields = _fields(text)
  try:
    assumed = Assumptions(**fields)
    if num_experts is not None:
      assumed.check_experts(num_experts)
  except UsageError as error:  # it names the field, and the user gave an option
    raise UsageError(str(error).replace(f"assumptions.{next(iter(fields))}", f"--load {shown(text)}")) from None
  return fields


def _fields(text: str) -> dict[str, Any]:
  if text.startswith("power:"):
    return {"popularity": _number(text, text.removeprefix("power:"))}
  if text.endswith((".json", ".yaml", ".yml")):
    return {"popularity": _rows(with_home(text))}
  return {"load": _number(text, text)}


def _number(text: str, digits: str) -> float:
  try:
    return float(digits)
  except ValueError:
    raise UsageError(f"--load {shown(text)}: {WANTED}") from None


def _rows(path: str) -> tuple[float, ...]:
  data = read_mapping(pathlib.Path(path))
  rows = data.get(KEY)
  if set(data) != {KEY} or not isinstance(rows, list) or not all(type(row) in (int, float) for row in rows):
    raise UsageError(f"--load {shown(path)}: expected one key, `{KEY}: [120, 87, ...]`, a number for each expert")
  return tuple(float(row) for row in rows)
