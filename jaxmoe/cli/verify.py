"""`jaxmoe verify`: compile a deployment's real step and compare it with the plan."""

from typing import Annotated

import typer

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.loading import DeploymentArgument, deployment_of
from jaxmoe.cli.output import write, write_json, write_tables
from jaxmoe.cli.progress import progress_display


def run(
  deployment: DeploymentArgument,
  target: Annotated[
    str,
    typer.Option(
      metavar="TARGET",
      help="Compile for: cpu or cpu:N fake devices; a TPU slice, tpu:v5p:4x4x8; or local, the devices that are here.",
    ),
  ] = "cpu",
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Compile at full size, compare with the prediction; exit code 4 if they disagree or a device is too small."""
  from jaxmoe.xla.verify import verify

  d = deployment_of(deployment)
  with progress_display() as progress:
    comparison = verify(d, target, progress)
  from jaxmoe.report.verification import document, tables, verdict

  if as_json:
    write_json(document(comparison))
  else:
    write(verdict(comparison) + "\n\n")
    write_tables(tables(comparison))
  if not comparison.ok:
    raise typer.Exit(ExitCode.DISAGREES)
