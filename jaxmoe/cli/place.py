"""`jaxmoe place`: which device holds which layers, experts and parts of them."""

from typing import Annotated, Any

import typer

from jaxmoe.cli.output import write_json, write_table
from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.placement import Placement, place

DeploymentArgument = Annotated[
  str, typer.Argument(metavar="DEPLOYMENT", help="A deployment of the catalogue, or a YAML file.")
]


def run(
  deployment: DeploymentArgument,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Show every device's rank, mesh coordinates, host, layers and experts."""
  from jaxmoe.config.catalogue import load_deployment

  d = load_deployment(deployment)
  rows = placements(d)
  if as_json:
    write_json(_document(d, rows))
  else:
    headers = ["rank", "host", *AXES, "layers", "heads part", "experts", "width part"]
    write_table(headers, [_cells(d, row) for row in rows], title=f"{d.name}: {d.strategy.product}")


def placements(d: Deployment) -> tuple[Placement, ...]:
  return place(
    d.strategy, d.model.num_layers, d.model.num_experts, devices_per_host=d.cluster.devices_per_host
  )


def expert_numbers(d: Deployment, row: Placement) -> tuple[int, ...]:
  """Experts of a device as the deployment's document numbers them."""
  return row.expert_numbers(d.model.num_experts, across_stages=d.expert_numbering == "across_stages")


def span(numbers: tuple[int, ...]) -> str:
  """`(4, 5, 6, 7)` -> `4-7`."""
  return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _cells(d: Deployment, row: Placement) -> list[Any]:
  coordinates = [row.coordinates[axis] for axis in AXES]
  experts = span(expert_numbers(d, row))
  return [row.rank, row.host, *coordinates, span(row.layers), row.heads_part, experts, row.width_part]


def _document(d: Deployment, rows: tuple[Placement, ...]) -> dict[str, Any]:
  return {
    "deployment": d.name,
    "devices": d.strategy.devices,
    "product": d.strategy.product,
    "expert_numbering": d.expert_numbering,
    "placement": [
      {
        "rank": row.rank,
        "host": row.host,
        "coordinates": dict(row.coordinates),
        "layers": row.layers,
        "experts": row.experts,
        "expert_numbers": expert_numbers(d, row),
        "heads_part": row.heads_part,
        "width_part": row.width_part,
      }
      for row in rows
    ],
  }
