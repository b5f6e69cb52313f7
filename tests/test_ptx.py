"""The executor of PTX by itself: what it does not know raises, and what it knows is as the instruction set says."""

import dataclasses

import numpy as np
import pytest
from ptx import (
  bulk_copies,
  compiled,
  executed,
  floats,
  host,
  integers,
  lanes,
  machine,
  program,
  shared_memory,
  tensor_cores,
)
from ptx.objection import Objection, Unmodelled

EMPTY = host.Launch(blocks=2, threads=128, shared_bytes=2048, parameters=(0,), maps={}, shapes={})


def run(*statements: str, threads=128):
  """A kernel of these statements, by each of two blocks."""
  text = "\n".join([".visible .entry kernel()\n{", ".reg .b32 %r<9>;", *statements, "ret;", "}"])
  machine.run(
    dataclasses.replace(EMPTY, threads=threads), program.parse(text), [np.arange(4, dtype=np.uint32)], [], "late", 0
  )


@pytest.mark.parametrize("statement", [
  "sub.sat.s32 %r1, 1, 2;", "add.cc.s32 %r1, 1, 2;", "setp.eq.xor.b32 %p1, 1, 2, %p2;", "nanosleep.u32 1;",
  "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r1}, 1, 2;", "fence.proxy.tensormap::generic.acquire.gpu;",
  "mbarrier.arrive.noComplete.shared::cta.b64 _, [%r1], 1;", "bar.sync 1, 256;", "bar.arrive 1, 128;",
  "shfl.sync.idx.b32 %r1, 5, 3, 31, -1;", "cp.async.bulk.prefetch.tensor.2d.L2.global [%r1, {%r1, %r1}];",
  "st.global.b32 [%r1], %r1;", "div.s32 %r1, 5, 0;", ".maxnreg 3;", "{ .reg .b32 a; { .reg .b32 b; } }",
])  # fmt: skip
def test_what_is_not_known_raises(statement):
  with pytest.raises(Unmodelled):
    run(statement)


@pytest.mark.parametrize("statements,objection", [
  (["mov.b32 %r1, %r2;"], "never written"),
  (["mov.b32 %r1, 1024;", "mbarrier.arrive.release.cta.shared::cta.b64 _, [%r1], 1;"], "no mbarrier"),
  (["mov.b32 %r1, %tid.x;", "st.shared.v2.b32 [%r1+1024], {%r1, %r1};"], "no multiple"),
  (["mov.b32 %r1, 1024;", "st.shared.v2.b32 [%r1], {%r1, %r1};"], "two threads to one place"),
  (["mov.b32 %r1, 4096;", "ld.shared.v2.b32 {%r2, %r3}, [%r1];"], "out of shared memory"),
  (["ld.param::entry.b64 %rd1, [kernel_param_0];", "ld.global.b32 %r1, [%rd1+16];"], "load of argument"),
])  # fmt: skip
def test_what_is_forbidden_raises(statements, objection):
  with pytest.raises(Objection, match=objection):
    run(*statements)


@pytest.mark.parametrize("statements,objection", [
  (["mbarrier.arrive.release.cta.shared::cta.b64 _, [%r2], 1;"], "begun at the end"),
  (["shl.b32 %r4, %r1, 3;", "add.s32 %r4, %r4, %r2;", "st.shared.v2.b32 [%r4], {%r1, %r1};"], "over an mbarrier"),
])  # fmt: skip
def test_barriers_are_guarded(statements, objection):
  first = ["mov.u32 %r1, %tid.x;", "setp.eq.b32 %p1, %r1, 0;", "mov.b32 %r2, 1024;", "mov.b32 %r3, 256;"]
  with pytest.raises(Objection, match=objection):
    run(*first, "@%p1 mbarrier.init.shared::cta.b64 [%r2], %r3;", *statements)


@pytest.mark.parametrize("statement,objection", [
  ("bar.sync 1, 128;", "several warpgroups use barrier 1"),
  ("setmaxnreg.inc.sync.aligned.u32 264;", "more registers"),
])  # fmt: skip
def test_warpgroups_share_what_there_is(statement, objection):
  with pytest.raises(Objection, match=objection):
    run(statement, threads=256)


def test_operands_have_the_shapes_that_were_compiled():
  kernel = compiled.Compiled(dataclasses.replace(EMPTY, shapes={0: (5,)}), "")
  with pytest.raises(Unmodelled, match=r"argument 0 of \(4,\), compiled for \(5,\)"):
    executed.call(kernel, "late", 0, [], np.zeros(4))


def test_threads_that_part_ways_raise():
  with pytest.raises(Unmodelled, match="part ways"):
    run("mov.u32 %r1, %tid.x;", "setp.lt.u32 %p1, %r1, 5;", "@%p1 bra $L__1;", "$L__1:")


def test_a_loop_without_an_end_is_seen(monkeypatch):
  monkeypatch.setattr(machine, "MOST_STEPS", 100)
  with pytest.raises(Objection, match="no end"):
    run("$L__1:", "bra $L__1;")


@pytest.mark.parametrize("line", [
  "%1 = llvm.sdiv %0, %0 : i64", "%1 = memref.reinterpret_cast %0 to offset: [8], sizes: [2]", "call @other(%0) : ()",
])  # fmt: skip
def test_unknown_host_operations_raise(line):
  code = f"func.func @k_mosaic_gpu(%arg0: !llvm.ptr loc(unknown), %arg1: !llvm.ptr) {{\n{line}\nreturn\n"
  with pytest.raises(Unmodelled, match="host operation"):
    host.launch(code)


def test_names_of_a_block_are_its_own():
  """As inline assembly has them: the same label and register twice."""
  block = "{ .reg .pred P1; setp.eq.b32 P1, 1, 1; @P1 bra.uni DONE; nanosleep.u32 1; DONE: }"
  run(block, block)


def test_integers():
  """Signs, widths and shifts beyond the width."""
  for opcode, sources, want in [
    ("sub.s32", (1, 3), 2**32 - 2),
    ("mul.wide.s32", (-5, 7), 2**64 - 35),
    ("mul.hi.s32", (-1, 1), 2**32 - 1),
    ("mul.lo.s16", (300, 300), 300 * 300 % 2**16),
    ("div.s32", (-7, 2), 2**32 - 3),
    ("rem.s32", (-7, 2), 2**32 - 1),
    ("shr.s32", (-8, 1), 2**32 - 4),
    ("shr.u32", (-8, 40), 0),
    ("shl.b32", (1, 32), 0),
    ("min.s32", (-1, 1), 2**32 - 1),
    ("cvt.s64.s32", (2**32 - 1,), 2**64 - 1),
  ]:
    assert lanes.uniform(lanes.computation(opcode)(*map(lanes.everywhere, sources))) == want, opcode
  assert integers.comparison("lt", None, "s32", lanes.everywhere(2**32 - 1), lanes.everywhere(0)).all()
  assert not integers.comparison("lt", None, "u32", lanes.everywhere(2**32 - 1), lanes.everywhere(0)).any()


def test_floats():
  """The first source is the high half; FP8 pairs keep their order."""
  one, two = (lanes.everywhere(int(np.float32(value).view(np.uint32))) for value in (1, 2))
  assert lanes.uniform(floats.rounded("bf16", one, two)) == 0x3F80_4000
  for kind, source in [("e4m3", 0x38_40), ("e5m2", 0x3C_40)]:
    assert lanes.uniform(floats.widened_pair(kind, lanes.everywhere(source))) == 0x3C00_4000


@pytest.mark.parametrize("width", [32, 64, 128])
def test_swizzles_permute_by_absolute_address(width):
  """Units of 16 bytes, by the number of their 128 bytes: as the CUDA programming guide draws them."""
  addresses = np.arange(0x400, 0x1400)
  places = shared_memory.swizzled(addresses, width)
  assert sorted(places) == addresses.tolist()
  assert places[0x380] == 0x400 + 0x380 + 16 * min(7, width // 16 - 1)


@pytest.mark.parametrize("swizzle,code", [(128, 1), (64, 2), (32, 3)])
@pytest.mark.parametrize("transposed", [False, True])
def test_descriptors_find_each_number_once(swizzle, code, transposed):
  """Blocks of 8 lines side by side: 64 rows of as many columns as a line has, or the other way round."""
  line = swizzle // 2
  stride, leading = 8 * swizzle, 16 * swizzle
  descriptor = 0x400 >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | code << 62
  places = tensor_cores.places(descriptor, 64, transposed)
  assert len(np.unique(places)) == 64 * 16 and (places % 2 == 0).all()
  row, depth = 9, 10
  unpermuted = (
    row // line * leading + row % line * 2 + depth // 8 * stride + depth % 8 * swizzle
    if transposed
    else row // 8 * stride + row % 8 * swizzle + depth * 2
  )
  assert places[row, depth] == shared_memory.swizzled(np.array(0x400 + unpermuted), swizzle)


def test_barriers_count_threads_and_bytes():
  barrier = shared_memory.Mbarrier(128)
  phase = barrier.wait(0, 0)
  barrier.arrive(128, announced=64)
  assert not barrier.passed(phase)
  barrier.complete(64)
  assert barrier.passed(phase)
  with pytest.raises(Objection, match="misses 128"):
    barrier.arrive(129)
  with pytest.raises(Objection, match="parity"):
    barrier.wait(0, 0)
  for _ in range(2):
    barrier.arrive(128)
  with pytest.raises(Objection, match="before a wait"):
    barrier.passed(barrier.wait(1, 0))


ROWS_OF_TEN = host.TensorMap(argument=0, element_bytes=2, sizes=(64, 10), strides=(1, 64), swizzle=128, box=(64, 8))
START = shared_memory.BASE + 128  # no multiple of the 1,024 bytes after which the permutation repeats


def unpermuted(shared) -> np.ndarray:
  """The box at `START`, row by row."""
  places = shared_memory.swizzled(START + np.arange(1024), 128)
  return shared.bytes[places].view(np.uint16).reshape(8, 64)


def test_a_copy_in_is_poison_until_it_is_done_and_zero_outside():
  shared, barrier = shared_memory.SharedMemory(2048), shared_memory.Mbarrier(1)
  shared.bytes[:] = 1
  source = np.arange(1, 641, dtype=np.uint16)
  barrier.arrive(1, announced=1024)
  load = bulk_copies.Load(shared, source.view(np.uint8), ROWS_OF_TEN, (0, 6), START, barrier)
  assert (unpermuted(shared) == 0xFFFF).all() and not barrier.phase
  load.finish()
  assert (unpermuted(shared)[:4] == source.reshape(10, 64)[6:]).all() and not unpermuted(shared)[4:].any()
  assert barrier.phase == 1


def test_a_copy_out_reads_when_it_is_done():
  shared, written = shared_memory.SharedMemory(2048), np.zeros(640, int)
  target = np.zeros(640, np.uint16)
  store = bulk_copies.Store(shared, target.view(np.uint8), written, ROWS_OF_TEN, (0, 2), START)
  shared.bytes[:] = 1
  store.finish()
  assert (target == np.repeat([0, 0x0101], [128, 512])).all() and (written == (target > 0)).all()
  with pytest.raises(Objection, match="beyond"):
    bulk_copies.Store(shared, target.view(np.uint8), written, ROWS_OF_TEN, (0, 3), START)


@pytest.mark.parametrize("fence,meet", [(False, True), (True, False)])
def test_copies_do_not_see_what_is_written_beside_them(fence, meet):
  """Neither at their start nor at their end."""
  shared = shared_memory.SharedMemory(2048)
  words = np.full(8, START, np.uint64) + np.arange(8, dtype=np.uint64) * np.uint64(4)
  store = bulk_copies.Store(shared, np.zeros(1280, np.uint8), np.zeros(640, int), ROWS_OF_TEN, (0, 0), START)
  load = bulk_copies.Load(shared, np.zeros(1280, np.uint8), ROWS_OF_TEN, (0, 0), START, shared_memory.Mbarrier(1))
  shared.write(0, words, [words])
  for act in [shared.fence] * fence + [shared.meet] * meet:
    act(0)
  for copy in (store, load):
    with pytest.raises(Objection, match="without a fence and a barrier"):
      copy.finish()


@pytest.mark.parametrize("change,objection", [
  ({"box": (64, 257)}, "box"), ({"swizzle": 64}, "box"), ({"box": (4, 8)}, "box"), ({"strides": (1, 60)}, "strides"),
  ({"strides": (2, 64)}, "strides"), ({}, "coordinates"),
])  # fmt: skip
def test_tensor_maps_keep_the_rules_of_the_driver(change, objection):
  corner = (0, 0) if change else (0, 0, 0)
  with pytest.raises(Objection, match=objection):
    bulk_copies.elements(dataclasses.replace(ROWS_OF_TEN, **change), corner)
  with pytest.raises(Objection, match="128"):
    bulk_copies.places(ROWS_OF_TEN, START + 64)


def test_operands_start_in_the_first_line_of_a_block():
  with pytest.raises(Objection, match="below the first line"):
    tensor_cores.places(START >> 4 | 1 << 62, 64, False)


def test_sums_are_neither_read_nor_shared_while_they_are_multiplied():
  descriptor = shared_memory.BASE >> 4 | 1 << 62
  sums = [f"mov.b32 %r{i}, 0;" for i in range(8)]
  multiply = (
    "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s}, " + f"{descriptor}, {descriptor}, 1, 1, 1, 0, 0;"
  )
  names = [f"%r{i}" for i in range(8)]
  first, other = (multiply % ", ".join(order) for order in (names, names[::-1]))
  fence = "wgmma.fence.sync.aligned;"
  for statements, objection in [
    ([first], "without a wgmma.fence"),
    ([fence, first, "mov.b32 %r8, %r0;"], "read while"),
    ([fence, first, "mov.b32 %r0, 0;"], "written while"),
    ([fence, first, other], "share"),
    ([fence, first], "at the end"),
  ]:
    with pytest.raises(Objection, match=objection):
      run(*sums, *statements)
