"""A deployment's placement as a table and as one JSON document."""

import itertools
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.placement import Placement, Placements, place
from jaxmoe.report.table import Table

SOURCE = "formula"
HEADERS = ("rank", "host", *AXES, "layers", "heads part", "experts", "width part")


def table(d: Deployment, ranks: range) -> Table:
  """A row for each of these ranks."""
  rows = placements(d)[ranks.start : ranks.stop]
  return Table(f"{d.name}: {d.strategy.product} ({SOURCE})", HEADERS, [cells(d, row) for row in rows])


def placements(d: Deployment) -> Placements:
  return place(
    d.strategy,
    d.model.num_layers,
    d.model.num_experts,
    devices_per_host=d.cluster.devices_per_host,
    chunks=d.job.chunks,
    both_ways=d.copies == 2,
  )


def expert_numbers(d: Deployment, row: Placement) -> tuple[int, ...]:
  """Experts of a device as the deployment's document numbers them."""
  return row.expert_numbers(d.model.num_experts, across_stages=d.expert_numbering == "across_stages")


def span(numbers: tuple[int, ...]) -> str:
  """`(4, 5, 6, 7)` -> `4-7`, `(0, 1, 8)` -> `0-1,8`."""
  breaks = [(a, b) for a, b in itertools.pairwise(numbers) if b != a + 1]
  firsts, lasts = [numbers[0], *(b for _, b in breaks)], [*(a for a, _ in breaks), numbers[-1]]
  return ",".join(f"{a}" if a == z else f"{a}-{z}" for a, z in zip(firsts, lasts, strict=True))


def cells(d: Deployment, row: Placement) -> list[str]:
  """One row of a table with `HEADERS`."""
  coordinates = [row.coordinates[axis] for axis in AXES]
  experts = span(expert_numbers(d, row))
  whole = [row.rank, row.host, *coordinates, span(row.layers), row.heads_part, experts, row.width_part]
  return [str(cell) for cell in whole]


def document(d: Deployment, ranks: range) -> dict[str, Any]:
  """These ranks; `ranks` is the first and the one after the last."""
  rows = placements(d)[ranks.start : ranks.stop]
  return {
    "deployment": d.name,
    "source": SOURCE,
    "devices": d.strategy.devices,
    "product": d.strategy.product,
    "expert_numbering": d.expert_numbering,
    "ranks": [ranks.start, ranks.stop],
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
