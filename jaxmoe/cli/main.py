"""The command line: verbs are registered here, and every error leaves as one message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from jaxmoe import __version__
from jaxmoe.cli import audit, demo, deployments, estimate, measure, model, place, plan, verify, why
from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.failures import REFUSALS, message_and_code
from jaxmoe.cli.output import log, silence, write
from jaxmoe.cli.signals import cleaning_up

app = typer.Typer(
  name="jaxmoe",
  no_args_is_help=True,
  add_completion=False,
  rich_markup_mode=None,
  pretty_exceptions_enable=False,
)
app.command("deployments")(deployments.run)
app.add_typer(model.app, name="model")
app.command("place")(place.run)
app.command("plan")(plan.run)
app.command("estimate")(estimate.run)
app.command("why")(why.run)
app.command("audit")(audit.run)
app.command("verify")(verify.run)
app.command("measure")(measure.run)
app.command("demo")(demo.run)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line and returns its exit code; JAXMOE_DEBUG=1 adds the traceback of an error."""
  if sys.stderr is None:  # closed by the caller; `print` would write to stdout in its place
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
  if sys.stdout is None:
    return _report("jaxmoe: stdout is closed, and the answer goes there; send it to a file or a pipe", ExitCode.USAGE)
  try:
    with cleaning_up():
      app(args=list(sys.argv[1:] if argv is None else argv), prog_name="jaxmoe")
    return ExitCode.DONE
  except SystemExit as exit_request:
    left = isinstance(exit_request.__context__, BrokenPipeError)  # as `--help | head` does; typer makes it a 1
    return ExitCode.DONE if left else _code(exit_request.code)
  except BrokenPipeError:
    silence(sys.stdout)
    return ExitCode.DONE
  except Exception as error:
    if isinstance(error, OSError) and error.errno in REFUSALS:
      silence(sys.stdout)
    message, code = message_and_code(error)
    return _report(f"jaxmoe: {message}", code)


def _show_version(wanted: bool) -> None:
  if wanted:
    write(f"{__version__}\n")
    raise typer.Exit


@app.callback()
def _options(
  version: Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
  ] = False,
) -> None:
  """Deployment plans for Mixture-of-Experts transformers that prove themselves."""


def _report(message: str, code: ExitCode) -> ExitCode:
  if os.environ.get("JAXMOE_DEBUG") == "1":
    log(traceback.format_exc().rstrip())
  log(message)
  return code


def _code(requested: object) -> int:
  if requested is None:
    return ExitCode.DONE
  return requested if isinstance(requested, int) else ExitCode.INTERNAL_ERROR


if __name__ == "__main__":
  sys.exit(main())
