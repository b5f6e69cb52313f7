"""The front and the best of each axis against every plan of a search, one by one."""

import dataclasses

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.job import Job, Precision
from jaxmoe.planner.answer import answer
from jaxmoe.planner.pareto import Explored, front, serving, training
from jaxmoe.planner.question import Constraints, Question
from jaxmoe.planner.search import search
from jaxmoe.planner.space import whole_space

AXES = ("data", "stage", "expert", "tensor", "context")
FEW = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


def question(kind="train", devices=4, objective="latency", **changes):
  precision = Precision() if kind == "train" else Precision(weights="bfloat16")
  job = Job(kind=kind, batch=16, sequence_length=64, precision=precision)
  parts = {"model": tiny.model(), "cluster": tiny.CLUSTER, "devices": devices, "job": job, "objective": objective}
  return Question(**{**parts, "space": whole_space(kind), **changes})


def unbeaten(points):
  """Those than which no other is at least as good in both numbers and better in one, in rising order."""
  unique = np.array(sorted(set(points)), float)
  one, other = unique[:, None], unique[None]
  beaten = ((other <= one).all(-1) & (other != one).any(-1)).any(1)
  return [tuple(point) for point in unique[~beaten].tolist()]


@given(FEW)
def test_front_is_what_no_other_point_beats(points):
  first, second = (np.array(column, float) for column in zip(*points, strict=True))
  found = [points[at] for at in front(first, second)]
  assert found == unbeaten(points)
  assert all(points.index(point) == at for point, at in zip(found, front(first, second), strict=True))


class Recorder:
  """Every plan that a search shows, with its numbers."""

  def __init__(self):
    self.seen = []

  def see(self, block, used, step_s):
    for at in np.flatnonzero(np.isfinite(step_s)):
      self.seen.append(block.candidate(int(at), used, step_s))


CASES = [
  ("train", {}),
  ("train", {"objective": "devices"}),
  ("train", {"constraints": Constraints(max_step_s=0.001)}),
  ("prefill", {"objective": "throughput", "batches": (1, 4, 16, 64)}),
  ("decode", {"objective": "throughput", "batches": (1, 4, 16, 64)}),
]


@pytest.mark.parametrize("kind, changes", CASES, ids=["train", "devices", "limit", "prefill", "decode"])
def test_the_front_of_a_search_is_that_of_all_its_plans(kind, changes):
  q, every = question(kind, **changes), Recorder()
  explored = Explored(q)
  best = search(q, 3, explored.see).best
  found = search(q, 3, every.see)
  assert found.best == best and len(every.seen) == found.fitting
  assert found.fitting > (10 if q.objective == "devices" else 50)  # the fewest devices that have a plan have few
  assert ("constraints" in changes) == bool(found.rejected["a step takes longer than the limit"])
  points = [numbers(kind, q, c) for c in every.seen]
  wanted = unbeaten(points)
  assert [numbers(kind, q, c) for c in explored.found] == wanted
  assert [explored.objectives(c) for c in explored.found] == wanted
  assert_best_of_each_size(explored, every.seen)


def numbers(kind, q, c):
  """By hand: seconds and bytes, or seconds and device-seconds a token."""
  if kind == "train":
    return c.step_s, c.memory_bytes
  return c.step_s, c.step_s * c.devices / (c.sizes["batch"] * (1 if kind == "decode" else 64))


def assert_best_of_each_size(explored, seen):
  wanted = {}
  for c in seen:
    for axis in AXES:
      key = (axis, c.sizes[axis])
      wanted[key] = min(wanted.get(key, c), c)
  assert set(explored.by_size) == set(wanted)
  for key, c in explored.by_size.items():
    assert (c.score, c.step_s) == (wanted[key].score, wanted[key].step_s), key


def test_objectives_by_hand():
  assert training(8, 100, 2.0, 7) == (2.0, 7)
  assert serving(8, 100, 2.0, 7) == (2.0, 0.16)


def test_an_estimate_of_the_front_has_its_numbers():
  q = question()
  explored = Explored(q)
  answer(q, 3, explored.see)
  for c in explored.found:
    e = explored.estimate(c)
    assert e.time.total_s == pytest.approx(c.step_s, rel=1e-6)
    assert e.memory.total == pytest.approx(c.memory_bytes, rel=1e-3)
    assert explored.objectives_of(e) == (e.time.total_s, e.memory.total)


def test_looking_on_changes_no_answer():
  q = question(model=load_model("mixtral-8x7b"), cluster=load_cluster("dgx_h100"), devices=64)
  q = dataclasses.replace(q, job=dataclasses.replace(q.job, batch=256, sequence_length=4096))
  assert answer(q, 5).plans == answer(q, 5, Explored(q).see).plans
