"""The planner's own plans: never slower than the documents', priced as any deployment, and shown beside them."""

import contextlib
import dataclasses
import json

import pytest
from plans import edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import document_names, load_deployment
from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.errors import UsageError
from jaxmoe.model.support import check_runnable
from jaxmoe.planner.own_plan import own_plans, space_of, unsearched
from jaxmoe.report import own_plan as report
from jaxmoe.xla.verify import verify

DOCUMENTS = {name: load_deployment(name) for name in document_names()}
OWN = {name: own_plans(d) for name, d in DOCUMENTS.items()}
EACH = [(name, own) for name, plans in OWN.items() for own in plans.plans]
IDS = [f"{name}-{report.name_of(own)}" for name, own in EACH]


@pytest.mark.parametrize("name, own", EACH, ids=IDS)
def test_every_documents_plan_is_searched_and_no_own_plan_is_slower(name, own):
  assert own.unsearched == "" and own.gain >= 1
  assert own.gain == OWN[name].document.time.total_s / own.plan.time.total_s


@pytest.mark.parametrize("name, own", EACH, ids=IDS)
def test_numbers_are_the_estimate_of_the_plan_as_a_deployment(name, own):
  d = own.plan.deployment
  again = estimate(dataclasses.replace(d))
  assert (again.time.total_s, again.memory.total, again.mfu) == (
    own.plan.time.total_s, own.plan.memory.total, own.plan.mfu,
  )  # fmt: skip
  assert own.plan.fits and own.legal > 100


@pytest.mark.parametrize("name, own", EACH, ids=IDS)
def test_it_is_the_documents_model_hardware_and_job(name, own):
  d, of = own.plan.deployment, DOCUMENTS[name]
  assert (d.model, d.cluster, d.strategy.devices) == (of.model, of.cluster, of.strategy.devices)
  for field in ("kind", "batch", "sequence_length", "precision", "capacity_factor"):
    assert getattr(d.job, field) == getattr(of.job, field)
  assert own.any_transport or d.job.transport == of.job.transport
  if own.reach == "runnable":
    check_runnable(d)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_more_to_choose_from_is_never_worse(name):
  step = {(own.reach, own.any_transport): own.plan.time.total_s for own in OWN[name].plans}
  assert step["priced", False] <= step["runnable", False] and step["priced", True] <= step["runnable", True]
  assert step["priced", True] <= step["priced", False] and step["runnable", True] <= step["runnable", False]
  assert OWN[name].best.plan.time.total_s == step["priced", False]


def by_hand(of):
  """Data parallelism with one other axis, where it is legal, in the document's transport."""
  for axis in ("expert", "tensor", "stage"):
    for parts in (2**n for n in range(of.strategy.devices.bit_length())):
      sizes = {"data": of.strategy.devices // parts, "stage": 1, "expert": 1, "tensor": 1, axis: parts}
      strategy = dataclasses.replace(of.strategy, **sizes, heads_over=("tensor",))
      with contextlib.suppress(UsageError):
        yield dataclasses.replace(of, strategy=strategy, job=dataclasses.replace(of.job, microbatches=1))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_plan_drawn_by_hand_beats_it(name):
  drawn = [estimate(d) for d in by_hand(DOCUMENTS[name])]
  assert drawn and all(e.time.total_s >= OWN[name].best.plan.time.total_s for e in drawn if e.fits)


@pytest.mark.parametrize("name", ["ep256_pp16", "tp4_ep4_pp4"])
def test_the_compiler_agrees_with_what_runs_here(name):
  assert verify(OWN[name].of("runnable", any_transport=False).plan.deployment, "cpu").ok


def test_the_best_plan_gains_nothing_on_itself():
  best = OWN["ep64_tp2"].of("runnable", any_transport=False).plan.deployment
  again = own_plans(best).of("runnable", any_transport=False)
  assert again.gain == 1 and report.gain(again) == "1 x" and not again.unsearched


@pytest.mark.parametrize("change, words", [
  ({"remat": "selective"}, "remat selective"),
  ({"zero": 1}, "zero 1"),
  ({"schedule": "1f1b"}, "schedule and chunks ('1f1b', 1)"),
  ({"transport": "ragged"}, "transport ragged"),
])  # fmt: skip
def test_what_does_not_run_here_is_named(change, words):
  of = DOCUMENTS["tp8_pp4_ep4_dp4"]
  d = dataclasses.replace(of, job=dataclasses.replace(of.job, **change))
  runs = space_of(d, "runnable", any_transport=False)
  assert words in unsearched(d, runs)
  assert unsearched(d, space_of(d, "priced", any_transport=False)) == ""


def test_odd_microbatches_are_not_searched(tmp_path, capsys):
  (tmp_path / "plan.yaml").write_text(edited(("batch: 16", "batch: 24")))
  d = load_deployment(str(tmp_path / "plan.yaml"))
  d = dataclasses.replace(d, job=dataclasses.replace(d.job, microbatches=1))
  assert d.microbatch_sequences % 3 == 0
  assert "powers of two" in own_plans(d).best.unsearched
  assert main(["audit", str(tmp_path / "plan.yaml")]) == 0
  assert "the planner's own plan" in capsys.readouterr().out


def test_where_nothing_fits_it_says_so(tmp_path, capsys):
  (tmp_path / "plan.yaml").write_text(edited(("16_000_000_000", "1_000")))
  own = own_plans(load_deployment(str(tmp_path / "plan.yaml")))
  assert {(one.plan, one.gain) for one in own.plans} == {(None, None)}
  assert all("does not fit" in one.unsearched for one in own.plans)
  for arguments in ([], ["--summary"]):
    assert main(["audit", str(tmp_path / "plan.yaml"), *arguments]) == 0
  assert "none fits" in capsys.readouterr().out
  assert main(["audit", str(tmp_path / "plan.yaml"), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["deployments"][0]["gain"] is None


CANNOT_RUN = {
  "a model": (
    ("vocab_size: 256", "vocab_size: 256\n  query_key_norm: projection"),
    "a projection norm of queries and keys",
  ),
  "dtypes": (("microbatches: 2", "microbatches: 2, precision: {master: float32}"), "a master copy of the weights"),
}


@pytest.mark.parametrize("case", CANNOT_RUN)
def test_where_nothing_runs_it_says_so(case, tmp_path, capsys):
  change, words = CANNOT_RUN[case]
  (tmp_path / "plan.yaml").write_text(edited(change))
  own = own_plans(load_deployment(str(tmp_path / "plan.yaml")))
  for one in own.plans:
    assert (one.plan is None) == (words in one.unsearched) == (one.reach == "runnable")
  assert main(["audit", str(tmp_path / "plan.yaml"), "--summary"]) == 0
  assert "same, runs here  none runs" in capsys.readouterr().out
  assert main(["audit", str(tmp_path / "plan.yaml")]) == 0
  assert words in capsys.readouterr().out


def test_json_has_the_plan_and_its_gain(capsys):
  assert main(["audit", "tp8_pp4_ep4_dp4", "--json"]) == 0
  one = json.loads(capsys.readouterr().out)["deployments"][0]
  own = OWN["tp8_pp4_ep4_dp4"].best
  assert one["gain"] == one["own_plan"]["gain"] == own.gain == one["document_plan"]["step_s"] / own.plan.time.total_s
  assert one["own_plan"]["plan"]["product"] == own.plan.deployment.strategy.product
  assert one["own_plan"]["document_plan_searched"] and one["own_plan"]["transports"] == ["capacity"]
  assert [plan["gain"] for plan in one["own_plans"]] == [own.gain for own in OWN["tp8_pp4_ep4_dp4"].plans]
  assert {one["document_plan"]["source"], one["own_plan"]["plan"]["source"]} == {"formula"}


def test_terminal_output_has_both_plans_and_their_source(capsys):
  assert main(["audit", "tp4_ep4_pp4"]) == 0
  out = capsys.readouterr().out
  lines = out[out.index("tp4_ep4_pp4: the planner's own plan") :].splitlines()
  rows = {line[:14].strip(): line[14:] for line in lines[2:]}
  assert "1 x 4 x 4 x 1" in rows["mesh"] and rows["source"].split() == ["formula"] * 5
  for own in OWN["tp4_ep4_pp4"].plans:
    assert report.mesh(own.plan) in rows["mesh"] and report.gain(own) in rows["gain"]
