"""`jaxmoe audit`: every number that a deployment document states, recomputed."""

from typing import Annotated

import typer

from jaxmoe.cli.loading import with_home
from jaxmoe.cli.output import write_json, write_tables

ALL = "all"


def run(
  deployment: Annotated[
    str,
    typer.Argument(metavar="DEPLOYMENT", help="A deployment of the catalogue, a YAML file, or all of the catalogue."),
  ],
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Recompute what a deployment's document claims, and say what contradicts what."""
  from jaxmoe.config.catalogue import deployment_names, load_deployment
  from jaxmoe.report.audit import document, tables

  names = deployment_names() if deployment == ALL else (deployment,)
  deployments = [load_deployment(with_home(name)) for name in names]
  if as_json:
    write_json(document(deployments))
  else:
    write_tables(tables(deployments))
