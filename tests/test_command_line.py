"""What the command line does beside its answer: streams, warnings, sources of numbers, and errors of its child."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from plans import edited

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_deployment
from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import estimate
from jaxmoe.report.estimate import tables
from jaxmoe.xla.child import ChildFailed


def shell(line, **environment):
  """Exit code, stdout and stderr of a bash command line in which `jaxmoe` is ours."""
  ours = f'jaxmoe() {{ {shlex.quote(sys.executable)} -m jaxmoe "$@"; }}; set -o pipefail; {line}'
  path = os.pathsep.join(filter(None, sys.path))
  done = subprocess.run(
    ["bash", "-c", ours], env={**os.environ, "PYTHONPATH": path, **environment},
    capture_output=True, text=True, check=False, timeout=60,
  )  # fmt: skip
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("verb", ["deployments", "deployments --json", "place ep64_tp2", "--help"])
@pytest.mark.parametrize("stream, words", [("/dev/full", "No space left"), ("&-", "stdout is closed")])
def test_a_stdout_that_cannot_be_written_is_one_line_and_no_bug(verb, stream, words):
  code, _, err = shell(f"jaxmoe {verb} >{stream}")
  assert code == ExitCode.USAGE
  assert err.startswith("jaxmoe: ") and err.count("\n") == 1 and words in err and "internal" not in err


@pytest.mark.parametrize("stream", ["/dev/full", "&-"])
@pytest.mark.parametrize("verb, expected", [("place nope", 2), ("plac", 2), ("deployments", 0)])
def test_a_stderr_that_cannot_be_written_changes_no_code_and_no_answer(verb, expected, stream):
  code, out, _ = shell(f"jaxmoe {verb} 2>{stream}")
  assert code == expected
  assert ("ep64_tp2" in out) == (expected == 0)


@pytest.mark.parametrize("verb", ["deployments", "--help"])
def test_a_reader_that_leaves_is_no_error(verb):
  code, _, err = shell(f"jaxmoe {verb} | head -0; exit ${{PIPESTATUS[0]}}")
  assert (code, err) == (0, "")


@pytest.mark.parametrize("verb", ["place", "estimate", "verify", "audit", "model show"])
def test_nobodys_home_is_named(verb, capsys):
  assert main([*verb.split(), "~nouser/x.yaml"]) == ExitCode.USAGE
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and "~nouser/x.yaml: expected a path" in err


def test_a_home_is_found(tmp_path, monkeypatch, capsys):
  (tmp_path / "plan.yaml").write_text(edited())
  monkeypatch.setenv("HOME", str(tmp_path))
  assert main(["place", "~/plan.yaml"]) == 0
  assert capsys.readouterr().out.startswith("tiny: ")


@pytest.mark.parametrize("verb", ["place", "estimate", "verify"])
def test_warnings_go_to_stderr(verb, monkeypatch, capsys):
  monkeypatch.setattr(Deployment, "warnings", property(lambda _: ("too long", "too wide")), raising=False)
  monkeypatch.setattr("jaxmoe.xla.verify.verify", _stopped)
  main([verb, "ep64_tp2"])
  out, err = capsys.readouterr()
  assert err.splitlines()[:2] == ["warning: too long", "warning: too wide"] and "too long" not in out


def _stopped(*_):
  raise ChildFailed("the process ended; its last lines:\n" + "\n".join(f"line {i} {'x' * 100}" for i in range(12)))


def test_a_dead_compiler_is_shown_with_its_last_line(monkeypatch, capsys):
  monkeypatch.setattr("jaxmoe.xla.verify.verify", _stopped)
  assert main(["verify", "ep64_tp2"]) == ExitCode.INTERNAL_ERROR
  err = capsys.readouterr().err
  assert all(f"line {i} " in err for i in range(12)) and "report" in err


def test_a_bad_target_is_refused(capsys):
  for target, words in [("", "got ''"), ("cpu:99999999", "at most 2048"), ("cpu:" + "9" * 5000, "at most 2048")]:
    assert main(["verify", "ep64_tp2", "--target", target]) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and len(err) < 400


def test_every_number_names_its_source(capsys):
  assert _json(capsys, "model", "show", "mixtral-8x7b")["sources"] == {"model": "document", "parameters": "formula"}
  for verb in ("place", "estimate"):
    assert _json(capsys, verb, "ep64_tp2")["source"] == "formula"
  main(["model", "show", "mixtral-8x7b"])
  out = capsys.readouterr().out
  assert "mixtral-8x7b (document)\n" in out and "Parameters (formula)\n" in out
  main(["place", "ep64_tp2"])
  assert capsys.readouterr().out.splitlines()[0].endswith("(formula)")


def _json(capsys, *verb):
  assert main([*verb, "--json"]) == 0
  return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name, kept", [("tp8_pp4_ep4_dp4", False), ("ep64_tp2", True)])
def test_only_serving_keeps_a_cache(name, kept):
  summary = tables(estimate(load_deployment(name)))[0]
  assert ("cache a token" in [row[0] for row in summary.rows]) == kept
  assert [row[2] for row in summary.rows if row[0] in ("devices", "job")] == ["document", "document"]
