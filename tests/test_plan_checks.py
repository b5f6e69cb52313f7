"""What a plan is checked for, each check broken once: by sizes that do not fit together, and by numbers too good."""

import dataclasses

import pytest
import tiny
from drawn_deployments import Unchecked

from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.planner import plan_checks as plan_checks_of
from jaxmoe.planner.plan_checks import plan_checks
from jaxmoe.planner.question import Constraints, Question
from jaxmoe.planner.space import whole_space

NOT_MATMULS = ("recomputation", "exchange", "layer_network", "bubble", "head", "step_network", "gradients", "optimizer")


@pytest.mark.parametrize(
  "changes, broken",
  [
    ({"strategy": {"data": 2}}, {"device_product"}),
    ({"strategy": {"data": 16}}, {"device_product", "batch"}),
    ({"strategy": {"tensor": 2, "data": 1}, "model": {"num_heads": 7, "num_kv_heads": 7}},
     {"num_heads_divides", "num_kv_heads_divides"}),
    ({"model": {"num_kv_heads": 1}, "strategy": {"tensor": 2}}, {"num_kv_heads_divides", "kv_heads_at_least_parts"}),
    ({"model": {"num_layers": 5}}, {"num_layers_divides"}),
    ({"model": {"vocab_size": 255}}, {"vocab_size_divides", "parameters_sum"}),
    ({"job": {"batch": 15}}, {"batch"}),
    ({"cluster": {"memory_bytes": 1000}}, {"memory_fits"}),
    ({"cluster": {"devices": 2}}, {"cluster_devices"}),
  ],
)  # fmt: skip
def test_a_broken_plan_fails_its_check(changes, broken):
  sound = tiny.deployment(Strategy(stage=2, expert=2), microbatches=2)
  q = Question(model=sound.model, cluster=sound.cluster, devices=4, job=sound.job, space=whole_space("train"))
  assert all(check.ok for check in plan_checks(estimate(sound), q))
  parts = {name: dataclasses.replace(getattr(sound, name), **fields) for name, fields in changes.items()}
  fields = {field.name: getattr(sound, field.name) for field in dataclasses.fields(sound)}
  unsound = Unchecked(**{**fields, **parts})
  failed = {check.name for check in plan_checks(estimate(unsound), q) if not check.ok}
  assert broken <= failed, failed


def test_stages_that_differ_by_two_layers_are_out_of_balance(monkeypatch):
  d = tiny.deployment(Strategy(stage=2))
  q = Question(model=d.model, cluster=d.cluster, devices=2, job=d.job, space=whole_space("train"))
  monkeypatch.setattr(plan_checks_of, "stage_layers_held", lambda d, ranks: [(0, 1, 2), (3,)])
  (check,) = [check for check in plan_checks(estimate(d), q) if check.name == "stages_balanced"]
  assert not check.ok and check.numbers == {"most_layers": 3, "fewest_layers": 1, "most_over_mean": 1.5}


def test_no_step_beats_the_datasheet():
  """A decoded step by hand: 4 tokens' matmuls at 1 TFLOP/s, weights and cache at 1 TB/s; a bit faster is refused."""
  d = tiny.deployment(kind="decode", batch=4, microbatches=1)
  q = Question(model=d.model, cluster=d.cluster, devices=1, job=d.job, space=whole_space("decode"))
  attention, expert, head = 4 * 32 * 4 * 8, 3 * 32 * 64, 256 * 32
  flops = 4 * (4 * (2 * (attention + 32 * 8 + 2 * expert) + 4 * 4 * 8 * 16) + 2 * head)
  weights = 4 * (4 * (attention + 8 * expert + 32 * 8 + 2 * 32) + 32 + head)  # but for the embedding
  cache = 4 * 4 * 16 * 2 * 4 * 8 * 4
  for name, bound_s in (("compute", flops / 1e12), ("memory", (weights + cache) / 1e12)):
    for share, holds in ((1.001, True), (0.999, False)):
      e = estimate(d)
      faster = dataclasses.replace(e.time, **dict.fromkeys(NOT_MATMULS, 0.0), matmuls={"experts": share * bound_s})
      (check,) = [
        check
        for check in plan_checks(dataclasses.replace(e, time=faster), q)
        if check.name == f"step_bounded_by_{name}"
      ]
      assert check.ok is holds and check.numbers["bound_s"] == pytest.approx(bound_s)


def test_memory_fits_to_the_byte():
  d = tiny.deployment()
  q = Question(model=d.model, cluster=d.cluster, devices=1, job=d.job, space=whole_space("train"))
  used = estimate(d).memory.total
  for room, reserve, fits in ((used, 0, True), (used - 1, 0, False), (used + 9, 9, True), (used + 9, 10, False)):
    other = dataclasses.replace(d, cluster=dataclasses.replace(d.cluster, memory_bytes=room))
    asked = dataclasses.replace(q, constraints=Constraints(reserve_bytes=reserve))
    assert {check.name: check.ok for check in plan_checks(estimate(other), asked)}["memory_fits"] is fits
