"""`jaxmoe verify all`: every deployment of the catalogue, whatever becomes of one of them."""

import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.failures import message_and_code, worst
from jaxmoe.cli.loading import deployment_of
from jaxmoe.cli.output import log, write_json, write_table
from jaxmoe.cli.progress import progress_display

if TYPE_CHECKING:
  from jaxmoe.report.verify_all import Outcome
  from jaxmoe.xla.verify import Options


def verify_all(target: str, options: "Options", as_json: bool) -> ExitCode:
  """Writes one row for each deployment; returns the worst exit code.

  Raises:
    UsageError, MissingError: no deployment could be compiled for `target`.
  """
  from jaxmoe.config.catalogue import deployment_names
  from jaxmoe.report.verify_all import document, table
  from jaxmoe.xla.target import Target

  Target.parse(target).require()  # what is missing for one is missing for all
  with progress_display() as progress:
    results = [
      _outcome(name, target, lambda line, name=name: progress(f"{name}: {line}"), options)
      for name in deployment_names()
    ]
  outcomes = [outcome for outcome, _ in results]
  if as_json:
    write_json(document(target, outcomes))
  else:
    summary = table(outcomes)
    write_table(summary.headers, summary.rows)
  return worst([code for _, code in results])


def _outcome(name: str, target: str, progress: Callable[[str], None], options: "Options") -> "tuple[Outcome, ExitCode]":
  from jaxmoe.report.verify_all import Outcome
  from jaxmoe.xla.verify import verify

  d = None
  try:
    d = deployment_of(name)
    comparison = verify(d, target, progress, options)
  except Exception as error:  # of any kind: the next deployment may be sound
    if os.environ.get("JAXMOE_DEBUG") == "1":
      log(traceback.format_exc().rstrip())
    message, code = message_and_code(error)
    log(f"{name}: {message}")
    return Outcome(name=name, deployment=d, target=target, refusal=message), code
  found = Outcome(name=name, deployment=d, target=comparison.target, comparison=comparison)
  return found, ExitCode.DONE if found.ok else ExitCode.DISAGREES
