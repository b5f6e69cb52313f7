"""Checks of an earlier run that still hold: same device, driver, versions, sources, and tiles from the table."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable

from problems import Problem
from recorded import ROOT

from jaxmoe.kernels.hopper import config

COMPILERS = ("jax", "jaxlib")  # peers' versions do not matter
SCRIPTS = ("correctness.py", "operands.py", "problems.py", "samples.py")


def key(problem: Problem, leg: str, environment: dict) -> str:
  """Equal for two checks if the second can only say what the first said.

  Of the table, what holds for this problem's shape and rows counts: it reaches the kernels only so. Seeds do not count.
  """
  N, D, F, E = problem.dims
  shape = {"device": environment["device"], "groups": E, "rows_per_group": config.bucket(N, E)}
  entries = json.loads(config.TABLE.read_text())["entries"]
  tiles = [e["shape"] | {"leg": e["leg"], "D": e["D"]} for e in entries
           if all(e[k] == shape[k] for k in shape) and {e["D"], e["F"]} == {D, F}]  # fmt: skip
  ours = [environment["device"], environment["driver"], *(environment["versions"].get(name) for name in COMPILERS)]
  case = {**dataclasses.asdict(problem), "seed": None, "leg": leg}
  return hashlib.sha256(json.dumps([ours, sources(), tiles, case], sort_keys=True).encode()).hexdigest()[:16]


def sources() -> str:
  """Of the kernels, and of what checks them."""
  here = pathlib.Path(__file__).parent
  files = [*sorted((ROOT / "kernels").rglob("*.py")), *(here / name for name in SCRIPTS)]
  return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def earlier(folders: Iterable[pathlib.Path]) -> dict[str, dict]:
  """Key -> row, of every check recorded in these folders that found a leg right; what was wrong is tried again."""
  found: dict[str, dict] = {}
  records = [record for folder in set(folders) for record in _records(folder)]
  for _, rows in sorted(records, key=lambda record: record[0]):
    found |= {row["key"]: row for row in rows if "key" in row and row.get("correct")}
  return found


def _records(folder: pathlib.Path) -> Iterable[tuple[str, list[dict]]]:
  for file in folder.glob("kernels_*.json"):
    try:
      document = json.loads(file.read_text())
      yield document["environment"]["date"], document["correctness"]
    except (OSError, ValueError, KeyError, TypeError):  # cut short as it was written, or of another kind
      continue
