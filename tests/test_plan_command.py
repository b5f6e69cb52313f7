"""`jaxmoe plan` from end to end: verdict, tables, one JSON document, exit codes, and what it may not import."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from imports import JAX_FAMILY

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.job import Job
from jaxmoe.model.support import check_runnable
from jaxmoe.planner.answer import TIME_TO_FIRST_TOKEN_LENGTHS, answer
from jaxmoe.planner.question import Constraints, Question, serving_batches
from jaxmoe.planner.space import runnable_space
from jaxmoe.report.plan import document as plan_document

TRAIN = "plan --model deepseek-v3 --cluster dgx_h100 --devices 256 --batch 256"
PREFILL = "plan --model mixtral-8x7b --cluster dgx_h100 --devices 8 --job prefill --batch 8 --sequence-length 2048"
DECODE = "plan --model mixtral-8x7b --cluster dgx_h100 --devices 8 --job decode"
TOO_LARGE = "plan --model deepseek-v3 --cluster dgx_h100 --devices 8 --batch 256"


@pytest.fixture
def run(capsys):
  """Exit code, stdout and stderr of a command line."""

  def of(line):
    code = main(line.split())
    return code, *capsys.readouterr()

  return of


@pytest.fixture
def document(run):
  def of(line):
    code, out, _ = run(f"{line} --json")
    return code, json.loads(out)  # one document, and nothing beside it

  return of


@pytest.mark.parametrize("line", [TRAIN, PREFILL, DECODE], ids=["train", "prefill", "decode"])
def test_the_verdict_comes_first(line, run):
  code, out, err = run(line)
  assert (code, err) == (ExitCode.DONE, "")
  verdict = out.splitlines()[0]
  devices = 256 if line == TRAIN else 8
  for words in (f"= {devices} devices", "a step", "tokens/s", "MFU", "a device", "keep every limit", "(formula)"):
    assert words in verdict
  assert "Plans" in out and "Choices" in out and "Plans left out" in out
  assert "does not fit the memory of a device" in out and "the same plan as one with other axes" in out


@pytest.mark.parametrize("line", [TRAIN, PREFILL, DECODE], ids=["train", "prefill", "decode"])
def test_one_versioned_document(line, document):
  code, found = document(line)
  assert (code, found["schema_version"]) == (ExitCode.DONE, 1)
  assert 1 <= len(found["plans"]) <= 10 and found["plans_fitting"] >= len(found["plans"])
  assert found["plans_fitting"] <= found["plans_priced"] <= found["plans_considered"]
  assert sum(row["plans"] for row in found["rejected"]) == found["plans_considered"] - found["plans_fitting"]
  assert found["shortage"] is None and found["assumptions"]["load"] == 1


@pytest.mark.parametrize("line", [TRAIN, f"{TOO_LARGE} --top 1"], ids=["plans", "shortage"])
def test_every_number_says_where_it_comes_from(line, document):
  _, found = document(line)
  assert found["source"] == "formula"
  plans = [*found["plans"], *filter(None, (found["closest"], found["nearest_fitting"]))]
  assert plans and all(plan["source"] == "formula" for plan in plans)


@pytest.mark.parametrize("line", [TRAIN, PREFILL, f"{TOO_LARGE} --top 1"], ids=["plans", "first tokens", "shortage"])
def test_tables_of_predictions_have_a_column_of_sources(line, run):
  """Counts and choices have no source but the search itself."""
  _, out, _ = run(line)
  blocks = dict(re.findall(r"^([A-Z][^\n]*)\n\n((?:[^\n]+\n)+)", out, flags=re.MULTILINE))
  counted = {"Choices", "Plans left out"}
  assert {"Plans left out"} <= set(blocks)
  for title, table in blocks.items():
    header, *rows = table.splitlines()
    if title not in counted and not title.startswith("jaxmoe"):
      assert header.split()[-1] == "source" and all(row.split()[-1] == "formula" for row in rows), title


def test_top_is_the_number_of_plans(document):
  assert len(document(f"{TRAIN} --top 3")[1]["plans"]) == 3
  assert len(document(f"{TRAIN} --top 25")[1]["plans"]) == 25


def test_plans_come_best_first_and_fit(document):
  plans = document(TRAIN)[1]["plans"]
  seconds = [plan["latency_s"] for plan in plans]
  assert seconds == sorted(seconds)
  assert len({json.dumps(plan, sort_keys=True) for plan in plans}) == len(plans)


def test_a_limit_is_kept(document):
  free = document(PREFILL)[1]["plans"][0]["latency_s"]
  code, found = document(f"{PREFILL} --objective devices --max-ttft {2.5 * free * 1e3:.6f}ms")
  assert code == ExitCode.DONE
  assert found["plans"][0]["latency_s"] <= 2.5 * free
  assert found["constraints"]["max_step_s"] == pytest.approx(2.5 * free)


@pytest.mark.parametrize(
  "line, words",
  [
    (TOO_LARGE, ["memory is short", "iB too many", "most of it is"]),
    (f"{TRAIN} --max-step 1ms", ["time is short", "1.00 ms are allowed", "too long"]),
    (f"{DECODE} --min-tokens-per-ms 100000", ["time is short", "makes", "and 100000 tokens/ms are asked for"]),
    (f"{PREFILL} --reserve 79GB", ["memory is short", "of the 954 MiB"]),
    ("plan --model deepseek-v3 --cluster dgx_h100 --devices 1", ["deepseek-v3 on 1 device of dgx_h100"]),
  ],
  ids=["memory", "step", "rate", "reserve", "one device"],
)
def test_no_plan(line, words, run):
  """Exit code 3: one sentence says what is short and by how much."""
  code, out, err = run(line)
  assert (code, err) == (ExitCode.NO_PLAN, "")
  first = out.splitlines()[0]
  assert first.startswith("no plan: ") and all(text in first for text in words), first


def test_no_plan_names_the_nearest_that_fits(run, document):
  code, out, _ = run(TOO_LARGE)
  assert code == ExitCode.NO_PLAN
  assert "Memory of the closest plan" in out and "The nearest plan that fits" in out
  code, found = document(TOO_LARGE)
  devices = found["nearest_fitting"]["devices"]
  assert (code, found["plans"]) == (ExitCode.NO_PLAN, [])
  assert document(TOO_LARGE.replace("--devices 8", f"--devices {devices}"))[0] == ExitCode.DONE
  assert document(TOO_LARGE.replace("--devices 8", f"--devices {devices // 2}"))[0] == ExitCode.NO_PLAN


@pytest.mark.parametrize("limit", ["--max-ttft 1us", "--min-tokens-per-ms 1e9"])
def test_where_time_is_short_its_terms_are_shown(limit, run, document):
  """Not the memory, of which there is enough; and how far a plan was looked for."""
  _, out, _ = run(f"{PREFILL} {limit}")
  assert "Time of one step of the closest plan" in out and "Memory of the closest plan" not in out
  assert f"none up to {8 << 3:,} devices" in out
  found = document(f"{PREFILL} {limit}")[1]
  assert found["nearest_fitting"] is None and found["nearest_fitting_most_devices"] == 8 << 3
  table = out[out.index("Time of one step of the closest plan") :].split("\n\n")[1]
  terms = [name.replace("_", " ") for name, s in found["closest"]["time_s"].items() if s]
  assert len(terms) > 3 and all(re.search(rf"^{term} ", table, re.MULTILINE) for term in terms)


def test_the_plan_that_comes_nearest_makes_most_where_tokens_are_short(document):
  """Not the one with the shortest step, which is of the smallest batch."""
  best = document(f"{DECODE} --objective throughput")[1]["plans"][0]
  closest = document(f"{DECODE} --min-tokens-per-ms 1e6")[1]["closest"]
  assert closest["tokens_per_s"] == pytest.approx(best["tokens_per_s"])


def test_times_to_first_token(run, document):
  """Of the lengths from 128 to 10,240 and of the job's own, longer prompts take longer."""
  _, found = document(PREFILL)
  times = {int(length): s for length, s in found["time_to_first_token_s"].items()}
  assert set(times) == {*TIME_TO_FIRST_TOKEN_LENGTHS, 2048, 32_768} and {128, 10_240} <= set(times)
  assert [times[length] for length in sorted(times)] == sorted(times.values())
  assert times[2048] == pytest.approx(found["plans"][0]["latency_s"])
  _, out, _ = run(PREFILL)
  assert "Time to first token" in out and "10,240" in out


def test_a_prompt_that_does_not_fit_has_no_time_to_first_token(run, document):
  """Of a plan for many short prompts; the cache alone of longer ones is more than a device has."""
  line = PREFILL.replace("--batch 8 --sequence-length 2048", "--batch 1024 --sequence-length 128 --runnable")
  _, found = document(line)
  used = {int(length): size for length, size in found["time_to_first_token_memory_bytes"].items()}
  late = {int(length) for length, s in found["time_to_first_token_s"].items() if s is None}
  assert late == {length for length, size in used.items() if size > load_cluster("dgx_h100").memory_bytes}
  assert 128 not in late and 10_240 in late
  cache = 2 * 32 * 8 * 128 * 2  # of a token: keys and values of 8 heads in 32 layers, 2 bytes each
  assert used[10_240] - used[512] >= 1024 / 8 * (10_240 - 512) * cache
  assert re.search(r"^ *10,240 +does not fit +\d", run(line)[1], re.MULTILINE)


def test_a_prompt_must_leave_the_reserve_free():
  q = Question(
    model=load_model("mixtral-8x7b"),
    cluster=load_cluster("dgx_h100"),
    devices=8,
    job=Job(kind="prefill", batch=8, sequence_length=128),
    space=runnable_space("prefill"),
  )
  found = answer(q, 1)
  times, used = (plan_document(found)[f"time_to_first_token_{what}"] for what in ("s", "memory_bytes"))
  assert times["10240"] is not None
  free = q.cluster.memory_bytes - used["10240"]
  for reserve, fits in ((free, True), (free + 1, False)):
    asked = dataclasses.replace(q, constraints=Constraints(reserve_bytes=int(reserve)))
    times = plan_document(dataclasses.replace(found, question=asked))["time_to_first_token_s"]
    assert (times["10240"] is not None) is fits and times["128"] is not None


@pytest.mark.parametrize("line", [TRAIN, DECODE], ids=["train", "decode"])
def test_other_jobs_have_no_first_token(line, run, document):
  assert "Time to first token" not in run(line)[1]
  assert document(line)[1]["time_to_first_token_s"] is None


@pytest.mark.parametrize("length", [65_537, 1 << 20, 1 << 24])
def test_a_long_cache_leaves_fewer_batches_to_choose_from(length, run):
  """Of 2^36 tokens at most; a batch that nobody gave is nobody's mistake."""
  batches = serving_batches(24, length)
  assert batches and max(batches) * length <= 1 << 36 < 2 * max(batches) * length
  assert serving_batches(24, 4096)[-2:] == (3 << 18, 1 << 20)
  if length < 1 << 24:
    assert run(f"{DECODE} --sequence-length {length}")[0] == ExitCode.DONE
  else:  # of which not one fits
    assert run(f"{DECODE} --sequence-length {length}")[0] == ExitCode.NO_PLAN


def test_serving_chooses_its_batch(document):
  """The best for throughput is larger than the best for latency, and a batch that is given is kept."""
  batches = {
    objective: document(f"{DECODE} --objective {objective}")[1]["plans"][0]["choices"]["batch"]
    for objective in ("latency", "throughput")
  }
  assert int(batches["latency"]) < int(batches["throughput"])
  assert document(f"{DECODE} --batch 96")[1]["plans"][0]["choices"]["batch"] == "96"


@pytest.mark.parametrize("kind", ["train", "prefill", "decode"])
def test_runnable_plans_can_be_run(kind):
  question = Question(
    model=load_model("mixtral-8x7b"),
    cluster=load_cluster("dgx_h100"),
    devices=32,
    job=Job(kind=kind, batch=32, sequence_length=1024),
    space=runnable_space(kind),
  )
  plans = answer(question, 30).plans
  assert len(plans) == 30
  for plan in plans:
    check_runnable(plan.deployment)


def test_a_runnable_plan_by_the_command_line(document):
  code, found = document("plan --model mixtral-8x7b --cluster dgx_h100 --devices 32 --runnable --batch 32 --top 30")
  assert code == ExitCode.DONE
  assert {plan["choices"]["tokens to experts"] for plan in found["plans"]} <= {"capacity", "gather"}
  assert {plan["choices"]["zero"] for plan in found["plans"]} == {"0"}


@pytest.mark.parametrize("transport", ["capacity", "gather", "ragged", "dense"])
def test_a_transport_that_is_asked_for(transport, document):
  """On one device too, where it has nothing to send."""
  line = f"plan --model olmoe-1b-7b --cluster dgx_h100 --devices 1 --job decode --batch 8 --transport {transport}"
  code, found = document(line)
  assert code == ExitCode.DONE
  assert {plan["choices"]["tokens to experts"] for plan in found["plans"]} == {transport}


def test_a_transport_asked_for_twice_is_searched_once(document):
  once, twice = (document(f"{DECODE}{' --transport gather' * times}")[1] for times in (1, 2))
  assert once["plans_considered"] == twice["plans_considered"]


def test_longer_sequences_than_the_model_knows_are_warned_of(run):
  code, out, err = run(f"{DECODE} --batch 8 --sequence-length 65536")
  assert code == ExitCode.DONE and err.count("\n") == 1
  assert err.startswith("warning: ") and "65536" in err and "32768" in err
  assert "warning" not in out
  warnings = json.loads(run(f"{DECODE} --batch 8 --sequence-length 65536 --json")[1])["warnings"]
  assert [f"warning: {warning}\n" for warning in warnings] == [err]
  assert run(f"{DECODE} --batch 8 --sequence-length 32768")[2] == ""


@pytest.mark.parametrize("options, warned", [
  ("--transport capacity --capacity-factor 0.01", True), ("--transport capacity --load 2", True),
  ("--runnable --load power:1.2", True), ("--transport capacity --load 1.25", False),
  ("--transport gather --load 2", False),
])  # fmt: skip
def test_tokens_that_a_full_buffer_drops_are_warned_of(options, warned, run):
  """And nobody computes them: no plan is faster than the hardware."""
  code, out, err = run(f"plan --model mixtral-8x7b --cluster dgx_h100 --devices 64 --job prefill {options} --json")
  assert code == ExitCode.DONE
  assert ("experts get up to" in err) is warned and err.count("warning") == warned
  assert all(0 < plan["mfu"] < 0.7 for plan in json.loads(out)["plans"])


def test_numbers_of_devices_that_are_no_powers_of_two(document):
  for devices in (12, 24, 96):
    code, found = document(f"plan --model mixtral-8x7b --cluster dgx_h100 --devices {devices} --job decode --batch 96")
    assert code == ExitCode.DONE and found["plans"][0]["devices"] == devices


@pytest.mark.parametrize("length, warned", [(65536, 1), (4096, 0)])
def test_the_files_of_a_plan_warn_of_long_sequences(length, warned, tmp_path, run):
  folder = tmp_path / "plan"
  assert run(f"{DECODE} --batch 8 --sequence-length {length} --out {folder}")[0] == ExitCode.DONE
  warnings = json.loads((folder / "plan.json").read_text())["warnings"]
  text = (folder / "deployment_guide.md").read_text()
  assert len(warnings) == warned == text.count("**Warning:**")
  assert all(f"\n\n**Warning:** {warning}.\n\n" in text for warning in warnings)


def test_prediction_layers_that_change_nothing_are_warned_of(run):
  assert "warning: --mtp changes nothing" in run(f"{DECODE} --batch 8 --mtp")[2]
  assert "warning: --mtp: decode keeps" in run(f"{TRAIN} --job decode --mtp".replace("256 --job", "1024 --job"))[2]
  assert run(f"{TRAIN} --mtp")[2] == ""


@pytest.mark.parametrize("line", [f"{TRAIN} --top 2", f"{PREFILL} --json", DECODE, TOO_LARGE])
def test_jax_is_not_imported(line):
  script = (
    "import json, sys\nfrom jaxmoe.cli.main import main\nmain(sys.argv[1:])\nprint(json.dumps(sorted(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", script, *line.split()], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  modules = json.loads(done.stdout.splitlines()[-1])
  assert not [name for name in modules if name.partition(".")[0] in JAX_FAMILY]
