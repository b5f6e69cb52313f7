"""`jaxmoe measure`: run a deployment's step on the devices that are here, and time it."""

from typing import Annotated

import typer

from jaxmoe.cli.html_page import page_writer
from jaxmoe.cli.loading import DeploymentArgument, deployment_of
from jaxmoe.cli.output import write, write_json, write_tables
from jaxmoe.cli.progress import progress_display
from jaxmoe.meshes.errors import UsageError

MOST_FAKE_DEVICES = 128  # more of them starve the thread pool in a collective


def run(
  deployment: DeploymentArgument,
  reduced: Annotated[bool, typer.Option("--reduced", help="A small training copy with the same axes.")] = False,
  devices: Annotated[int, typer.Option(min=1, help="Devices of the reduced copy, at most.")] = 8,
  target: Annotated[str, typer.Option(help="local, the devices that are here; or cpu, fake ones.")] = "local",
  steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps to time.")] = 10,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
  html: Annotated[
    str | None,
    typer.Option(
      metavar="FILE", help="Compile and compare as verify does, and write one HTML page with the clock's numbers."
    ),
  ] = None,
) -> None:
  """Run and time the compiled step: median, spread, and the shares of compute, collectives and idling."""
  from jaxmoe.config.reduced import reduced as reduced_copy
  from jaxmoe.report.measured import document, tables, verdict
  from jaxmoe.xla.verify import measure, verify

  if target not in ("local", "cpu"):
    raise UsageError(f"--target must be local or cpu, got {target!r}: a step runs only on devices that are here")
  d = deployment_of(deployment)
  d = reduced_copy(d, devices) if reduced else d
  if target == "cpu" and d.strategy.devices > MOST_FAKE_DEVICES:
    raise UsageError(
      f"--target cpu runs at most {MOST_FAKE_DEVICES} fake devices, and the plan is {d.strategy.product}; use --reduced"
    )
  write_page = page_writer(html, d, needs_time=False)
  with progress_display() as progress:
    measured = measure(d, target, steps, progress)
    comparison = None if html is None else verify(d, target, progress)
  if comparison is not None:
    write_page(comparison, measured)
  if as_json:
    write_json(document(d, measured))
  else:
    write(verdict(d, measured) + "\n\n")
    write_tables(tables(d, measured))
