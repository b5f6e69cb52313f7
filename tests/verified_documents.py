"""`jaxmoe verify all` over the deployments that are taken from documents."""

import json

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import document_names


def assert_every_document_agrees(target, monkeypatch, capsys) -> list[dict]:
  """Every check holds, and no compile needs much memory; returns each document's entry."""
  monkeypatch.setattr("jaxmoe.config.catalogue.deployment_names", document_names)
  assert main(["verify", "all", "--target", target, "--json"]) == ExitCode.DONE
  entries = json.loads(capsys.readouterr().out)["deployments"]
  assert [entry["deployment"] for entry in entries] == list(document_names())
  for entry in entries:
    assert entry["ok"] and entry["checks_held"] == entry["checks"]
    assert entry["compiler_peak_bytes"] < 6e9
  return entries
