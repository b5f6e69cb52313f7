"""`jaxmoe place`: which device holds which layers, experts and parts of them."""

from typing import Annotated

import typer

from jaxmoe.cli.output import write_json, write_tables

DeploymentArgument = Annotated[
  str, typer.Argument(metavar="DEPLOYMENT", help="A deployment of the catalogue, or a YAML file.")
]


def run(
  deployment: DeploymentArgument,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Show every device's rank, mesh coordinates, host, layers and experts."""
  from jaxmoe.config.catalogue import load_deployment
  from jaxmoe.report.placement import document, table

  d = load_deployment(deployment)
  if as_json:
    write_json(document(d))
  else:
    write_tables([table(d)])
