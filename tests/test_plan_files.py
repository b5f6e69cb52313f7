"""A plan's folder: what is in it agrees with the search, is read back, and is written whole or not at all."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tiny
import yaml
from drawn_deployments import deployments
from hypothesis import HealthCheck, given, settings

from jaxmoe.cli import folder
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import (
  deployment_names,
  load_cluster,
  load_deployment,
  load_model,
  model_names,
  read_deployment,
)
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.plan_form import deployment_mapping, deployment_text
from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.planner.answer import answer
from jaxmoe.planner.pareto import Explored
from jaxmoe.planner.question import Question
from jaxmoe.planner.space import whole_space
from jaxmoe.report import launch, pareto_figure, units
from jaxmoe.report.plan_files import FILES

QUESTION = ["--model", "qwen3-30b-a3b", "--cluster", "dgx_h100", "--devices", "64"]


def written(path, *arguments):
  """Writes a folder through the command line."""
  assert main(["plan", *QUESTION, *arguments, "--out", str(path), "--top", "5"]) == 0
  return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
  return written(tmp_path_factory.mktemp("plans") / "plan")


def rows(file):
  return list(csv.DictReader(file.read_text().splitlines()))


# The deployment's file


def back(d):
  return read_deployment(deployment_text(d, "a comment"), origin="plan.yaml")


@given(deployments())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_a_drawn_deployment_reads_back(d):
  assert back(dataclasses.replace(d, title="Any title: even 'this' # one")) == dataclasses.replace(
    d, title="Any title: even 'this' # one"
  )


@pytest.mark.parametrize("name", deployment_names())
def test_a_deployment_of_the_catalogue_reads_back(name):
  """Claims and readings too."""
  assert back(load_deployment(name)) == load_deployment(name)


@pytest.mark.parametrize("name", model_names())
def test_every_model_reads_back_and_costs_the_same(name):
  precision = Precision(weights="bfloat16", gradients="float32", master="float32")
  job = Job(kind="train", batch=8, sequence_length=256, schedule="interleaved", chunks=2, microbatches=4, zero=2,
            remat="selective", transport="ragged", precision=precision)  # fmt: skip
  strategy = Strategy(data=2, stage=2, expert=2, context=2, sequence_parallel=True, order=AXES[::-1])
  cluster = load_cluster("gb200_nvl72")
  model = load_model(name, mtp=True)
  even = dataclasses.replace(model, vocab_size=model.vocab_size // 2 * 2)  # one has an odd number of words
  d = Deployment(name="x", title="", model=even, cluster=cluster, strategy=strategy, job=job)
  assert back(d) == d and estimate(back(d)).time == estimate(d).time


@pytest.mark.parametrize("kind", ["train", "prefill", "decode"])
def test_found_plans_read_back(kind):
  job = Job(kind=kind, batch=48, sequence_length=96)
  q = Question(model=tiny.model(num_layers=6), cluster=tiny.CLUSTER, devices=12, job=job, space=whole_space(kind))
  found = answer(q, 40).plans
  assert len(found) >= 20 and all(back(e.deployment) == e.deployment for e in found)


def test_names_that_a_file_cannot_spell_are_changed():
  d = tiny.deployment()
  odd = dataclasses.replace(d, name="1e5", model=dataclasses.replace(d.model, name="my model (new)"))
  assert back(odd).name == "1e5" and back(odd).model.name == "my-model-new-"
  assert back(dataclasses.replace(odd, name="---", title="a\nb")).name == "unnamed"
  assert back(dataclasses.replace(odd, name="é" * 90)).name == "unnamed"


def test_any_reader_of_yaml_takes_its_numbers():
  """YAML 1.1 too, in which `1e12` is text."""
  cluster = yaml.safe_load(deployment_text(tiny.deployment()))["cluster"]
  assert cluster["memory_bandwidth_bytes_per_s"] == 1e12 and cluster["tiers"][1]["latency_s"] == 1e-5


# The folder


def test_all_files_are_there_and_speak_of_one_plan(plan):
  d = load_deployment(str(plan / "plan.yaml"))
  answered = json.loads((plan / "plan.json").read_text())
  best = rows(plan / "candidates.csv")[0]
  assert set(FILES) <= {file.name for file in plan.iterdir()}
  assert answered["schema_version"] == 1
  assert d.name == answered["plans"][0]["deployment"] == best["plan"]
  assert estimate(d).time.total_s == answered["plans"][0]["time_s"]["total"] == float(best["step_s"])
  assert int(best["memory_bytes"]) == answered["plans"][0]["memory_bytes"]["total"]
  assert (plan / "deployment_guide.md").read_text().count(d.name) > 3


def test_candidates_are_ranked_and_the_front_is_known(plan):
  candidates, front = rows(plan / "candidates.csv"), rows(plan / "pareto.csv")
  assert [row["rank"] for row in candidates] == ["1", "2", "3", "4", "5"]
  assert list(candidates[0])[2:] == list(front[0])
  steps = [float(row["step_s"]) for row in candidates]
  assert steps == sorted(steps)
  points = [(float(row["step_s"]), int(row["memory_bytes"])) for row in front]
  assert points == sorted(points) and [y for _, y in points] == sorted((y for _, y in points), reverse=True)
  for row in candidates:
    point = (float(row["step_s"]), int(row["memory_bytes"]))
    beaten = any(s <= point[0] and b <= point[1] and (s, b) != point for s, b in points)
    assert row["on_pareto_front"] == str(not beaten).lower()
  assert candidates[0]["on_pareto_front"] == "true"


def test_parts_of_every_candidate_add_up(plan):
  """Classes of memory, and terms of time."""
  e = estimate(load_deployment(str(plan / "plan.yaml")))
  for row in rows(plan / "candidates.csv") + rows(plan / "pareto.csv"):
    assert sum(int(row[f"{name}_bytes"]) for name in dataclasses.asdict(e.memory)) == int(row["memory_bytes"])
    assert sum(float(row[f"{name}_s"]) for name in e.time.terms()) == pytest.approx(float(row["step_s"]))


@pytest.mark.parametrize("verb", [["estimate"], ["place", "--ranks", "0:8"], ["why"]], ids=lambda verb: verb[0])
def test_verbs_take_the_plan(verb, plan, capsys):
  paths = [str(plan / "plan.yaml")] * (2 if verb == ["why"] else 1)
  assert main([verb[0], *paths, *verb[1:]]) == 0
  assert "dp" in capsys.readouterr().out


def test_verify_says_what_it_cannot_run(plan, capsys):
  assert main(["verify", str(plan / "plan.yaml")]) == 2
  assert "can be planned but not run: it has" in capsys.readouterr().err
  assert "can be planned but not run: it has" in (plan / "deployment_guide.md").read_text()


def test_uneven_stages_are_estimated_and_placed(tmp_path, capsys):
  job = Job(kind="train", batch=8, sequence_length=16, microbatches=4, schedule="1f1b", precision=Precision())
  d = dataclasses.replace(tiny.deployment(), model=tiny.model(vocab_size=255), strategy=Strategy(stage=3), job=job)
  (tmp_path / "plan.yaml").write_text(deployment_text(d))
  assert main(["estimate", str(tmp_path / "plan.yaml")]) == 0
  capsys.readouterr()
  assert main(["place", str(tmp_path / "plan.yaml"), "--json"]) == 0
  assert [row["layers"] for row in json.loads(capsys.readouterr().out)["placement"]] == [[0, 1], [2], [3]]


# Checks


def test_all_checks_hold_and_carry_numbers(plan):
  found = json.loads((plan / "verification.json").read_text())
  names = {check["name"] for check in found["checks"]}
  assert found["ok"] is True and all(check["ok"] is True and check["numbers"] for check in found["checks"])
  assert {
    "device_product", "layers_sum", "experts_placed", "num_kv_heads_divides", "kv_heads_at_least_parts",
    "vocab_size_divides", "batch", "parameters_sum", "memory_fits", "plan_reads_back", "stages_balanced",
    "step_bounded_by_compute", "step_bounded_by_memory", "time_sum",
  } <= names  # fmt: skip


# The guide


ORDER = ["Model structure", "Experts", "Pipeline", "Tensors", "Sequences", "Data parallelism", "Placement", "Memory",
         "Communication", "Load balance", "Launch", "Verification"]  # fmt: skip


def test_the_guide_reasons_in_order(plan):
  text = (plan / "deployment_guide.md").read_text()
  headings = re.findall(r"^#+ (?:\d+\. )?(.*)$", text, re.MULTILINE)
  assert [name for name in headings if name in ORDER] == ORDER
  ends = ("| formula |", "| document |", "| source |", "--- |")
  assert all(line.endswith(ends) for line in text.splitlines() if line.startswith("|"))


def test_a_guide_of_one_plan_does_not_say_that_there_is_no_other(tmp_path):
  assert main(["plan", *QUESTION, "--batch", "64", "--out", str(tmp_path), "--top", "1"]) == 0
  text = (tmp_path / "deployment_guide.md").read_text()
  count = json.loads((tmp_path / "plan.json").read_text())["plans_fitting"]
  assert f"Of {count:,} plans that keep every limit, the best alone was asked for." in text
  assert "No other plan keeps every limit" not in text and count > 1


def test_the_guide_of_a_prefill_times_its_prompts(tmp_path):
  """As its answer does, between communication and load balance; memory names what was asked to stay free."""
  text = (written(tmp_path, "--job", "prefill", "--reserve", "3GiB") / "deployment_guide.md").read_text()
  times = json.loads((tmp_path / "plan.json").read_text())["time_to_first_token_s"]
  part = text[text.index("## 8. Communication") : text.index("## 9. Load balance")]
  for length, s in times.items():
    shown = "does not fit" if s is None else units.seconds(s)
    assert f"| {int(length):,} | {shown} |" in part
  assert {"128", "10240"} <= set(times) and "| reserve, of what is free | 3.00 GiB | " in text


def test_the_guide_names_the_best_plan_of_each_size(plan):
  """Of all that the search passes by (tests/test_pareto.py)."""
  text = (plan / "deployment_guide.md").read_text()
  model, cluster = load_model("qwen3-30b-a3b"), load_cluster("dgx_h100")
  job = Job(kind="train", batch=1024, sequence_length=4096)
  q = Question(model=model, cluster=cluster, devices=64, job=job, space=whole_space("train"))
  explored = Explored(q)
  best = answer(q, 1, explored.see).best
  for (axis, size), c in explored.by_size.items():
    e = explored.estimate(c)
    chosen = (
      "chosen"
      if size == best.deployment.strategy.size(axis)
      else f"{100 * (e.time.total_s / best.time.total_s - 1):+.3g} %"
    )
    assert re.search(rf"^\| {size} \| {c.name} \|.*\| {re.escape(chosen)} \|", text, re.MULTILINE), (axis, size, chosen)


def test_the_guides_mesh_is_the_strategys(plan):
  """The code of the guide, on as many numbers as there are devices."""
  import numpy as np

  d = load_deployment(str(plan / "plan.yaml"))
  code = re.search(r"```python\n(.*?)```", (plan / "deployment_guide.md").read_text(), re.DOTALL)[1]
  turned = Strategy(data=2, stage=4, expert=2, tensor=4, order=("expert", "stage", "tensor", "data"))
  other = dataclasses.replace(tiny.deployment(), strategy=turned)
  for text, strategy in ((code, d.strategy), (launch.mesh_code(other), turned)):
    line = next(line for line in text.splitlines() if line.startswith("devices ="))
    names = {"np": np, "jax": type("jax", (), {"devices": staticmethod(lambda: list(range(64)))})}
    exec(line, names)
    grid = names["devices"]
    assert grid.shape == tuple(strategy.size(axis) for axis in AXES)
    for axis in AXES:
      if strategy.size(axis) > 1:
        assert grid[tuple(int(axis == other) for other in AXES)] == strategy.stride(axis)


# Writing


def test_a_folder_in_use_is_kept_unless_forced(tmp_path, capsys):
  (tmp_path / "mine.txt").write_text("mine")
  (tmp_path / "pareto.svg").write_text("old")
  arguments = ["plan", *QUESTION, "--out", str(tmp_path)]
  assert main(arguments) == 2
  assert "is not empty" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 2
  assert main([*arguments, "--force"]) == 0
  assert (tmp_path / "mine.txt").read_text() == "mine"
  assert set(FILES) <= {file.name for file in tmp_path.iterdir()}
  stale = tmp_path / "pareto.svg"
  assert not stale.exists() or stale.read_text() != "old"


@pytest.mark.parametrize("name", ["plan.json", "verification.json", "pareto.svg"])
def test_nothing_is_replaced_where_a_directory_is_in_the_way(name, tmp_path):
  (tmp_path / name).mkdir()
  for file in set(FILES) - {name}:
    (tmp_path / file).write_text("old")
  with pytest.raises(ValueError, match=f"{name} in it is a directory"):
    folder.write_folder("--out", tmp_path, dict.fromkeys(FILES, b"new"), stale=["pareto.svg"])
  assert all((tmp_path / file).read_text() == "old" for file in set(FILES) - {name})


@pytest.mark.parametrize(
  "path, words",
  [("file", "got the file"), ("no/such", "parent is no directory"), ("", "got nothing"), ("x" * 300, "too long")],
)
def test_what_is_no_folder_is_refused(path, words, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("file").write_text("")
  assert main(["plan", *QUESTION, "--out", path]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and words in err
  assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("at", range(len(FILES)))
def test_nothing_is_left_of_a_failed_write(at, tmp_path, monkeypatch, capsys):
  """Whichever file the disk is full at."""
  count, write_bytes = 0, pathlib.Path.write_bytes

  def full(self, content):
    nonlocal count
    count += 1
    if count > at:
      raise OSError(28, "No space left on device")
    return write_bytes(self, content)

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(ValueError, match=r"--out: .* cannot be written: no space left on device"):
    folder.write_folder("--out", tmp_path / "plan", dict.fromkeys(FILES, b"x"))
  assert list(tmp_path.iterdir()) == []


def test_no_plan_no_files(tmp_path, capsys):
  assert main(["plan", *QUESTION[:-1], "1", "--out", str(tmp_path / "plan")]) == 3
  assert "nothing was written" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_without_matplotlib_there_is_a_line_and_no_figure(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pareto_figure.importlib.util, "find_spec", lambda name: None)
  path = written(tmp_path / "plan")
  assert "pip install 'jaxmoe[plot]'" in capsys.readouterr().err
  assert {file.name for file in path.iterdir()} == set(FILES)


def test_the_figure(tmp_path):
  pytest.importorskip("matplotlib")
  one, other = written(tmp_path / "a"), written(tmp_path / "b", "--force")
  assert (one / "pareto.png").read_bytes().startswith(b"\x89PNG")
  assert (one / "pareto.svg").read_text() == (other / "pareto.svg").read_text()


def test_the_search_alone_imports_neither_templates_nor_jax(tmp_path):
  """A folder needs jinja2, and never jax."""
  code = (
    "import sys\nfrom jaxmoe.cli.main import main\nassert main() == 0\n"
    "print([name for name in ('jax', 'jaxlib', 'jinja2', 'matplotlib') if name in sys.modules], file=sys.stderr)"
  )
  for more, modules in (([], "[]"), (["--out", str(tmp_path / "plan")], "['jinja2']")):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
      [sys.executable, "-c", code, "plan", *QUESTION, *more],
      capture_output=True,
      text=True,
      env=environment,
      check=True,
    )
    assert done.stderr.splitlines()[-1].replace(", 'matplotlib'", "") == modules


def test_serving_has_a_front_over_batches(tmp_path):
  path = written(tmp_path / "plan", "--job", "decode")
  front = rows(path / "pareto.csv")
  latencies = [float(row["step_s"]) for row in front]
  rates = [float(row["tokens_per_s_per_device"]) for row in front]
  assert latencies == sorted(latencies) and rates == sorted(rates)
  assert len({row["batch_sequences"] for row in front}) > 2


def test_mappings_are_plain(plan):
  """What JSON and YAML can both hold."""
  d = load_deployment(str(plan / "plan.yaml"))
  assert json.loads(json.dumps(deployment_mapping(d))) == deployment_mapping(d)


def test_a_runnable_plan_verifies(tmp_path, capsys):
  """From the search to the compiler."""
  sizes = dataclasses.asdict(tiny.model(d_model=64))
  (tmp_path / "model.json").write_text(json.dumps({key: value for key, value in sizes.items() if value is not None}))
  question = ["--model", str(tmp_path / "model.json"), "--cluster", "dgx_h100", "--devices", "8", "--batch", "16"]
  arguments = ["plan", *question, "--sequence-length", "32", "--runnable", "--out", str(tmp_path / "plan")]
  assert main(arguments) == 0
  assert "--target cpu" in (tmp_path / "plan" / "deployment_guide.md").read_text()
  capsys.readouterr()
  assert main(["verify", str(tmp_path / "plan" / "plan.yaml")]) == 0
  assert capsys.readouterr().out.startswith("agrees: ")
