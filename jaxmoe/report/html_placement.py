"""A page's placement: for each mesh axis, every device in rank order with its place along the axis."""

import dataclasses
from collections.abc import Sequence

from jaxmoe.config.deployment import Deployment
from jaxmoe.meshes.axes import AXES
from jaxmoe.report import placement as placement_report
from jaxmoe.report.html_parts import COLOURS, Section
from jaxmoe.report.table import Table

MOST_DEVICES = 1024
COLUMNS = 32
SHOWN_RANKS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
  """A cell a device, rows of `columns` in rank order: its place along the axis, and the colour of that."""

  title: str
  columns: int
  cells: Sequence[tuple[int, int]]
  kind: str = "grid"


def placement(d: Deployment) -> Section:
  """A grid for every axis that is more than one device long, and the first ranks as a table."""
  rows = placement_report.placements(d)[:MOST_DEVICES]
  columns = max(1, COLUMNS // d.cluster.devices_per_host) * d.cluster.devices_per_host
  columns = min(columns, 2 * COLUMNS, len(rows))
  grids = [
    Grid(
      f"{axis}: 0 to {d.strategy.size(axis) - 1}",
      columns,
      [(row.coordinates[axis], row.coordinates[axis] % COLOURS) for row in rows],
    )
    for axis in AXES
    if d.strategy.size(axis) > 1
  ]
  text = [
    f"{d.strategy.product} ({placement_report.SOURCE}). A cell is a device, in rank order along rows of {columns}:"
    f" {d.cluster.devices_per_host} neighbours share a host. Its number is its place along the axis;"
    f" colours repeat after {COLOURS}."
  ]
  if d.strategy.devices > MOST_DEVICES:
    text.append(f"The first {MOST_DEVICES:,} of {d.strategy.devices:,} devices are drawn.")
  shown = [placement_report.cells(d, row) for row in rows[:SHOWN_RANKS]]
  title = f"The first {len(shown)} ranks ({placement_report.SOURCE})"
  return Section("placement", "Placement", text, grids, [Table(title, placement_report.HEADERS, shown)])
