"""Children of the GPU benchmark: one that hangs or crashes costs its own case; who runs when, and with whom."""

import argparse
import importlib
import itertools
import pathlib
import signal
import subprocess
import sys
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu"
OURS, DENSE, MOSAIC = "jaxmoe", "dense matmul", "jax ragged_dot_mgpu"


@pytest.fixture
def script(monkeypatch):
  """Imports a module of the benchmark."""
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module


CHILD = """
import json, os, sys, time
for case in json.load(sys.stdin):
  index, does = case["index"], case.get("does")
  print(json.dumps({"begins": index, "seconds": case.get("seconds", 3)}), flush=True)
  if does == "hang":
    time.sleep(60)
  if does == "crash":
    os._exit(7)
  print("words that are no result")
  print(json.dumps({"index": index, "correct": True, "process": os.getpid()}), flush=True)
  if does == "lose":
    print('{"ind', end="", flush=True)
    os._exit(9)
"""


@pytest.fixture
def results(script, tmp_path):
  """What comes of cases that do this."""
  file = tmp_path / "script.py"
  file.write_text(CHILD)
  return lambda does, **more: list(script("guarded").results(str(file), [{"does": each} for each in does], 3.0, **more))


def test_a_case_that_hangs_or_crashes_costs_only_itself(results):
  found = results([None, "hang", None, "crash", None])
  assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
  assert [row["correct"] for row in found] == [True, False, True, False, True]
  assert "nothing came within 3 s" in found[1]["error"] and "ended with code 7" in found[3]["error"]


def test_a_child_that_dies_between_two_cases_costs_none(results):
  found = results([None, "lose", None, "lose"])
  assert [row["index"] for row in found] == [0, 1, 2, 3] and all(row["correct"] for row in found)
  assert [len(list(some)) for _, some in itertools.groupby(found, key=lambda row: row["process"])] == [2, 2]


def test_what_would_end_alike_is_not_tried(results):
  found = results(["crash", None, "crash", None], give_up=lambda index: [index, 2])
  assert [row["index"] for row in found] == [0, 2, 1, 3]
  assert "another such case ended its process" in found[1]["skipped"]


def test_the_clock_ends_it(results):
  start = time.monotonic()
  found = results([None, "hang", None], until=start + 2)
  assert time.monotonic() - start < 4
  assert [row.get("skipped") for row in found] == [None, "out of time", "out of time"]


def test_a_lost_device_ends_the_process(script, monkeypatch):
  context, ended = script("context"), []
  monkeypatch.setattr(context.os, "_exit", ended.append)
  context.leave_if_lost({"error": "out of memory"})
  monkeypatch.setattr(context, "answers", lambda: False)
  context.leave_if_lost({"median_us": 1.0})
  assert ended == []
  context.leave_if_lost({"error": "CUDA_ERROR_ILLEGAL_ADDRESS"})
  assert ended == [context.LOST]


def test_peers_run_after_ours_and_apart_from_them(script):
  cases, plan = script("timed_cases"), script("problems").plan()
  ours, peers = cases.of_ours(plan), cases.of_peers(plan)
  assert {case.who for case in ours} == {OURS, DENSE} and not {case.who for case in peers} & {OURS, DENSE}
  assert ours[0].leg == "layer" and ours[0].problem.model == "qwen3-30b-a3b"
  assert {case.who for case in peers} == set(cases.PEERS)
  assert len({case[1:] for case in ours}) == len(ours)
  assert {case.section for case in ours if case.problem.tokens == 64 and case.who == OURS} == {"decode"}
  sections = [case.section for case in ours if case.who == OURS]
  assert len(list(itertools.groupby(sections))) == len(set(sections))


def test_goals_peers_come_first_and_what_may_hang_last(script):
  cases, problems = script("timed_cases"), script("problems")
  peers = cases.of_peers(problems.plan())
  suspected = [(case.who, case.leg) == (MOSAIC, "weight_gradient") for case in peers]
  assert suspected == sorted(suspected) and any(suspected)
  named = [case.section in problems.GOAL_SECTIONS and case.who in cases.FIRST_PEERS for case in peers]
  assert named == sorted(named, reverse=True) and any(named)
  assert set(cases.alike(peers, len(peers) - 1)) == {i for i, each in enumerate(suspected) if each}


def test_what_a_launch_itself_takes_is_measured_beside_decoding(script):
  """A fast leg of few rows cannot be told from its launch otherwise; nothing is tuned for that."""
  cases, plan = script("timed_cases"), script("problems").plan()
  ours = [case for case in cases.of_ours(plan) if case.problem.model == "tiny"]
  assert [(case.leg, case.who) for case in ours] == [("up", OURS), ("down", OURS), ("down_fp8", OURS)]
  decode = next(section for section in plan if section.name == "decode")
  assert max(case.problem.floor_bytes(case.leg) for case in ours) < 1e-2 * min(
    problem.floor_bytes(leg) for problem in decode.problems for leg in decode.legs
  )
  assert not any(model == "tiny" for model, _ in script("tune_cases").ordered())
  assert not any(case.problem.model == "tiny" for case in cases.of_peers(plan))


def test_peers_can_be_left_out(script):
  cases, plan = script("timed_cases"), script("problems").plan()
  left = {case.who for case in cases.of_peers(plan, ["tokamax", MOSAIC])}
  assert left == {"Liger", "torch grouped_mm", "jax.lax.ragged_dot"}


STUB = """
import json, os, sys
for case in json.load(sys.stdin):
  print(json.dumps({"begins": case["index"]}), flush=True)
  if case["who"] == "tokamax triton" or (case["who"], case["leg"]) == ("jaxmoe", "up"):
    os._exit(1)
  print(json.dumps({"index": case["index"], "median_us": 1.0}), flush=True)
"""


def test_a_peer_that_crashes_costs_its_leg_and_ours_the_second_time(script, tmp_path, monkeypatch):
  kernels, timed_cases, problems = script("kernels"), script("timed_cases"), script("problems")
  (tmp_path / "timed.py").write_text(STUB)
  monkeypatch.setattr(kernels, "HERE", tmp_path)
  results = {"ceilings": {}, "environment": {"ragged_dot": "dense"}}
  options = argparse.Namespace(child=[], until=float("inf"))
  cases = [
    timed_cases.Case("any", problems.Problem(model, 64), leg, who)
    for model in ("seed", "mixtral", "qwen3-30b-a3b")
    for who in ("jaxmoe", "tokamax triton", "Liger")
    for leg in ("up", "down")
  ]
  found = dict(kernels.of_children(cases, results, options))
  said = lambda who, leg: [next(iter(found[case])) for case in cases if (case.who, case.leg) == (who, leg)]  # noqa: E731
  assert said("jaxmoe", "up") == ["error", "error", "skipped"]
  assert said("tokamax triton", "up") == said("tokamax triton", "down") == ["error", "skipped", "skipped"]
  assert said("jaxmoe", "down") == said("Liger", "up") == ["median_us"] * 3
  assert not any("correct" in row for row in found.values())


def test_words_that_are_no_text_cost_no_case(script, tmp_path):
  """Native libraries write to the standard output too."""
  file = tmp_path / "script.py"
  file.write_text(CHILD.replace('"words that are no result"', '"", end=""); os.write(1, b"\\xff\\n"'))
  found = list(script("guarded").results(str(file), [{}, {}], 3.0))
  assert [row["correct"] for row in found] == [True, True]


def test_words_that_are_no_result_are_no_sign_of_life(script, tmp_path):
  file = tmp_path / "script.py"
  file.write_text(CHILD.replace("time.sleep(60)", "[(time.sleep(0.3), print('still here')) for _ in range(30)]"))
  start = time.monotonic()
  found = list(script("guarded").results(str(file), [{"does": "hang", "seconds": 1}, {}], 3.0))
  assert time.monotonic() - start < 6
  assert "nothing came within 1 s" in found[0]["error"] and found[1]["correct"]


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
import guarded
for row in guarded.results(sys.argv[2], [{}, {}], 60.0):
  print(row["process"], flush=True)
"""


def test_a_child_ends_with_the_process_that_started_it(tmp_path):
  """It would keep the device from the next command."""
  (tmp_path / "parent.py").write_text(PARENT)
  child = "import os, sys, time\nsys.path.insert(0, sys.argv[1])\nimport guarded\nguarded.read_cases()\n"
  child += "guarded.say(index=0, process=os.getpid())\ntime.sleep(60)\n"
  (tmp_path / "child.py").write_text(child.replace("sys.argv[1]", repr(str(FOLDER))))
  command = [sys.executable, str(tmp_path / "parent.py"), str(FOLDER), str(tmp_path / "child.py")]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
    assert parent.stdout is not None
    process = int(parent.stdout.readline())
    parent.terminate()
  assert parent.returncode == -signal.SIGTERM
  start = time.monotonic()
  while alive(process) and time.monotonic() - start < 10:
    time.sleep(0.05)
  assert not alive(process)


def alive(process):
  """Neither gone nor waiting for somebody to ask how it ended."""
  try:
    return "\nState:\tZ" not in pathlib.Path(f"/proc/{process}/status").read_text()
  except OSError:
    return False


TOGETHER = """
import json, os, sys
cases = json.load(sys.stdin)
if not cases[0]["alone"]:
  print(json.dumps({"begins": cases[0]["index"], "together": True}), flush=True)
  if any(case["does"] for case in cases):
    os._exit(6)
for case in cases:
  print(json.dumps({"begins": case["index"]}), flush=True)
  if case["does"]:
    os._exit(7)
  print(json.dumps({"index": case["index"], "correct": True, "alone": case["alone"]}), flush=True)
"""


def test_what_ends_a_process_that_compiles_many_is_found(script, tmp_path):
  """And costs only itself: the process after it takes its cases one by one, and the next one all together again."""
  file = tmp_path / "script.py"
  file.write_text(TOGETHER)
  found = list(script("guarded").results(str(file), [{"does": index == 2} for index in range(5)], 3.0))
  assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
  assert [row.get("alone") for row in found] == [True, True, None, False, False]
  assert [row["correct"] for row in found] == [True, True, False, True, True]


@pytest.mark.parametrize("alone", [False, True])
def test_cases_are_compiled_together_unless_one_is_sought(alone, script, monkeypatch, capsys):
  problem, threads = script("problems").Problem("tiny", 16), []
  case = {"index": 0, "who": OURS, "leg": "down", "alone": alone}
  case |= {"swapped": False, "shape": {"height": 64, "width": 128, "stages": 4, "split_columns": True}}
  timed, tuned = script("timed"), script("tune_timed")
  for module, said in ((timed, {}), (tuned, ({}, None))):
    monkeypatch.setattr(module, "built", lambda builds, number: threads.append(number) or builds)
    monkeypatch.setattr(module, "time_one", lambda *_, said=said: said)
  timed.measure(problem, [case], {OURS: (argparse.Namespace(build=print), None)}, argparse.Namespace(dry_run=False))
  tuned.time_problem(problem, [{**case, "leg": "matmul"}], None, 16, 0)
  said = [line for line in capsys.readouterr().out.splitlines() if '"begins"' in line]
  assert [number > 0 for number in threads] == [not alone] * 2
  assert ['"together": true' in line for line in said] == [False, not alone, False] * 2
