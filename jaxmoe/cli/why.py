"""`jaxmoe why`: one deployment against another, term by term."""

from typing import Annotated

import typer

from jaxmoe.cli.loading import deployment_of
from jaxmoe.cli.output import write, write_json, write_tables

HELP = "A deployment of the catalogue, or a YAML file."


def run(
  a: Annotated[str, typer.Argument(metavar="A", help=HELP)],
  b: Annotated[str, typer.Argument(metavar="B", help="The same, of the same model.")],
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Explain why B is faster or slower than A, and which needs more memory, term by term."""
  from jaxmoe.cost.estimate import estimate
  from jaxmoe.planner.why import why
  from jaxmoe.report.why import document, tables, verdict

  found = why(estimate(deployment_of(a)), estimate(deployment_of(b)))
  if as_json:
    write_json(document(found))
    return
  write(verdict(found) + "\n\n")
  write_tables(tables(found))
