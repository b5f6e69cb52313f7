"""A plan's file holds what it was priced under, and other verbs then give the numbers of the search."""

import dataclasses
import json
import pathlib

import pytest
import tiny

from jaxmoe.cli.main import main
from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.catalogue import load_deployment, read_deployment
from jaxmoe.config.plan_form import deployment_text
from jaxmoe.config.reduced import reduced
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.one_rank import one_rank
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.planner.own_plan import own_plans
from jaxmoe.planner.why import why
from jaxmoe.report import why as report

ROWS = (4.0, 2.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0)
ASSUMED = (
  Assumptions(dispatch_overlap=0.25),
  Assumptions(gradient_overlap=1.0, load=1.5),
  Assumptions(popularity=1.2),
  Assumptions(popularity=ROWS),
)


def back(d):
  return read_deployment(deployment_text(d), origin="plan.yaml")


@pytest.mark.parametrize("assumed", ASSUMED, ids=str)
def test_what_a_plan_was_priced_under_reads_back(assumed):
  d = dataclasses.replace(tiny.deployment(Strategy(data=2, expert=4), transport="ragged"), assumptions=assumed)
  e = estimate(back(d))
  assert back(d) == d and (e.time, e.memory) == (estimate(d).time, estimate(d).memory)
  plain = dataclasses.replace(d, assumptions=Assumptions())
  assert e.time == estimate(plain, assumed).time and e.time != estimate(plain).time
  assert "\nassumptions:" not in deployment_text(plain)


@pytest.mark.parametrize(
  "options",
  [["--dispatch-overlap", "0.5"], ["--gradient-overlap", "1"], ["--load", "3"], ["--load", "power:1.2"],
   ["--load", "rows.json"]],
  ids=" ".join,
)  # fmt: skip
def test_a_plan_under_assumptions_is_written_and_reproduced(options, tmp_path, monkeypatch, capsys):
  """`estimate` and `why` of the file give the numbers of the search."""
  monkeypatch.chdir(tmp_path)
  pathlib.Path("rows.json").write_text(json.dumps({"rows_by_expert": ROWS}))
  kind = "train" if "--gradient-overlap" in options else "decode"
  question = ["--model", "mixtral-8x7b", "--cluster", "dgx_h100", "--devices", "64", "--job", kind, "--top", "2"]
  assert main(["plan", *question, "--transport", "ragged", *options, "--out", "plan"]) == 0
  best = json.loads(pathlib.Path("plan/plan.json").read_text())["plans"][0]
  assert json.loads(pathlib.Path("plan/verification.json").read_text())["ok"] is True
  capsys.readouterr()
  assert main(["estimate", "plan/plan.yaml", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert {key: found[key] for key in ("time_s", "memory_bytes", "taken_for_granted", "mfu")} == {
    key: best[key] for key in ("time_s", "memory_bytes", "taken_for_granted", "mfu")
  }
  assert main(["why", "plan/plan.yaml", "plan/plan.yaml", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["b"]["step_s"] == best["time_s"]["total"]


def test_reasons_name_what_is_taken_for_granted():
  """What two files of one plan differ in."""
  d = tiny.deployment(Strategy(data=2, expert=4), transport="ragged")
  granted = Assumptions(dispatch_overlap=0.5, gradient_overlap=0.25, popularity=ROWS)
  w = why(estimate(d), estimate(dataclasses.replace(d, assumptions=granted)))
  facts = {term["term"]: (term["behind_a"], term["behind_b"]) for term in report.document(w)["terms"]["time_s"]}
  assert "50.0 % taken for hidden" in facts["exchange"][1] and "hidden" not in facts["exchange"][0]
  assert "25.0 % taken for hidden" in facts["gradients"][1] and "hidden" not in facts["gradients"][0]
  assert "the busiest device 1.5 times the mean" in facts["experts"][1] and "times" not in facts["experts"][0]


def test_own_plans_are_searched_under_the_same():
  d = load_deployment("ep64_tp2")
  granted = Assumptions(dispatch_overlap=1.0)
  found = own_plans(dataclasses.replace(d, assumptions=granted))
  assert found.document.deployment.assumptions == granted
  assert all(own.plan.deployment.assumptions == granted for own in found.plans)


def test_copies_of_other_sizes_take_nothing_for_granted():
  """Rows of eight experts say nothing of a copy with fewer."""
  d = dataclasses.replace(tiny.deployment(Strategy(expert=4)), assumptions=Assumptions(popularity=ROWS))
  for copy in (reduced(dataclasses.replace(d, strategy=Strategy(expert=2)), 2), one_rank(d)):
    assert copy.assumptions == Assumptions()
