"""What asynchronous collectives overlap: work between start and end, by hand and as compilers schedule it."""

import jax.numpy as jnp
import pytest
from compiled_modules import SIZES, TARGETS, WITH_CUDA, WITH_TPU, two_layers

from jaxmoe.report.rewrites import overlap
from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.overlap import is_scheduled
from jaxmoe.xla.totals import NOTHING, totals

FLOPS = 2 * 64**3  # of `dot`, which reads two arrays and writes one
BYTES = 3 * 64 * 64 * 4

HEAD = """HloModule m, is_scheduled=true, num_partitions=8
add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}
reduced {
  r = f32[64,64] parameter(0)
  ROOT s = f32[64,64] all-reduce(r), GROUPS, to_apply=add
}
body {
  p = (s32[], f32[64,64]) parameter(0)
  i = s32[] get-tuple-element(p), index=0
  one = s32[] constant(1)
  next = s32[] add(i, one)
  w = f32[64,64] get-tuple-element(p), index=1
  v = f32[64,64] DOT(w, w)
  ROOT t = (s32[], f32[64,64]) tuple(next, v)
}
condition {
  q = (s32[], f32[64,64]) parameter(0)
  j = s32[] get-tuple-element(q), index=0
  n = s32[] constant(5)
  ROOT less = pred[] compare(j, n), direction=LT
}
ENTRY main {
  x = f32[64,64] parameter(0)
"""
SPELT = {
  "GROUPS": "channel_id=1, use_global_device_ids=true, replica_groups=[4,2]<=[8]",
  "DOT(w, w)": "dot(w, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
  "DOT(x, x)": "dot(x, x), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
  "START(x)": "all-reduce-start(x), GROUPS, to_apply=add",
}


def module(*lines, scheduled=True):
  text = HEAD + "\n".join(f"  {line}" for line in lines) + "\n}"
  for short in ("START(x)", "DOT(w, w)", "DOT(x, x)", "GROUPS"):
    text = text.replace(short, SPELT[short])
  return Module.from_text(text if scheduled else text.replace("is_scheduled=true, ", ""))


def found(*lines, **how):
  return collectives(module(*lines, **how), {"x": 4, "y": 2})


START = "s = f32[64,64] START(x)"
DONE = "d = f32[64,64] all-reduce-done(s)"
PRODUCT = "y = f32[64,64] DOT(x, x)"
LOOP = ("zero = s32[] constant(0)", "begin = (s32[], f32[64,64]) tuple(zero, x)",
        "run = (s32[], f32[64,64]) while(begin), condition=condition, body=body")  # fmt: skip
ROOT = "ROOT z = f32[64,64] negate(d)"


def test_a_matmul_between_start_and_end():
  (one,) = found(START, PRODUCT, DONE, ROOT)
  assert one.asynchronous and one.axes == ("y",)
  assert (one.overlap.flops, one.overlap.moved_bytes) == (FLOPS, BYTES)


@pytest.mark.parametrize("lines", [(START, DONE, PRODUCT, ROOT), (PRODUCT, START, DONE, ROOT)])
def test_what_stands_elsewhere_hides_nothing(lines):
  (one,) = found(*lines)
  assert one.asynchronous and one.overlap.flops == one.overlap.moved_bytes == 0


def test_a_loop_counts_as_often_as_it_runs():
  (one,) = found(START, *LOOP, DONE, ROOT)
  assert one.overlap.flops == 5 * FLOPS and one.overlap.moved_bytes >= 5 * BYTES


def test_a_call_around_a_collective_stands_for_it():
  wrapped = "s = ((f32[64,64]), f32[64,64]) async-start(x), calls=reduced"
  (one,) = found(wrapped, PRODUCT, "d = f32[64,64] async-done(s)", ROOT)
  assert one.asynchronous and one.overlap.flops == FLOPS


def test_work_behind_two_collectives_adds_up_to_itself():
  """The first overlaps two products, the second one of them: in sum two, not three."""
  late, more = "late = f32[64,64] START(x)", "more = f32[64,64] DOT(x, x)"
  ended = "ended = f32[64,64] all-reduce-done(late)"
  listed = found(START, PRODUCT, late, more, DONE, ended, "ROOT z = f32[64,64] add(d, ended)")
  assert [one.overlap.flops for one in listed] == [2 * FLOPS, FLOPS]
  assert [one.overlap.own_flops for one in listed] == [2 * FLOPS, 0]
  (traffic,) = totals(listed).values()
  assert traffic.hidden_flops == 2 * FLOPS and traffic.asynchronous == 2


def test_a_start_that_waits_at_once_is_synchronous():
  waits = START + ', backend_config={"collective_backend_config":{"is_sync":true}}'
  (one,) = found(waits, PRODUCT, DONE, ROOT)
  assert not one.asynchronous and one.overlap is None


def test_without_a_schedule_nobody_says_what_lies_between():
  listed = found(START, PRODUCT, DONE, ROOT, scheduled=False)
  assert listed[0].asynchronous and listed[0].overlap is None
  (traffic,) = totals(listed).values()
  assert overlap(traffic) == "asynchronous, over what is not said"


def test_words():
  (once,) = totals(found(START, PRODUCT, DONE, ROOT)).values()
  (idle,) = totals(found(START, DONE, ROOT)).values()
  (plain,) = totals(found("d = f32[64,64] all-reduce(x), GROUPS, to_apply=add", ROOT)).values()
  assert overlap(once) == "behind 524 KFLOP"
  assert overlap(once + plain) == "behind 524 KFLOP, 1 of 2 asynchronous"
  assert overlap(idle) == "behind 0 B of memory traffic"
  assert (overlap(plain), overlap(NOTHING)) == ("synchronous", "-")


MATMUL = 2 * 128 * 512 * 2048  # each of the five of `two_layers`, on one device of eight


@WITH_TPU
def test_a_tpu_runs_matmuls_beside_gathers():
  """One gather is named in three fusions, and counts once: begun, beside a matmul, and awaited."""
  made = two_layers("tpu")
  planned, actual = (totals(collectives(made[stage], SIZES)) for stage in ("partitioned", "optimised"))
  gathers = actual["all-gather", ("y",)]
  assert (gathers.operations, gathers.elements) == (3, 2 * 512 * 2048 + 512 * 512)
  assert planned["all-gather", ("y",)].elements == gathers.elements
  assert (gathers.asynchronous, gathers.unplaced, gathers.hidden_flops) == (2, 0, 2 * MATMUL)
  assert actual["all-reduce", ("y",)].asynchronous == 0


def test_a_gather_that_begins_nowhere_is_refused():
  """Only continued: it would be counted nowhere."""
  text = """HloModule m, is_scheduled=true, num_partitions=8
beside {
  p = f32[8] parameter(0)
  ROOT g = f32[16] all-gather(p), channel_id=1, use_global_device_ids=true, replica_groups=[4,2]<=[8],
    dimensions={0}, frontend_attributes={chain_id="0"}
}
ENTRY main {
  x = f32[8] parameter(0)
  ROOT y = f32[16] fusion(x), kind=kLoop, calls=beside
}"""
  with pytest.raises(NotImplementedError, match="cannot find where g begins"):
    collectives(Module.from_text(text), SIZES)


@WITH_CUDA
def test_nvidia_overlaps_an_exchange_with_matmuls():
  """Of whole matmuls, and of no more than there are."""
  actual = totals(collectives(two_layers("cuda")["optimised"], SIZES))
  assert sum(traffic.asynchronous for traffic in actual.values()) > 0
  hidden = {key: traffic.hidden_flops / MATMUL for key, traffic in actual.items()}
  assert max(hidden.values()) >= 1 and max(hidden.values()) <= 5
  assert all(share == int(share) for share in hidden.values())


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_schedules_its_module(target):
  assert is_scheduled(two_layers(target, dtype=jnp.float32)["optimised"])


def test_a_cpu_waits_for_each():
  actual = collectives(two_layers("cpu", dtype=jnp.float32)["optimised"], SIZES)
  assert actual and not any(one.asynchronous for one in actual)
