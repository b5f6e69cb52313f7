"""Real text without a download: the bytes of Python's own standard library."""

import pathlib
import sysconfig
from collections.abc import Iterator

import numpy as np


def standard_library_bytes(limit: int = 4_000_000) -> np.ndarray:
  """The first `limit` bytes of the top-level modules' source, in order of name: uint8."""
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  text = bytearray()
  for path in sorted(folder.glob("*.py")):
    text += path.read_bytes()
    if len(text) >= limit:
      break
  return np.frombuffer(bytes(text[:limit]), np.uint8)


def batches(text: np.ndarray, batch: int, length: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Endless random windows: (tokens_BS, targets_BS), int32, targets one byte later; the same for the same seed."""
  rng = np.random.default_rng(seed)
  while True:
    start_B = rng.integers(0, len(text) - length, size=batch)
    window = text[start_B[:, None] + np.arange(length + 1)[None, :]].astype(np.int32)
    yield window[:, :-1], window[:, 1:]
