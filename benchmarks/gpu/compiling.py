"""Several launches built at once, and all of them before anything is timed."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


def built(builds: Sequence[Callable[[], Any]], threads: int) -> list[Callable[[], Any]]:
  """For each what gives its launch, or raises; without threads they are built when they are asked for.

  Lowering and compiling for Hopper are safe in threads: 24 kernels gave the same PTX in 8 threads as one after the
  other; but the first one by itself, because it sets compilers up. Tracing holds Python's lock, though, which launches
  want, so all have been tried when this returns.
  """
  if not threads:
    return list(builds)
  with ThreadPoolExecutor(threads) as pool:
    futures: list[Future] = [pool.submit(each) for each in builds[:1]]
    wait(futures)
    futures += [pool.submit(each) for each in builds[1:]]
  return [future.result for future in futures]
