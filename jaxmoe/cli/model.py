"""`jaxmoe model show`: a model's dimensions and parameters."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jaxmoe.cli.loading import with_home
from jaxmoe.cli.output import write_json, write_tables
from jaxmoe.config.model import ModelConfig
from jaxmoe.report.table import Table

app = typer.Typer(help="Look at models of the catalogue or of files.", no_args_is_help=True)

SOURCES = {"model": "document", "parameters": "formula"}

ModelArgument = Annotated[
  str, typer.Argument(metavar="MODEL", help="A catalogue model or deployment, a YAML file, or a config.json.")
]


@app.command()
def show(
  model: ModelArgument,
  mtp: Annotated[bool, typer.Option("--mtp", help="Count a config.json's multi-token-prediction layers.")] = False,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
):
  """Show a model's dimensions, total parameters and the active ones that a token meets."""
  from jaxmoe.config.catalogue import load_model

  config = load_model(with_home(model), mtp=mtp)
  parameters = _parameters(config)
  fields = dataclasses.asdict(config)
  if as_json:
    write_json({"sources": SOURCES, "model": fields, "parameters": parameters})
    return
  counts = [[f"parameters.{kind}", f"{count:,}"] for kind, count in parameters.items()]
  headers = ["field", "value"]
  write_tables(
    [
      Table(f"{config.name} ({SOURCES['model']})", headers, list(_rows(config))),
      Table(f"Parameters ({SOURCES['parameters']})", headers, counts),
    ]
  )


def _rows(part: Any, prefix: str = "") -> Iterator[list[Any]]:
  """[`dense.d_hidden`, 18432] for each field; parts that change nothing are left out."""
  for field in dataclasses.fields(part):
    value = getattr(part, field.name)
    if not dataclasses.is_dataclass(value):
      yield [prefix + field.name, _cell(value)]
    elif field.default is None or value != type(value)():
      yield from _rows(value, f"{prefix}{field.name}.")


def _cell(value: Any) -> Any:
  if isinstance(value, tuple):
    return ", ".join(map(str, value)) or "-"
  return "-" if value is None else value


def _parameters(config: ModelConfig) -> dict[str, int]:
  from jaxmoe.cost.parameters import active_parameters, total_parameters

  return {"total": total_parameters(config), "active": active_parameters(config)}
