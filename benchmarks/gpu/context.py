"""The CUDA context of a child process: shared with torch, emptied between problems, left when it is lost."""

import gc
import os
import sys

import jax
import jax.numpy as jnp

LOST = 9  # exit code: a kernel's fault stays with its context, so what follows needs another process


def share_memory() -> None:
  """Before jax meets the device: it takes memory as it needs it, because torch needs some too."""
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def free_memory() -> None:
  """Arrays that nobody holds, and what torch keeps of its own."""
  gc.collect()
  torch = sys.modules.get("torch")
  if torch is not None and torch.cuda.is_initialized():
    torch.cuda.empty_cache()


def leave_if_lost(row: dict) -> None:
  """End the process if what failed took the device with it."""
  if isinstance(row.get("error"), str) and not answers():
    os._exit(LOST)  # jax's own end would wait for the device


def answers() -> bool:
  try:
    return int(jnp.sum(jax.device_put(jnp.arange(8)) + 1)) == 36
  except Exception:  # whatever it is: a device that cannot add is lost
    return False
