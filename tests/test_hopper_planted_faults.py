"""The checks of the Hopper kernels have teeth: each fault planted here makes the interpreter, or the oracle, object.

A fault replaces one primitive while a kernel is traced; the kernels have no switch for it.
"""

import dataclasses
import itertools
import types

import hopper
import jax
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels.hopper import compat, ring, rows, scaled, staging, weights
from jaxmoe.kernels.hopper.config import TileShape

# Some tiles full, some not; several turns a processor.
SEVERAL = (300, [201, 3, 96])
LAGGING = TileShape(width=64, depth=32, stages=3, lag=1)
RACE, WRONG = "RACE DETECTED", "error .* above"
BARRIER = "no threads observed phase|must observe each|barrier is already at phase"
# jax 0.11.2 runs on after a race; what the race does may then be seen first.
RACE_OR_WHAT_IT_DOES = f"{RACE}|{WRONG}|{BARRIER}"


def store_waits_for_no_copy(patch):
  wait = plgpu.wait_smem_to_gmem
  patch.setattr(plgpu, "wait_smem_to_gmem", lambda n, wait_read_only=False: wait_read_only or wait(n))


def last_copy_is_not_awaited(patch):
  wait = plgpu.wait_smem_to_gmem
  patch.setattr(plgpu, "wait_smem_to_gmem", lambda n, wait_read_only=False: wait_read_only and wait(n, wait_read_only))


def written_memory_is_not_committed(patch):
  patch.setattr(plgpu, "commit_smem", lambda: None)


def stores_share_a_slot(patch):
  always_first = types.SimpleNamespace(cycle=lambda _: itertools.repeat(0), product=itertools.product)
  patch.setattr(staging, "itertools", always_first)


def consumers_share_their_slots(patch):
  def store(epilogue, sums, outputs_g, staging_s, at, low, high):
    *whole, _ = staging_s.transforms  # the last one picks the consumer's
    slots_of_first = dataclasses.replace(staging_s, transforms=tuple(whole)).at[0]
    return staging.store(epilogue, sums, outputs_g, slots_of_first, at, low, high)

  patch.setattr(rows, "store", store)


def tiles_end_a_row_late(patch):
  table = rows.row_tiles
  patch.setattr(rows, "row_tiles", lambda *args: (t := table(*args))._replace(high=t.high + 1))


def tiles_start_a_row_late(patch):
  table = rows.row_tiles
  patch.setattr(rows, "row_tiles", lambda *args: (t := table(*args))._replace(low=t.low + 1))


def stage_is_refilled_unread(patch):
  """The copier does not wait for the consumers."""

  def fill(self, step, copies):
    stage = self.stage(step)
    for from_g, to_s in copies(stage):
      plgpu.copy_gmem_to_smem(from_g, to_s, self.full.at[stage])
    return step + 1

  patch.setattr(ring.Ring, "fill", fill)


def stage_is_read_unfilled(patch):
  patch.setattr(ring.Ring, "take", lambda self, step: self.stage(step))


def skip_a_wait_after(patch, module, name):
  """Consumers do not meet after `module.name`: what it wrote is read at once."""
  before, wait = getattr(module, name), plgpu.barrier_wait

  def then_skip_a_wait(*args):
    before(*args)
    patch.setattr(plgpu, "barrier_wait", lambda _: patch.setattr(plgpu, "barrier_wait", wait))

  patch.setattr(module, name, then_skip_a_wait)


def consumers_do_not_await_each_others_zeros(patch):
  skip_a_wait_after(patch, weights, "zero_outside")


def zeros_start_a_row_late(patch):
  zero_outside = weights.zero_outside
  patch.setattr(weights, "zero_outside", lambda s, low, high, consumer: zero_outside(s, low, high + 1, consumer))


def widened_weights_share_a_buffer(patch):
  """The next step's are written while this one's are multiplied."""
  patch.setattr(scaled, "WIDENED", 1)


def consumers_do_not_await_each_others_weights(patch):
  skip_a_wait_after(patch, scaled, "widen")


def a_consumer_widens_the_others_half(patch):
  widen = scaled.widen
  patch.setattr(scaled, "widen", lambda narrow_s, wide_s, consumer: widen(narrow_s, wide_s, 0 * consumer))


def scales_are_of_the_next_columns(patch):
  scales = scaled.column_scales
  patch.setattr(scaled, "column_scales", lambda s, group, column, width: scales(s, group, width - column, width))


FAULTS = [
  (store_waits_for_no_copy, "gated_up", RACE),
  (last_copy_is_not_awaited, "matmul", "Not all copy_smem_to_gmem .* completed"),
  (last_copy_is_not_awaited, "weight_gradient", "Not all copy_smem_to_gmem .* completed"),
  (written_memory_is_not_committed, "matmul", RACE),
  (written_memory_is_not_committed, "weight_gradient", RACE),
  (stores_share_a_slot, "gated_up", RACE),
  (consumers_share_their_slots, "matmul", RACE_OR_WHAT_IT_DOES),
  (tiles_end_a_row_late, "matmul", RACE_OR_WHAT_IT_DOES),
  (tiles_start_a_row_late, "matmul", WRONG),
  (stage_is_refilled_unread, "matmul_transposed", RACE_OR_WHAT_IT_DOES),
  (stage_is_read_unfilled, "matmul_transposed", RACE_OR_WHAT_IT_DOES),
  (consumers_do_not_await_each_others_zeros, "weight_gradient", RACE_OR_WHAT_IT_DOES),
  (zeros_start_a_row_late, "weight_gradient", WRONG),
  (written_memory_is_not_committed, "matmul_scaled", RACE),
  (stage_is_refilled_unread, "matmul_scaled", RACE_OR_WHAT_IT_DOES),
  (widened_weights_share_a_buffer, "matmul_scaled", RACE_OR_WHAT_IT_DOES),
  (consumers_do_not_await_each_others_weights, "matmul_scaled", RACE_OR_WHAT_IT_DOES),
  (a_consumer_widens_the_others_half, "matmul_scaled", RACE_OR_WHAT_IT_DOES),
  (scales_are_of_the_next_columns, "matmul_scaled", WRONG),
]


def check(leg):
  """With two stages, so that each is filled again."""
  width = 128 if leg in ("matmul_scaled", "matmul_transposed", "gated_up") else hopper.F
  hopper.check(leg, *SEVERAL, shape=TileShape(width=width, stages=2))


@pytest.fixture
def after_a_fault():
  yield
  compat.reset_interpreter()


@pytest.mark.parametrize("fault,leg,objection", FAULTS)
def test_fault_is_caught(fault, leg, objection, monkeypatch, after_a_fault):
  fault(monkeypatch)
  with pytest.raises(Exception, match=objection), compat.interpreted(detect_races=True):
    check(leg)


@pytest.mark.parametrize("leg", sorted({leg for _, leg, _ in FAULTS}))
def test_without_a_fault_nobody_objects(leg):
  with compat.interpreted(detect_races=True):
    check(leg)


@pytest.mark.parametrize("leg,beside", [("matmul", 1), ("gated_up", 2), ("weight_gradient", 1)])
def test_stage_is_released_after_it_is_read(leg, beside, monkeypatch):
  """The interpreter multiplies at once and ignores waits for it, so their order is checked as it is traced."""
  traced = []
  for owner, name in [(plgpu, "wgmma"), (plgpu, "wgmma_wait"), (ring.Ring, "release")]:
    original = getattr(owner, name)

    def record(*args, name=name, original=original):
      traced.append((name, args[0]) if name == "wgmma_wait" else name)
      return original(*args)

    monkeypatch.setattr(owner, name, record)
  with compat.interpreted(detect_races=False):
    jax.eval_shape(lambda: hopper.run(leg, hopper.operands(leg, *SEVERAL, "bfloat16")))
  step = [*["wgmma"] * beside, ("wgmma_wait", beside), "release"]
  last = [("wgmma_wait", 0), "release"]
  body = traced[: traced.index(("wgmma_wait", 0)) + len(last)]
  assert body[-len(step + last) :] == step + last


def test_widened_weights_are_multiplied_after_both_consumers_wrote_them(monkeypatch):
  """And each waits for its multiplication of the step before, so that both know its buffer to be read."""
  traced = []
  for owner, name in [(plgpu, "wgmma"), (plgpu, "wgmma_wait"), (plgpu, "barrier_arrive"), (scaled, "widen")]:
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, n=name, run=original: (traced.append(n), run(*args))[1])
  with compat.interpreted(detect_races=False):
    jax.eval_shape(lambda: hopper.run("matmul_scaled", hopper.operands("matmul_scaled", *SEVERAL, "bfloat16")))
  released = "barrier_arrive"
  step = ["widen", "wgmma_wait", released, "barrier_arrive", "wgmma"]
  last, without_rows = ["wgmma_wait", released], ["widen", "barrier_arrive", released]
  assert traced[-len(step + last + without_rows) :] == step + last + without_rows


def test_a_lagging_consumer_waits_before_a_tile_until_the_other_multiplies(monkeypatch):
  """Order as traced: a consumer that did not wait would go unseen in the interpreter, whose clock is its own."""
  traced, lags = [], []
  for owner, name in [(ring.Lag, "begin"), (ring.Lag, "passed"), (plgpu, "wgmma"), (ring.Ring, "take")]:
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, n=name, run=original: (traced.append(n), run(*args))[1])
  new = rows.Lag
  monkeypatch.setattr(rows, "Lag", lambda *args: (lags.append(new(*args)), lags[-1])[1])
  for name in ("barrier_wait", "barrier_arrive"):
    original = getattr(plgpu, name)

    def note(barrier, name=name, run=original):
      traced.extend([name] if lags and barrier is lags[-1].ahead else [])
      return run(barrier)

    monkeypatch.setattr(plgpu, name, note)
  with compat.interpreted(detect_races=False):
    jax.eval_shape(lambda: hopper.run("matmul", hopper.operands("matmul", *SEVERAL, "bfloat16"), shape=LAGGING))
  multiplied, skipped = ["take", "wgmma", "passed", "barrier_arrive"], ["take", "passed", "barrier_arrive"]
  whole = ["begin", "barrier_wait", *multiplied, *skipped]
  assert traced[-len(whole) :] == whole
