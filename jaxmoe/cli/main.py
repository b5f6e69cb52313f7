"""The command line: verbs are registered here, and every error leaves as one message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from jaxmoe import __version__
from jaxmoe.cli import audit, demo, deployments, estimate, model, place, verify
from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.output import silence_stdout, write
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import MissingError, UsageError

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
app.command("estimate")(estimate.run)
app.command("audit")(audit.run)
app.command("verify")(verify.run)
app.command("demo")(demo.run)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line and returns its exit code; JAXMOE_DEBUG=1 adds the traceback of an error."""
  try:
    app(args=list(sys.argv[1:] if argv is None else argv), prog_name="jaxmoe")
    return ExitCode.DONE
  except SystemExit as exit_request:
    return _code(exit_request.code)
  except BrokenPipeError:
    silence_stdout()
    return ExitCode.DONE
  except UsageError as error:
    return _report(f"jaxmoe: {error}", ExitCode.USAGE)
  except MissingError as error:
    return _report(f"jaxmoe: {error}", ExitCode.MISSING)
  except Exception as error:  # the last line of defence: a newcomer never sees a traceback
    what = f"{type(error).__name__}: {shown(error)}"
    return _report(
      f"jaxmoe: internal error: {what}; please report it with the output of JAXMOE_DEBUG=1",
      ExitCode.INTERNAL_ERROR,
    )


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
    traceback.print_exc()
  print(message, file=sys.stderr)
  return code


def _code(requested: object) -> int:
  if requested is None:
    return ExitCode.DONE
  return requested if isinstance(requested, int) else ExitCode.INTERNAL_ERROR


if __name__ == "__main__":
  sys.exit(main())
