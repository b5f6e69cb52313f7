"""One plan against another: terms add up, shares are what a hand makes of them, reasons are the plans' own."""

import dataclasses
import json
import random
import re

import pytest
import tiny
from drawn_deployments import models

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_cluster, load_deployment, load_model
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job
from jaxmoe.config.plan_form import deployment_text
from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.planner.answer import answer
from jaxmoe.planner.pareto import Explored
from jaxmoe.planner.question import Question
from jaxmoe.planner.space import whole_space
from jaxmoe.planner.why import Term, share, why
from jaxmoe.report.facts import fact
from jaxmoe.report.groups import span, tiers
from jaxmoe.report.why import document, tables, verdict

JOB = Job(kind="train", batch=512, sequence_length=4096, microbatches=8, schedule="1f1b", transport="ragged")


def plan(job=JOB, cluster="dgx_h100", **sizes):
  model = load_model("mixtral-8x7b")
  strategy = Strategy(**{"data": 4, "stage": 4, "expert": 8, **sizes})
  return Deployment(name="plan", title="", model=model, cluster=load_cluster(cluster), strategy=strategy, job=job)


def compared(a, b):
  return why(estimate(a), estimate(b))


def with_job(d, **changes):
  return dataclasses.replace(d, job=dataclasses.replace(d.job, **changes))


@pytest.mark.parametrize("kind", ["train", "prefill", "decode"])
def test_terms_add_up_to_both_plans(kind):
  """Of any two plans that a search finds."""
  rng, job = random.Random(kind), Job(kind=kind, batch=48, sequence_length=96)
  model = models()["mixed"]
  q = Question(model=model, cluster=tiny.CLUSTER, devices=16, job=job, space=whole_space(kind))
  explored = Explored(q)
  ranked = answer(q, 60, explored.see).plans
  plans = [*ranked, *map(explored.estimate, explored.by_size.values())]
  for _ in range(40):
    assert_adds_up(why(*rng.sample(plans, 2)))


def assert_adds_up(w):
  for terms, total in (
    (w.time, lambda e: e.time.total_s),
    (w.memory, lambda e: e.memory.total),
    (w.flops, lambda e: e.executed.total),
    (w.axes, lambda e: sum(c.total_bytes for c in e.collectives)),
  ):
    assert sum(t.a for t in terms) == pytest.approx(total(w.a))
    assert sum(t.b for t in terms) == pytest.approx(total(w.b))
    sizes = [abs(t.difference) for t in terms]
    assert sizes == sorted(sizes, reverse=True)
    shares = [share(t, terms) for t in terms]
    assert not terms or None in shares or sum(shares) == pytest.approx(1, abs=1e-6)
  assert verdict(w) and tables(w) and json.dumps(document(w), allow_nan=False)


def test_a_share_by_hand():
  terms = [Term("x", 10, 4), Term("y", 1, 3)]
  assert [t.difference for t in terms] == [-6, 2] and [share(t, terms) for t in terms] == [1.5, -0.5]
  assert share(terms[0], [Term("x", 1, 2), Term("y", 2, 1)]) is None


def test_one_change_is_the_reason():
  """What alone differs is what the verdict names first, with its two values."""
  base = plan()
  cases = [
    (with_job(base, remat="full"), "recomputation", ["for remat full, where the other has none"]),
    (with_job(base, schedule="gpipe"), "step_network", ["among 4 devices of stage"]),
    (with_job(base, schedule="interleaved", chunks=2), "bubble", ["interleaved of 2 chunks, 4 stages"]),
    (with_job(base, transport="dense"), "experts", ["bound by matmuls"]),
  ]
  for other, first, words in cases:
    w = compared(base, other)
    text = verdict(w)
    assert any(word in text for word in words), text
    if first:
      assert w.time[0].name == first


def test_a_reason_names_groups_and_tiers():
  near, far = plan(), plan(order=("expert", "stage", "data", "tensor"))
  assert span(near, ("expert",)) == "8 within nvlink" and span(far, ("expert",)) == "8 over infiniband"
  w = compared(far, near)
  assert "exchange" in verdict(w)
  assert "by ragged among 8 devices of expert (8 within nvlink), not" in verdict(w)
  assert "(8 over infiniband)" in verdict(w)


def test_spans_by_hand():
  """16 experts of neighbouring ranks on hosts of 8: two hosts."""
  d = plan(data=4, stage=2, expert=8, tensor=2)
  assert tiers(d, ("expert", "tensor")) == [("nvlink", 8), ("infiniband", 2)]
  assert tiers(d, ("tensor",)) == [("nvlink", 2)] and tiers(d, ("expert",)) == [("nvlink", 4), ("infiniband", 2)]
  assert span(d, ("expert",)) == "4 within nvlink x 2 over infiniband" and span(plan(tensor=1), ("tensor",)) == "1"
  one = dataclasses.replace(d.cluster, tiers=(dataclasses.replace(d.cluster.tiers[0], devices=d.cluster.devices),))
  assert span(dataclasses.replace(d, cluster=one), ("expert", "tensor")) == "16 within nvlink"


def test_faster_and_slower_are_each_others_inverse():
  a, b = plan(), with_job(plan(), remat="full")
  slower, faster = verdict(compared(a, b)), verdict(compared(b, a))
  assert re.search(r"recomputation \d+ ms more", slower) and re.search(r"recomputation \d+ ms less", faster)
  assert "B (plan) is 1." in slower and "x slower than A (plan)" in slower and "x faster than A (plan)" in faster
  ratio = estimate(b).time.total_s / estimate(a).time.total_s
  assert f"{ratio:.2f}x" in slower and f"{ratio:.2f}x" in faster


def test_the_same_plan_is_as_fast():
  text = verdict(compared(plan(), plan()))
  assert "is as fast as" in text and "as much memory" in text


def test_other_devices_are_compared_by_rate():
  text = verdict(compared(plan(), plan(data=8)))
  assert "x slower than A (plan) a token (" in text and "tokens/s a device; a step takes" in text
  assert "tokens/s" not in verdict(compared(plan(), with_job(plan(), remat="full")))


def test_other_batches_are_compared_by_the_token():
  """Twice the microbatches: a longer step, of which less is the pipeline's idle time."""
  one, two = plan(), with_job(plan(), batch=1024, microbatches=16)
  w, times = compared(one, two), [estimate(d).time for d in (one, two)]
  tokens = [d.job.batch * 4096 for d in (one, two)]
  assert times[1].total_s > times[0].total_s
  ratio = times[0].total_s / tokens[0] / (times[1].total_s / tokens[1])
  assert f"B (plan) is {ratio:.2f}x faster than A (plan) a token (" in verdict(w) and ratio > 1
  assert verdict(w).split(": ")[1].startswith("bubble")
  bubble = next(term for term in w.token_time if term.name == "bubble")
  assert bubble.a == pytest.approx(128 * times[0].bubble / tokens[0])
  assert document(w)["terms"]["token_time_s"][0]["term"] == "bubble"


def test_what_two_decimals_would_hide_is_said_in_percent():
  """More microbatches without a pipeline change little but how often a step does what it does once."""
  job = Job(kind="prefill", batch=64, sequence_length=4096, microbatches=1, transport="ragged")
  one, two = (plan(dataclasses.replace(job, batch=64 * n, microbatches=n), stage=1, data=8) for n in (1, 2))
  text = verdict(compared(one, two))
  assert re.match(r"B \(plan\) is 0\.\d+ % faster than A \(plan\) a token \(", text) and "a step takes" in text


def test_a_latent_cache_is_not_split_over_heads():
  """Each device keeps a token's whole latent vector; keys and values have heads to split."""
  sizes = {"data": 2, "stage": 1, "expert": 1, "tensor": 2}
  job = Job(kind="prefill", batch=8, sequence_length=64)
  facts = [
    fact(estimate(dataclasses.replace(plan(job, **sizes), model=load_model(name))), "cache")
    for name in ("deepseek-v3", "mixtral-8x7b")
  ]
  assert facts == ["4 sequences in 61 layers", "4 sequences in 32 layers, heads in 2 parts"]


def test_unlike_plans_are_refused():
  d = tiny.deployment()
  with pytest.raises(UsageError, match=r"one kind of job, got tiny to train and tiny to decode"):
    compared(d, with_job(d, kind="decode", microbatches=1))
  with pytest.raises(UsageError, match=r"one model, got .* differ in num_layers: 4 and 8"):
    compared(d, tiny.deployment(sizes={"num_layers": 8}))
  renamed = dataclasses.replace(d, model=dataclasses.replace(d.model, name="another name"))
  assert compared(d, renamed)


@pytest.fixture
def files(tmp_path):
  (tmp_path / "a.yaml").write_text(deployment_text(plan()))
  (tmp_path / "b.yaml").write_text(deployment_text(with_job(plan(), remat="full")))
  return [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]


def test_the_command_line(files, capsys):
  assert main(["why", *files]) == 0
  text = capsys.readouterr().out
  assert text.startswith("B (plan) is 1.") and "Time of a step" in text and "Behind it: time of a step" in text
  assert main(["why", *files, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["schema_version"] == 1 and set(found["terms"]) == {"time_s", "memory_bytes", "flops", "axis_bytes"}
  first = found["terms"]["time_s"][0]
  assert first["term"] == "recomputation" and first["a"] == 0 and first["behind_b"] == "remat full"
  assert sum(term["b"] for term in found["terms"]["time_s"]) == pytest.approx(found["b"]["step_s"])


def test_the_catalogues_names_are_taken(capsys):
  assert main(["why", "ep64_tp2", "ep64_tp2"]) == 0
  assert capsys.readouterr().err == ""
  assert main(["why", "ep64_tp2", "tp4_ep4_pp4"]) == 2
  assert capsys.readouterr().err.count("\n") == 1
  assert load_deployment("ep64_tp2").job.kind == "prefill"
