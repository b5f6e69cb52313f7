"""Temporary memory explained: against hand arithmetic, and against the compiler's own sums."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
import tiny
from compiled_modules import TARGETS, WITH_TPU, devices

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.least_memory import least_temporary_bytes
from jaxmoe.meshes.build import build_mesh
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report import temporaries as report
from jaxmoe.report.verification import document
from jaxmoe.xla import attribution
from jaxmoe.xla.assignment import parse
from jaxmoe.xla.attribution import KEPT, Facts, Sizes, class_of
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step
from jaxmoe.xla.compiled_step import CompiledStep
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.memory import compiled_memory
from jaxmoe.xla.partitioned import compile_with_dumps
from jaxmoe.xla.program import build_program
from jaxmoe.xla.target import Target
from jaxmoe.xla.temporaries import REST
from jaxmoe.xla.temporary_sizes import explained

# No two lengths of one device are equal, so that a shape says what an array is.
SIZES = {"d_model": 48, "num_heads": 6, "num_kv_heads": 6, "head_dim": 20, "d_expert": 56, "vocab_size": 352}
JOB = {"batch": 16, "sequence_length": 36, "remat": "full"}
STRATEGY = Strategy(expert=2)


def deployment(**job) -> Deployment:
  return tiny.deployment(STRATEGY, sizes=SIZES, **{**JOB, **job})


ASSIGNMENT = """\
allocation 0: size 400, page 0, parameter 0, shape |f32[100]| at ShapeIndex {}, maybe-live-out:
 value: <0 argument @0> (size=400,offset=0): f32[100]{0}
allocation 1: size 1000, page 0, preallocated-temp:
 value: <1 early @0> (size=600,offset=0): f32[150]{0}
 value: <2 carried{1} @0> (size=300,offset=640): f32[75]{0}
 value: <3 loop{1} (phi) @0> (size=300,offset=640): f32[75]{0}
 value: <4 late @0> (size=500,offset=0): f32[125]{0}
 value: <6 part @0> (size=100,offset=700): f32[25]{0}
allocation 2: size 64, color 1, page 0, preallocated-temp:
 value: <5 near @1> (size=64,offset=0): f32[16]{0:S(1)}
"""
LIVE_RANGES = """\
  BufferLiveRange:
    argument{}:0-9
    early{}:1-3
    carried{1}:3-5
    loop{1}:5-8
    late{}:6-7
    part{}:2-4
    near{}:1-9
"""


def test_an_assignment_by_hand():
  """At step 3 `early` and the carried array stand together, 900 of 1,000 bytes; a part of the latter adds none."""
  found = parse(ASSIGNMENT, LIVE_RANGES)
  assert (found.heap_bytes, found.on_chip_bytes) == (1000, 64)
  named = [sorted(value.instruction for value in buffer.values) for buffer in found.buffers]
  assert sorted(named) == [["carried", "loop"], ["early"], ["late"], ["part"]]
  assert [(buffer.offset, size) for buffer, size in found.at_peak()] == [(0, 600), (640, 300), (700, 0)]


def _compiled_on(target: str, d: Deployment):
  mesh = build_mesh(d.strategy, devices(target))
  program = build_program(d, mesh)
  compiled, _, assignment = compile_with_dumps(program.lower())
  memory = compiled_memory(compiled, assignment if target == "tpu" else None)
  return compiled, memory, assignment, explained(d, program, Module.from_compiled(compiled), memory, assignment)


MADE = {  # what a step of each kind cannot do without
  "train": {attribution.GRADIENTS, attribution.KEPT, attribution.LOGITS},
  "prefill": {attribution.SCORES, attribution.WORKING},
  "decode": {attribution.WORKING},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", MADE)
def test_every_large_buffer_has_a_class(target, kind):
  """And all classes together are the compiler's own sum, to the byte."""
  d = deployment(kind=kind, expert_kernel="einsum")
  compiled, memory, assignment, found = _compiled_on(target, d)
  assert found is not None and assignment is not None
  assert [one for one in found.large if one.kind not in attribution.CLASSES] == found.unknown == []
  assert all(one.shape and one.instruction for one in found.large)
  assert sum(found.class_bytes.values()) == pytest.approx(memory.temp_bytes, abs=64)
  if target == "tpu":  # which holds all of so small a step in the memory on its chip
    assert found.on_chip_bytes > 0
  else:
    assert MADE[kind] <= {one.kind for one in found.large} | found.class_bytes.keys() and found.on_chip_bytes == 0
  assert REST not in found.class_bytes
  if target == "cuda":
    _check_peak(compiled, assignment)


@WITH_TPU
def test_a_step_for_tpu_counts_what_is_assigned():
  """Its classes add up to that; the compiler's statistic is more."""
  d = tiny.deployment(Strategy(expert=4), sizes=SIZES, **JOB, expert_kernel="einsum")
  step = compile_step(d, Target.parse("tpu:v5e").on(d))
  assert step.temporaries is not None and REST not in step.temporaries.class_bytes
  assert sum(step.temporaries.class_bytes.values()) == step.memory.temp_bytes


def _check_peak(compiled, assignment):
  """The compiler's statistic of its heap, which newer ones give, was made by another simulation than ours."""
  stats = compiled.memory_analysis()
  if hasattr(stats, "indefinite_allocations"):
    theirs = stats.peak_memory_in_bytes - stats.indefinite_allocations
    assert sum(size for _, size in assignment.at_peak()) == pytest.approx(theirs, abs=4096)


def test_a_program_with_known_buffers():
  """x x^T is 256 x 256 floats, its sine as large, in the same place or another; nothing else is over 1 %."""
  x = jax.ShapeDtypeStruct((256, 8), jnp.float32)
  lowered = jax.jit(lambda x: jnp.sin(x @ x.T) @ x).lower(x)
  compiled, _, assignment = compile_with_dumps(lowered)
  assert assignment is not None
  square = 256 * 256 * 4
  assert {buffer.bytes for buffer in assignment.buffers if buffer.bytes > 4096} == {square}
  assert assignment.heap_bytes == compiled_memory(compiled).temp_bytes in range(square, 2 * square + 4096)


@pytest.fixture(scope="module")
def steps() -> dict[str, tuple[Deployment, CompiledStep]]:
  """By rematerialisation."""
  return {remat: (d := deployment(remat=remat), compile_step(d)) for remat in ("full", "none")}


def test_layer_inputs_are_kept_as_they_must_be(steps):
  """4 layers, 2 microbatches of 4 sequences a device, 36 tokens, 48 numbers of 4 bytes: one array, or several."""
  _, step = steps["full"]
  inputs = 4 * 2 * 4 * 36 * 48 * 4
  kept = [one for one in step.temporaries.large if one.kind == KEPT]
  assert max(one.bytes for one in kept) == inputs or sum(one.bytes for one in kept) >= inputs
  assert all(one.source for one in kept)


def test_an_activation_kept_against_the_plan_is_named(steps):
  """A program that recomputes nothing under a plan that does: 4 layers keep queries, keys and values, at least."""
  planned, as_planned = steps["full"]
  _, faulty = steps["none"]
  wrong = dataclasses.replace(faulty, traced=as_planned.traced)
  shown = report.document(compare(planned, "cpu", wrong)) or {}
  projected = 4 * 3 * (4 * 36) * 6 * 20 * 4  # of one microbatch
  assert shown["compiled"][KEPT] >= as_planned.temporaries.class_bytes[KEPT] + projected
  headed = [[one.shape for one in step.temporaries.large if one.kind == KEPT and "6,20]" in one.shape]
            for step in (as_planned, faulty)]  # fmt: skip
  assert not headed[0] and headed[1]


def test_a_compiler_that_reports_less_than_must_exist_is_caught(steps):
  d, step = steps["full"]
  least = least_temporary_bytes(d)
  checks = {check.name: check for check in compare(d, "cpu", step).checks}
  name = "temporaries and new results, at least"
  assert checks[name].ok and checks[name].compiled > checks[name].predicted == least
  new_results = step.memory.output_bytes - step.memory.alias_bytes
  short = dataclasses.replace(step, memory=dataclasses.replace(step.memory, temp_bytes=least - new_results - 1))
  (failed,) = [check for check in compare(d, "cpu", short).checks if not check.ok]
  assert failed.name == name


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_least_temporaries_of_training_by_hand(microbatches):
  """Sums of gradients from two microbatches on; inputs of 4 layers, of all microbatches, of 8 sequences a device."""
  d = deployment(microbatches=microbatches)
  inputs = 4 * 8 * 36 * 48 * 4
  layer = 48 * 6 * 20 * 4 + 8 // 2 * 3 * 48 * 56 + 48 * 8 + 2 * 48
  assert least_temporary_bytes(d) == (max(inputs, 4 * layer * 4) if microbatches > 1 else inputs)


def test_least_temporaries_of_prefill_by_hand():
  """Cache of three of four layers, the residual stream, and 8 experts' rows: all tokens may choose the same."""
  d = deployment(kind="prefill", microbatches=1)
  tokens = 8 * 36
  cache = 3 * 2 * tokens * 6 * 20 * 4
  assert least_temporary_bytes(d) == cache + tokens * 48 * 4 + 8 * d.expert_capacity * 48 * 4


def test_temporaries_are_in_the_document_and_add_up(steps):
  d, step = steps["full"]
  shown = document(compare(d, "cpu", step))["temporaries"]
  assert sum(shown["compiled"].values()) == step.memory.temp_bytes
  whole = shown["comparison"][-1]
  assert whole["compiled"] == step.memory.temp_bytes and whole["predicted"] == shown["predicted"][report.WHOLE]
  assert math.isclose(whole["relative_error"], whole["compiled"] / whole["predicted"] - 1)
  assert (shown["unattributed"], shown["judged"]) == (0, False)
  assert all(one["bytes"] >= 0.01 * step.memory.temp_bytes for one in shown["buffers"])


WIDTHS = Sizes(
  train=True, decode=False, weights=((4, 48, 56), (48, 352)), d_model=48, experts=8, hidden=56, vocabulary=352,
  heads=6, kv_heads=6, cached=20, keys=36, tokens=144,
)  # fmt: skip
BACK, FORTH = "jit(step)/transpose(jvp(layer))/while/body/", "jit(step)/jvp(layer)/while/body/"
CASES = {
  "gradient": (BACK + "experts/add_any", "f32", (4, 48, 56), {}, attribution.GRADIENTS),
  "gradients, joined": (BACK + "psum", "f32", (4096,), {}, attribution.GRADIENTS),
  "weight, converted": ("", "bf16", (4, 48, 56), {"argument": "parameters"}, attribution.WEIGHTS),
  "moment": ("jit(step)/optimizer/mul", "f32", (4, 48, 56), {}, attribution.OPTIMIZER),
  "kept": (FORTH + "attention/mul", "f32", (4, 144, 48), {"crosses": True}, attribution.KEPT),
  "at work": (FORTH + "attention/mul", "f32", (144, 48), {}, attribution.WORKING),
  "scores": (FORTH + "attention/exp", "f32", (4, 6, 36, 36), {}, attribution.SCORES),
  "logits": ("jit(step)/jvp(head)/head/dot_general", "f32", (144, 352), {}, attribution.LOGITS),
  "dispatched": (FORTH + "experts/all_to_all", "f32", (8, 72, 48), {}, attribution.DISPATCH),
  "hidden rows": (FORTH + "experts/mul", "f32", (8, 72, 56), {}, attribution.WORKING),
  "indices": (FORTH + "router/top_k", "s32", (144, 2), {}, attribution.INDICES),
  "packed": (FORTH + "attention/psum", "u32", (4, 40), {}, attribution.WORKING),
  "nothing known": ("", "f32", (7, 11), {}, attribution.UNKNOWN),
}


@pytest.mark.parametrize("name", CASES)
def test_classes_by_hand(name):
  op_name, dtype, dims, more, expected = CASES[name]
  assert class_of(Facts(names=[op_name] if op_name else [], dtype=dtype, dims=dims, **more), WIDTHS) == expected


def test_inputs_of_layers_are_no_scores_where_a_model_is_as_wide_as_a_sequence_is_long():
  """Mixtral's training: 263 ticks, 4 layers and 4 key heads, 2048 tokens, 4096 wide, and 4096 keys."""
  mixtral = dataclasses.replace(WIDTHS, d_model=4096, keys=4096, heads=16, kv_heads=4, cached=128, tokens=2048)
  stacked = Facts(names=["shard_map/jvp()/broadcast_in_dim"], dtype="bf16", dims=(263, 4, 2048, 4096), crosses=True)
  assert class_of(stacked, mixtral) == attribution.KEPT
  scores = Facts(names=[FORTH + "attention/exp"], dtype="bf16", dims=(1, 4, 4, 512, 4096))
  assert class_of(scores, mixtral) == attribution.SCORES


def test_a_cache_is_told_from_attentions_own_work():
  serving = dataclasses.replace(WIDTHS, train=False)
  whole = Facts(names=["jit(step)/while/body/dynamic_update_slice"], dtype="f32", dims=(4, 8, 36, 6, 20))
  own = dataclasses.replace(whole, names=["jit(step)/while/body/attention/dot_general"])
  assert (class_of(whole, serving), class_of(own, serving)) == (attribution.CACHE, attribution.WORKING)
  assert class_of(own, dataclasses.replace(serving, decode=True)) == attribution.CACHE
