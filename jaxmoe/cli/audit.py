"""`jaxmoe audit`: every number that a deployment document states, recomputed; and the planner's own plan beside its."""

from typing import Annotated

import typer

from jaxmoe.cli.loading import with_home
from jaxmoe.cli.output import write, write_json, write_tables

ALL = "all"


def run(
  deployment: Annotated[
    str,
    typer.Argument(metavar="DEPLOYMENT", help="A deployment of the catalogue, a YAML file, or all of the catalogue."),
  ],
  summary: Annotated[bool, typer.Option("--summary", help="Counts, the gravest findings, and the own plans.")] = False,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Recompute what a deployment's document claims, say what contradicts what, and plan the same better."""
  from jaxmoe.config.catalogue import document_names, load_deployment
  from jaxmoe.planner.own_plan import own_plans
  from jaxmoe.report import audit as report

  names = document_names() if deployment == ALL else (deployment,)
  deployments = [load_deployment(with_home(name)) for name in names]
  own = [own_plans(d) for d in deployments]
  if as_json:
    write_json(report.document(deployments, own))
  else:
    write("".join(f"{line}\n\n" for line in report.unclaimed(deployments)))
    write_tables((report.summary if summary else report.tables)(deployments, own))
