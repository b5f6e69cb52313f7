"""How busy experts are: by a factor, a power law or measured rows; in time, in memory, for one plan and for many."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from jaxmoe.cli.main import main
from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.catalogue import load_deployment
from jaxmoe.config.plan_form import deployment_text
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.load import load_of
from jaxmoe.cost.memory import memory
from jaxmoe.cost.plans import Plans, StrategyColumns
from jaxmoe.cost.time import step_time
from jaxmoe.meshes.axes import EXPERT, TENSOR
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report import units
from jaxmoe.report.estimate import uneven_load

ROWS = (4.0, 2.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0)  # 16 in all; pairs 6 2 6 2, halves 8 8


@pytest.mark.parametrize("devices, load", [(1, 1), (2, 1), (4, 1.5), (8, 2.5)])
def test_measured_rows_by_hand(devices, load):
  d = tiny.deployment(Strategy(expert=devices), transport="ragged")
  assert load_of(d, Assumptions(popularity=ROWS)) == load


def test_a_factor_is_at_most_the_devices_that_share():
  loads = [load_of(tiny.deployment(Strategy(expert=n), transport="ragged"), Assumptions(load=3.0)) for n in (1, 2, 4)]
  assert loads == [1, 2, 3]


def test_a_power_law_grows_with_devices():
  loads = [
    load_of(tiny.deployment(Strategy(expert=n), transport="ragged"), Assumptions(popularity=1.3)) for n in (1, 2, 4, 8)
  ]
  assert loads[0] == 1 and loads == sorted(loads) and loads[-1] <= 8


def test_columns_have_each_their_own():
  sizes = np.array([1, 2, 4, 8]).reshape(-1, 1, 1, 1)
  one, d = np.ones_like(sizes), tiny.deployment(transport="ragged")
  strategy = StrategyColumns(
    data=one, stage=one, expert=sizes, tensor=one, context=one, heads_over=(TENSOR,), experts_over=(EXPERT,)
  )
  flags = {name: np.zeros((1, 1, 1, 1), int) for name in ("recomputed", "hidden_recomputed", "zero")}
  plans = Plans(
    model=d.model, cluster=d.cluster, job=d.job, strategy=strategy, batch=one, microbatches=one,
    schedules=(("gpipe", 1),), executes_idle=np.ones((1, 1, 1, 1), int), **flags,
  )  # fmt: skip
  assert load_of(plans, Assumptions(popularity=ROWS)).ravel().tolist() == [1, 1, 1.5, 2.5]


@pytest.mark.parametrize(
  "transport, busier", [("ragged", True), ("gather", True), ("capacity", False), ("dense", False)]
)
def test_only_dropless_rows_pile_up(transport, busier):
  """Buffers of fixed size cost the same however few of their rows are chosen."""
  d = tiny.deployment(Strategy(expert=4), transport=transport)
  even, uneven = (step_time(d, assumed).matmuls["experts"] for assumed in (Assumptions(), Assumptions(popularity=ROWS)))
  assert (uneven > even) is busier
  sent = [step_time(d, assumed).exchange for assumed in (Assumptions(), Assumptions(popularity=ROWS))]
  assert sent[1] == pytest.approx(sent[0] * (1.5 if transport == "ragged" else 1))
  more = memory(d, 1.5).dispatch > memory(d).dispatch
  assert more is (transport == "ragged")  # gather has room for the worst routing anyway


PLAN = [
  "plan",
  "--model",
  "mixtral-8x7b",
  "--cluster",
  "dgx_h100",
  "--devices",
  "16",
  "--transport",
  "ragged",
  "--json",
]


def test_an_uneven_load_slows_the_best_plan(tmp_path, capsys):
  (tmp_path / "rows.json").write_text(json.dumps({"rows_by_expert": [8, 1, 1, 1, 1, 1, 1, 1]}))
  steps = []
  for load in ("1", "power:1.2", str(tmp_path / "rows.json")):
    assert main([*PLAN, "--json", "--load", load]) == 0
    steps.append(json.loads(capsys.readouterr().out)["plans"][0]["latency_s"])
  assert steps[0] < min(steps[1:])


def test_what_the_busiest_device_costs_is_shown(tmp_path, capsys):
  """In time and in memory, beside the same plan with an even load."""
  even = dataclasses.replace(tiny.deployment(Strategy(expert=4), transport="ragged"), model=tiny.model(d_expert=1024))
  d = dataclasses.replace(even, assumptions=Assumptions(popularity=ROWS))
  hot, cold = estimate(d), estimate(even)
  s, size = hot.time.total_s - cold.time.total_s, hot.memory.total - cold.memory.total
  assert s > 0 and size > 0
  costs = f"{units.seconds(s)} of the step and {units.bytes_(size)} of its memory"
  assert uneven_load(hot) == f"1.5 times the mean rows of a device, which costs {costs}"
  assert uneven_load(cold) == ""
  for other, shown in ((d, True), (even, False)):
    (tmp_path / "plan.yaml").write_text(deployment_text(other))
    assert main(["estimate", str(tmp_path / "plan.yaml")]) == 0
    assert ("1.5 times the mean rows of a device, which costs " in capsys.readouterr().out) is shown


def test_the_guide_says_what_the_busiest_device_costs(tmp_path):
  question = "plan --model deepseek-v3 --cluster dgx_h100 --devices 64 --job decode --batch 256 --transport ragged"
  guides: list[str] = []
  for load in ("1", "1.5"):
    assert main([*question.split(), "--load", load, "--out", str(tmp_path / load)]) == 0
    guides.append((tmp_path / load / "deployment_guide.md").read_text())
  d = load_deployment(str(tmp_path / "1.5" / "plan.yaml"))
  assert "experts get as many rows as any." in guides[0]
  assert "1.5 times the mean" in uneven_load(estimate(d)) and f"experts get {uneven_load(estimate(d))}." in guides[1]


@pytest.mark.parametrize(
  "load, words",
  [
    ("much", "power:1.2"),
    ("power:", "power:1.2"),
    ("power:0.5", "above 1"),
    ("power:nan", "above 1"),
    ("power:inf", "finite"),
    ("power:1e400", "finite"),
    ("none.json", "no such file"),
    ("short.json", "each of the model's 8 experts"),
    ("zeros.json", "not all 0"),
    ("negative.json", "0 or more"),
    ("text.json", "a number for each expert"),
    ("key.json", "one key"),
  ],
)
def test_a_load_that_means_nothing(load, words, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  files = {"short": [1, 2], "zeros": [0] * 8, "negative": [-1] * 8, "text": ["a"] * 8}
  for name, rows in files.items():
    (tmp_path / f"{name}.json").write_text(json.dumps({"rows_by_expert": rows}))
  (tmp_path / "key.json").write_text(json.dumps({"rows": [1] * 8}))
  assert main([*PLAN, "--load", load]) == 2
  out, err = capsys.readouterr()
  assert out == "" and words in err and err.count("\n") == 1
  assert "assumptions." not in err  # which is a file's field, where an option was given


def test_an_exponent_must_be_above_one():
  with pytest.raises(UsageError, match="above 1"):
    Assumptions(popularity=1.0)
