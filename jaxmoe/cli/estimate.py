"""`jaxmoe estimate`: what the formulas say about a deployment."""

from typing import Annotated

import typer

from jaxmoe.cli.loading import DeploymentArgument, deployment_of
from jaxmoe.cli.output import write, write_json, write_tables


def run(
  deployment: DeploymentArgument,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Predict memory, FLOPs, communication, time and throughput."""
  from jaxmoe.cost.estimate import estimate
  from jaxmoe.report.estimate import document, tables, verdict

  prediction = estimate(deployment_of(deployment))
  if as_json:
    write_json(document(prediction))
    return
  write(verdict(prediction) + "\n\n")
  write_tables(tables(prediction))
