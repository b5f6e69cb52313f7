"""Deployments of the catalogue that the planner found: they say how, are found again, and what they say is compiled."""

import dataclasses
import json
import pathlib
import shlex

import pytest
from compiled_modules import WITH_CUDA, WITH_TPU

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import deployment_names, document_names, load_cluster, load_deployment, load_model
from jaxmoe.cost.estimate import estimate
from jaxmoe.model.support import check_runnable

NAMES = [f"{model}-{kind}" for model in ("mixtral-8x7b", "qwen3-30b-a3b") for kind in ("decode", "prefill", "train")]


def quick(*names):
  """All names, of which only these are quick."""
  return [pytest.param(name, marks=[] if name in names else [pytest.mark.slow]) for name in NAMES]


def test_documents_come_first_and_nothing_else_is_in_the_catalogue():
  assert list(deployment_names()) == [*document_names(), *NAMES]
  assert all(load_deployment(name).document for name in document_names())


def test_the_readme_shows_all_of_them_by_three_compilers():
  """`make docs` fills the table with what `jaxmoe verify all` says."""
  table = (pathlib.Path(__file__).parents[1] / "README.md").read_text().partition("<!-- table of: verified -->\n")[2]
  header, _, *rows = table.partition("<!-- end of table -->")[0].splitlines()
  assert all(f"`--target {target}`" in header for target in ("cpu", "tpu", "cuda"))
  assert [row.split("`")[1] for row in rows] == list(deployment_names())
  assert all(row.count("agrees") == 3 for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_what_it_claims(name):
  """Name, job and model are its name's; it builds, so it is legal; it runs here; and it fits by the formulas."""
  d = load_deployment(name)
  model, kind = name.rsplit("-", 1)
  assert (d.name, d.document, d.claims, d.job.kind) == (name, None, (), kind)
  assert d.model == load_model(model) and d.cluster == load_cluster("tpu_v5p")
  assert d.title == f"jaxmoe plan --model {model} --cluster tpu_v5p --devices 64 --job {kind} --runnable --reserve 40GB"
  assert d.strategy.devices == 64
  check_runnable(d)
  assert estimate(d).memory.total <= 95e9 - 40e9


@pytest.mark.parametrize("name", quick("mixtral-8x7b-train", "qwen3-30b-a3b-train"))
def test_the_planner_finds_it_again(name, tmp_path):
  """What its command writes is the file, but for name and title."""
  kept = load_deployment(name)
  assert main([*shlex.split(kept.title)[1:], "--out", str(tmp_path)]) == ExitCode.DONE
  found = load_deployment(str(tmp_path / "plan.yaml"))
  assert dataclasses.replace(found, name=name, title=kept.title) == kept, "run `make plans`"


@pytest.mark.parametrize("name", quick("qwen3-30b-a3b-prefill"))
def test_a_plan_verifies_on_cpu(name, capsys):
  assert_agrees(name, "cpu", capsys)


@WITH_TPU
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_verifies_on_the_slice_that_it_is_for(name, capsys):
  """Temporaries count there: the compiler finds room for all."""
  assert_agrees(name, "tpu", capsys)


@WITH_CUDA
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_verifies_on_nvidia(name, capsys):
  assert_agrees(name, "cuda", capsys)


def assert_agrees(name, target, capsys):
  assert main(["verify", name, "--target", target, "--json"]) == ExitCode.DONE
  found = json.loads(capsys.readouterr().out)
  assert found["ok"] and found["fits"] and found["devices"] == load_deployment(name).strategy.devices
  assert found["compiler_peak_bytes"] < 6e9
  assert len(found["checks"]) >= 15 and all(check["ok"] for check in found["checks"])


def test_the_list_says_who_planned_what(capsys):
  assert main(["deployments", "--json"]) == 0
  sources = {d["name"]: d["source"] for d in json.loads(capsys.readouterr().out)["deployments"]}
  assert sources == dict.fromkeys(document_names(), "document") | dict.fromkeys(NAMES, "planner")
  assert list(sources) == list(deployment_names())
