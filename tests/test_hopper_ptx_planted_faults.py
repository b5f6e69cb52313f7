"""The execution of PTX has teeth: each fault planted in a kernel's text, or in a tensor map, makes it object.

A fault is found by what instructions mean, so it needs no compiler's names of registers.
"""

import dataclasses
import re

import pytest
from compiled_modules import WITH_CUDA
from ptx import kernels
from ptx.compiled import Compiled
from ptx.objection import Objection
from test_hopper_ptx import PATTERNS, TIMINGS, check, executable

WRONG = "error .* above"
DEADLOCK = "deadlock"
UNSEEN = "without a fence and a barrier"
ARRIVAL = r"mbarrier\.arrive\.release\S* _, \[%r\d+\], 1;"
MULTIPLICATION = r"(wgmma\.mma_async.*?, p, 1, 1, )(\d), (\d);"


def substitute(kernel: Compiled, pattern: str, replacement, count=0) -> Compiled:
  """`count` places, or all of them."""
  return dataclasses.replace(kernel, ptx=re.sub(pattern, replacement, kernel.ptx, count=count, flags=re.DOTALL))


def set_again(kernel: Compiled, used: str, change) -> Compiled:
  """Change the constants of registers, where they are set; the last group of `used` is a register."""
  registers = {found.groups()[-1] for found in re.finditer(used, kernel.ptx)}
  return substitute(
    kernel,
    r"mov\.b32 \t(%r\d+), (\d+);",
    lambda found: f"mov.b32 {found[1]}, {change(int(found[2])) if found[1] in registers else found[2]};",
  )


def change_maps(kernel: Compiled, choose, **fields) -> Compiled:
  """Fields of the tensor maps that are chosen by their box."""
  maps = {
    at: dataclasses.replace(each, **fields) if choose(each.box) else each for at, each in kernel.launch.maps.items()
  }
  return dataclasses.replace(kernel, launch=dataclasses.replace(kernel.launch, maps=maps))


def right_operand_is_read_the_other_way(kernel):
  return substitute(kernel, MULTIPLICATION, lambda found: f"{found[1]}{found[2]}, {1 - int(found[3])};")


def left_operand_is_read_the_other_way(kernel):
  return substitute(kernel, MULTIPLICATION, lambda found: f"{found[1]}{1 - int(found[2])}, {found[3]};")


def operands_are_a_line_further(kernel):
  """The stride byte offset of descriptors."""
  return substitute(
    kernel, r"(or\.b64\s+%rd\d+, %rd\d+, )(-?\d{15,});", lambda found: f"{found[1]}{int(found[2]) + (8 << 32)};"
  )


def written_memory_is_not_fenced(kernel):
  return substitute(kernel, r"fence\.proxy\.async\S*;", "")


def threads_do_not_meet_after_a_fence(kernel):
  return substitute(kernel, r"(fence\.proxy\.async\S*;[^;]*?)bar\.sync %r\d+, 128;", r"\1")


def multiplications_are_awaited_too_late(kernel):
  return substitute(kernel, r"wgmma\.wait_group\.sync\.aligned 1;", "wgmma.wait_group.sync.aligned 2;")


def last_multiplications_are_not_awaited(kernel):
  return substitute(kernel, r"wgmma\.wait_group\.sync\.aligned 0;", "")


def sums_are_not_fenced(kernel):
  return substitute(kernel, r"wgmma\.fence\S*;", "")


def half_of_the_bytes_are_announced(kernel):
  return set_again(kernel, r"arrive\.expect_tx\S* _, \[%r\d+\], (%r\d+);", lambda count: count // 2)


def barriers_expect_a_warpgroup_more(kernel):
  return set_again(kernel, r"mbarrier\.init\S* \[%r\d+\], (%r\d+);", lambda count: count + 128)


def no_signal_is_given(kernel):
  return substitute(kernel, ARRIVAL, "")


def every_thread_copies(kernel):
  return substitute(kernel, r"@%p\d+ (cp\.async\.bulk\.tensor)", r"\1")


def a_store_is_left_out(kernel):
  return substitute(kernel, r"@%p\d+ cp\.async\.bulk\.tensor\.\dd\.global[^;]*;", "", count=1)


def a_store_is_done_twice(kernel):
  return substitute(kernel, r"(@%p\d+ cp\.async\.bulk\.tensor\.\dd\.global[^;]*;)", r"\1 \1", count=1)


def slots_are_filled_before_they_are_copied(kernel):
  return substitute(kernel, r"cp\.async\.bulk\.wait_group\.read \t1;", "cp.async.bulk.wait_group.read 2;")


def last_stores_are_not_awaited(kernel):
  return substitute(kernel, r"cp\.async\.bulk\.wait_group \t0;", "")


def rows_are_permuted_otherwise(kernel):
  return change_maps(kernel, lambda box: len(box) == 4, swizzle=128)


def results_are_not_permuted(kernel):
  return change_maps(kernel, lambda box: len(box) == 3, swizzle=16)


FAULTS = [
  (right_operand_is_read_the_other_way, "whole matmul", "out of shared memory"),
  (right_operand_is_read_the_other_way, "whole transposed", WRONG),
  (left_operand_is_read_the_other_way, "few stages of weights", WRONG),
  (operands_are_a_line_further, "whole matmul", WRONG),
  (written_memory_is_not_fenced, "whole matmul", UNSEEN),
  (written_memory_is_not_fenced, "few stages of weights", UNSEEN),
  (written_memory_is_not_fenced, "whole scaled", UNSEEN),
  (threads_do_not_meet_after_a_fence, "whole matmul", UNSEEN),
  (multiplications_are_awaited_too_late, "whole matmul", WRONG),
  (multiplications_are_awaited_too_late, "few stages of weights", WRONG),
  (last_multiplications_are_not_awaited, "whole matmul", "while it is multiplied"),
  (sums_are_not_fenced, "whole matmul", "without a wgmma.fence"),
  (half_of_the_bytes_are_announced, "whole matmul", DEADLOCK),
  (barriers_expect_a_warpgroup_more, "whole matmul", DEADLOCK),
  (no_signal_is_given, "whole matmul", DEADLOCK),
  (every_thread_copies, "whole matmul", "128 threads do what one must do"),
  (a_store_is_left_out, "whole matmul", r"written \[0, 1\] times"),
  (a_store_is_done_twice, "whole matmul", r"written \[1, 2\] times"),
  (slots_are_filled_before_they_are_copied, "whole matmul", f"{WRONG}|{UNSEEN}"),
  (last_stores_are_not_awaited, "whole matmul", "under way at the end"),
  (rows_are_permuted_otherwise, "float32", WRONG),
  (results_are_not_permuted, "whole matmul", WRONG),
]


@WITH_CUDA
@pytest.mark.parametrize("fault,name,objection", FAULTS)
def test_fault_is_caught(fault, name, objection):
  kernel = kernels.QUICK[name]
  whole = executable(kernel)
  planted = fault(whole)
  assert planted != whole, "not planted"
  with pytest.raises((Objection, AssertionError), match=objection):
    for sizes in PATTERNS.values():
      check(kernel, planted, sizes, TIMINGS)


COPY = r"@%p\d+ cp\.async\.bulk\.tensor\.\dd"
NEEDED = {
  "signals": ARRIVAL,
  "announcements": r"mbarrier\.arrive\.expect_tx[^;]*;",
  "loads": rf"{COPY}\.shared[^;]*;",
  "stores": rf"{COPY}\.global[^;]*;",
  "groups of stores": r"cp\.async\.bulk\.commit_group;",
  "fences": r"fence\.proxy\.async\S*;",
  "multiplications": r"\{ \.reg \.pred p;[^;]*; wgmma\.mma_async[^;]*; \}",
}


@WITH_CUDA
@pytest.mark.parametrize("kind", NEEDED)
def test_none_can_be_left_out(kind):
  """Of the instructions of a kind, any one."""
  kernel = kernels.QUICK["whole matmul"]
  whole = executable(kernel)
  places = list(re.finditer(NEEDED[kind], whole.ptx))
  assert len(places) > 1
  for place in places:
    planted = dataclasses.replace(whole, ptx=whole.ptx[: place.start()] + whole.ptx[place.end() :])
    with pytest.raises((Objection, AssertionError)):
      for sizes in PATTERNS.values():
        check(kernel, planted, sizes, TIMINGS)
