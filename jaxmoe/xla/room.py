"""Whether this machine has the memory for what its CPU runs: fake devices share it, and who fills it may be killed."""

import pathlib
import re

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.least_memory import least_step_bytes
from jaxmoe.meshes.errors import UsageError

_MEMORY = pathlib.Path("/proc/meminfo")
# What a container may take at most, under the second and the first version of control groups.
_LIMITS = (pathlib.Path("/sys/fs/cgroup/memory.max"), pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_room(d: Deployment) -> None:
  """Returns quietly if all devices of `d` may fit into this machine's memory, or nobody knows how much that is.

  Raises:
    UsageError: not even the least fits that they hold at once; they wait for each other within a step.
  """
  needed, available = d.strategy.devices * least_step_bytes(d), available_bytes()
  if available is not None and needed > available:
    raise UsageError(
      f"expected at least {_gigabytes(needed)} of available memory, for this machine's CPU stands in for"
      f" {d.strategy.product}, and got {_gigabytes(available)}; run a small copy with --reduced, free some memory, or"
      " use a machine that has more"
    )


def available_bytes() -> int | None:
  """What a process may still take without swapping; None where the system does not say."""
  found = re.search(r"MemAvailable:\s*(\d+) kB", _text(_MEMORY))
  limits = [int(text) for text in map(_text, _LIMITS) if text.strip().isdigit()]
  return min([int(found[1]) * 1024, *limits]) if found else None


def _text(file: pathlib.Path) -> str:
  """Empty where there is no such file."""
  try:
    return file.read_text()
  except OSError:
    return ""


def _gigabytes(size: int) -> str:
  return f"{size / 1e9:,.1f} GB"
