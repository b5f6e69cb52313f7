"""The PTX of every Hopper kernel, executed byte by byte, against the float64 loop over groups; needs `cuda-compile`.

Adds to the interpreter what its shared memory and its clock leave out: layouts, tensor maps, the order of asynchronous
work, deadlocks.
"""

import hopper
import kernel_oracle as oracle
import pytest
from compiled_modules import WITH_CUDA
from ptx import kernels
from ptx.compiled import Compiled, compiled
from ptx.executed import executing
from ptx.objection import Objection

# Of 203 rows.
PATTERNS = {
  "empty, odd sizes, sum below N": [37, 0, 91, 50],
  "nothing": [0, 0, 0, 0],
  "all in one": [0, 203, 0, 0],
  "boundaries beside multiples of 8 and 64": [63, 65, 1, 9],
}
TIMINGS = [("late", 0), ("early", 1), ("random", 2), ("random", 3)]
MORE_TIMINGS = [*TIMINGS, *(("random", seed) for seed in (4, 5))]
FEW_ROWS = {"more groups than rows": [0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0], "one": [0] * 11 + [9]}


def check(kernel: kernels.Kernel, one: Compiled, sizes, timings):
  """Right to the dtype's tolerance, and of the same bits whatever the timing."""
  arguments = kernel.arguments(sizes)
  wanted, seen = hopper.wanted(kernel.leg, arguments), set()
  for timing, seed in timings:
    with executing(one, timing, seed):
      got = kernel.run(arguments)
    for mine, want in zip(got, wanted, strict=True):
      oracle.assert_close(mine, want, kernel.dtype)
    seen.add(tuple(mine.tobytes() for mine in got))
  assert len(seen) == 1, "the bits depend on the timing"


def executable(kernel: kernels.Kernel) -> Compiled:
  return compiled(*kernels.QUICK.values(), *kernels.HANGING.values())[kernel]


@WITH_CUDA
@pytest.mark.parametrize("name", kernels.QUICK)
def test_kernels(name):
  kernel = kernels.QUICK[name]
  assert kernel.serves()
  for sizes in PATTERNS.values():
    check(kernel, executable(kernel), sizes, TIMINGS)


@WITH_CUDA
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("name", kernels.HANGING)
def test_deadlocks_are_seen(name, timing):
  kernel = kernels.HANGING[name]
  assert not kernel.serves()
  with pytest.raises(Objection, match="deadlock"):
    check(kernel, executable(kernel), PATTERNS["all in one"], [timing])


@WITH_CUDA
@pytest.mark.slow
@pytest.mark.parametrize("leg", kernels.LEGS)
def test_every_kind_of_kernel(leg):
  for kernel, one in compiled(*kernels.every_kind(leg)).items():
    for sizes in (PATTERNS if kernel.groups == 4 else FEW_ROWS).values():
      check(kernel, one, sizes, MORE_TIMINGS)
