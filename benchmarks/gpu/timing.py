"""Medians of launches that follow each other without a pause."""

import statistics
import time
from collections.abc import Callable
from typing import Any

BATCH_S = 0.02  # launches timed together, so that the host's own time does not show


def median_us(launch: Callable[[], Any], wait: Callable[[Any], Any], *, repeats: int = 7) -> float:
  """Median microseconds of one launch. The first two, which fill caches, do not count, unless `repeats` is 0: then one
  launch is all."""
  if repeats == 0:
    return 1e6 * _seconds(launch, wait, 1)
  for _ in range(2):
    wait(launch())
  once = _seconds(launch, wait, 1)
  batch = max(1, min(100, round(BATCH_S / max(once, 1e-6))))
  return 1e6 * statistics.median(_seconds(launch, wait, batch) for _ in range(repeats))


def _seconds(launch: Callable[[], Any], wait: Callable[[Any], Any], batch: int) -> float:
  start = time.perf_counter()
  for _ in range(batch):
    result = launch()
  wait(result)
  return (time.perf_counter() - start) / batch
