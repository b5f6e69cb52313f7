"""`jaxmoe model show`: a model's dimensions and parameters."""

import dataclasses
from typing import Annotated, Any

import typer

from jaxmoe.cli.output import write_json, write_table
from jaxmoe.config.model import ModelConfig

app = typer.Typer(help="Look at models of the catalogue or of files.", no_args_is_help=True)

ModelArgument = Annotated[
  str, typer.Argument(metavar="MODEL", help="A catalogue model or deployment, a YAML file, or a config.json.")
]


@app.command()
def show(model: ModelArgument, as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False):
  """Show a model's dimensions, total parameters and the active ones that a token meets."""
  from jaxmoe.config.catalogue import load_model

  config = load_model(model)
  parameters = _parameters(config)
  fields = dataclasses.asdict(config)
  if as_json:
    write_json({"model": fields, "parameters": parameters})
    return
  rows: list[list[Any]] = [[name, "-" if value is None else value] for name, value in fields.items()]
  rows += [[f"parameters.{kind}", f"{count:,}"] for kind, count in parameters.items()]
  write_table(["field", "value"], rows)


def _parameters(config: ModelConfig) -> dict[str, int]:
  from jaxmoe.cost.parameters import active_parameters, total_parameters

  return {"total": total_parameters(config), "active": active_parameters(config)}
