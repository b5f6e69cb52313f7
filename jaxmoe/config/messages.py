"""pydantic's errors as one sentence: the field's path, what was expected, what came and what is legal."""

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from jaxmoe.config.files import closest, got, shown
from jaxmoe.meshes.errors import UsageError

_EXPECTED = {
  "int_type": "a whole number",
  "float_type": "a number",
  "bool_type": "true or false",
  "string_type": "text",
  "list_type": "a list",
  "dict_type": "a mapping",
  "model_type": "a mapping",
  "model_attributes_type": "a mapping",
  "finite_number": "a finite number",
  "greater_than": "a number above {gt}",
  "greater_than_equal": "a number of at least {ge}",
  "less_than_equal": "a number of at most {le}",
  "literal_error": "{expected}",
  "string_pattern_mismatch": "text that matches {pattern}",
  "string_unicode": "text of whole characters (no lone surrogate)",
  "string_too_long": "text of at most {max_length} characters",
  "string_too_short": "text of at least {min_length} characters",
  "too_short": "at least {min_length} entries",
}


def usage_error(error: ValidationError, form: type[BaseModel], *, prefix: str = "") -> UsageError:
  """The first fault as a `UsageError`; unknown keys come first, for a misspelt key makes others missing."""
  faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
  more = f" ({len(faults) - 1} more after this)" if len(faults) > 1 else ""
  return UsageError(_sentence(faults[0], form, prefix) + more)


def _sentence(fault: Any, form: type[BaseModel], prefix: str) -> str:
  location = fault["loc"][:-1] if fault["loc"][-1:] == ("[key]",) else fault["loc"]  # so pydantic marks a key's fault
  path, value, context = field_path(location, prefix), fault["input"], fault.get("ctx", {})
  match fault["type"]:
    case "extra_forbidden":
      keys = _legal_keys(form, fault["loc"])
      return f"{path}: unknown key{closest(str(fault['loc'][-1]), keys)}; legal keys are {', '.join(keys)}"
    case "missing":
      return f"{path} is missing; add it"
    case "value_error":
      return f"{path}: {context['error']}" if path else str(context["error"])
  expected = _EXPECTED.get(fault["type"])
  wanted = f"expected {expected.format(**context)}" if expected else shown(fault["msg"])
  return f"{path}: {wanted}, got {got(value)}{_remedy(fault['type'], value, context)}"


def field_path(location: tuple[int | str, ...], prefix: str = "") -> str:
  """`("claims", 3, "value")` -> `claims[3].value`."""
  path = prefix
  for part in location:
    path += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if path else shown(part)
  return path


def _remedy(kind: str, value: Any, context: dict[str, Any]) -> str:
  """How to mend it, where that is known."""
  if kind in ("int_type", "float_type") and isinstance(value, str):
    return "; remove the quotes" if _is_number(value) else "; write a plain number"
  if kind == "int_type" and isinstance(value, float) and abs(value) < 1e18:
    return f"; write {round(value)}"
  if kind in ("greater_than_equal", "less_than_equal"):
    return f"; the nearest in range is {context.get('ge', context.get('le'))}"
  if kind == "literal_error" and isinstance(value, str):
    return closest(value, context["expected"].replace("'", "").replace(" or ", ", ").split(", "))
  return ""


def _is_number(text: str) -> bool:
  try:
    return bool(float(text) + 1)
  except ValueError:
    return False


def _legal_keys(form: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
  """Keys of the form that the location's last part was meant for."""
  for part in location[:-1]:
    if isinstance(part, str) and part in form.model_fields:
      form = _nested_form(form.model_fields[part].annotation) or form
  return list(form.model_fields)


def _nested_form(annotation: Any) -> type[BaseModel] | None:
  """The form inside `Form`, `list[Form]` or `Form | None`."""
  if isinstance(annotation, type) and issubclass(annotation, BaseModel):
    return annotation
  return next((form for inner in get_args(annotation) if (form := _nested_form(inner))), None)
