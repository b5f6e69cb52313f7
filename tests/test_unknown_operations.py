"""What a user sees of a program that cannot be counted: one message, where it comes from, and exit code 1."""

import pathlib
import re

import pytest
from compiled_modules import WITH_TPU
from plans import edited

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.failures import NOT_COUNTED
from jaxmoe.cli.main import main
from jaxmoe.xla.child import run_in_child

LAYOUT = ("{data: 1, stage: 2, expert: 4, tensor: 2}", "{data: 1, stage: 1, expert: 4, tensor: 1}")
ALL_TO_ALL, GATHER = [LAYOUT], [LAYOUT, ("kind: train", "kind: train, transport: gather")]
LINE = r"jaxmoe/\S*\.py:\d+\)"
# What `planted_unknowns` takes away -> target, the plan, what the message says: what was met, where, and what to do.
PLANTED = {
  "operation": ("cpu", ALL_TO_ALL, rf"operation exponential \(exp\S*, \S*/exp, {LINE} is in no table of .*; add it"),
  "custom_call": (
    "cpu",
    ALL_TO_ALL,
    rf"custom call 'TopK' \(\S*, \S*router/top_k, {LINE} declares no work; declare it",
  ),
  "loop": ("cpu", GATHER, rf"cannot derive how often a loop runs \(while\S*, \S*/experts/\S*, {LINE}; declare it"),
  "two_loops": (
    "cpu",
    GATHER,
    rf"scope loop\[\S+ declares .* one loop or kernel, and two stand in it: jax's while \(in .*experts/.*, {LINE},"
    rf" and jax's while \(in .*, {LINE}; put each into",
  ),
  "kernel": (
    "tpu:v5e",
    GATHER,
    rf"custom call 'tpu_custom_call' \(\S*, \S*/experts/\S*, {LINE} declares no work; declare it",
  ),
}
TARGETS = [pytest.param(name, marks=WITH_TPU) if PLANTED[name][0] != "cpu" else name for name in PLANTED]


@pytest.fixture
def planted(monkeypatch):
  """Makes the compiling process forget one thing that it knows."""

  def plant(unknown):
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent), prepend=":")
    monkeypatch.setattr(
      "jaxmoe.xla.verify.run_in_child",
      lambda _, *a, **options: run_in_child(f"planted_unknowns:{unknown}", *a, **options),
    )

  return plant


@pytest.mark.parametrize("unknown", TARGETS)
def test_one_message_and_exit_code_1(unknown, planted, capsys, tmp_path):
  target, edits, message = PLANTED[unknown]
  (tmp_path / "plan.yaml").write_text(edited(*edits))
  planted(unknown)
  assert main(["verify", str(tmp_path / "plan.yaml"), "--target", target]) == ExitCode.INTERNAL_ERROR
  out, err = capsys.readouterr()
  assert out == "" and "Traceback" not in err
  (said,) = (line for line in err.splitlines() if line.startswith("jaxmoe: "))
  assert err.endswith(f"{said}\n") and said.startswith(f"jaxmoe: {NOT_COUNTED}: ")
  assert re.search(message, said)
