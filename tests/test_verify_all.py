"""`verify all` goes on whatever becomes of one deployment, and ends with the worst code."""

import json

import pytest
import tiny

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.failures import worst
from jaxmoe.cli.main import main
from jaxmoe.cli.verify_all import verify_all
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.child import ChildFailed, ChildStopped
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step
from jaxmoe.xla.failed import CompileFailed
from jaxmoe.xla.unknown import UnknownOperation
from jaxmoe.xla.verify import Options

NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def agreeing():
  d = tiny.deployment(Strategy(expert=2), kind="prefill")
  return compare(d, "cpu", compile_step(d)), d


FAILURES = {
  "does not load": (UsageError("no such field"), ExitCode.USAGE, "no such field"),
  "refused": (CompileFailed("too large", {"parameters": 1}), ExitCode.DISAGREES, "the compiler refuses the program"),
  "uncounted": (UnknownOperation("operation frobnicate"), ExitCode.INTERNAL_ERROR, "frobnicate"),
  "takes too long": (ChildStopped("ended after 3 s\nits last lines"), ExitCode.USAGE, "ended after 3 s"),
  "dies": (ChildFailed("the process ended with code -11\nmore"), ExitCode.INTERNAL_ERROR, "code -11"),
  "a fault of ours": (KeyError("oops"), ExitCode.INTERNAL_ERROR, "KeyError"),
  "lacks something": (MissingError("install it"), ExitCode.MISSING, "install it"),
}


@pytest.mark.parametrize("where", ["deployment_of", "verify"])
@pytest.mark.parametrize("name", FAILURES)
def test_one_that_fails_leaves_the_others(name, where, agreeing, monkeypatch, capsys):
  error, code, words = FAILURES[name]
  comparison, d = agreeing
  calls = []

  def load(name):
    calls.append(name)
    if where == "deployment_of" and name == "second":
      raise error
    return d

  def verify(*_):
    if where == "verify" and calls[-1] == "second":
      raise error
    return comparison

  monkeypatch.setattr("jaxmoe.config.catalogue.deployment_names", lambda: NAMES)
  monkeypatch.setattr("jaxmoe.cli.verify_all.deployment_of", load)
  monkeypatch.setattr("jaxmoe.xla.verify.verify", verify)
  comparison.compiled.seconds["in all"] = 1.0
  assert main(["verify", "all", "--json"]) == code
  out, err = capsys.readouterr()
  first, second, third = json.loads(out)["deployments"]
  assert calls == list(NAMES) and first["ok"] and third["ok"] and not second["ok"]
  assert words in second["verdict"] and words in err and "Traceback" not in err
  assert second["devices"] == (None if where == "deployment_of" else 2)
  assert main(["verify", "all"]) == code
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and lines[2].startswith("second") and lines[3].split()[3] == "agrees"


def test_an_interrupt_ends_all(monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("jaxmoe.xla.verify.verify", interrupted)
  with pytest.raises(KeyboardInterrupt):
    verify_all("cpu", Options(), as_json=False)


def test_the_worst_code_stands_for_all():
  assert worst([]) == worst([ExitCode.DONE, ExitCode.DONE]) == ExitCode.DONE
  assert worst([ExitCode.DISAGREES, ExitCode.USAGE, ExitCode.DONE]) == ExitCode.USAGE
  assert worst([ExitCode.INTERNAL_ERROR, ExitCode.MISSING, ExitCode.DISAGREES]) == ExitCode.INTERNAL_ERROR
