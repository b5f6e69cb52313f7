"""Amounts with units, as options take them: `10s`, `250ms`, `4GB`, `2GiB`."""

import re
from collections.abc import Mapping

from jaxmoe.config.files import got, shown
from jaxmoe.meshes.errors import UsageError

SECONDS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES: Mapping[str, float] = {
  **{f"{prefix}B": 1000.0**power for power, prefix in enumerate(("", "K", "M", "G", "T"))},
  **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)},
}


def seconds_of(option: str, text: str) -> float:
  """`250ms` -> 0.25; always above 0."""
  wanted = "a time such as 10s or 250ms"
  seconds = _amount(option, text, SECONDS, wanted)
  if not seconds > 0:
    raise UsageError(f"{option} must be above 0, got {shown(text)}; give {wanted}")
  return seconds


def bytes_of(option: str, text: str) -> int:
  """`4GB` -> 4_000_000_000."""
  return round(_amount(option, text, BYTES, "a size such as 4GB or 512MiB"))


def _amount(option: str, text: str, units: Mapping[str, float], wanted: str) -> float:
  found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]+)\s*", text)
  if found is None or found[2] not in units:
    raise UsageError(f"{option}: expected {wanted}, in {', '.join(units)}; got {got(text)}")
  return float(found[1]) * units[found[2]]
