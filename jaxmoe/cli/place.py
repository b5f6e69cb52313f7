"""`jaxmoe place`: which device holds which layers, experts and parts of them."""

import re
from typing import Annotated

import typer

from jaxmoe.cli.loading import DeploymentArgument, deployment_of
from jaxmoe.cli.output import write, write_json, write_tables
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import UsageError

SHOWN_RANKS = 4_096  # by default, as text
MOST_RANKS = 131_072  # at once

_RANGE = re.compile(r"(?P<first>\d{0,18}):(?P<end>\d{0,18})")


def run(
  deployment: DeploymentArgument,
  ranks: Annotated[
    str, typer.Option(metavar="A:B", help="Only ranks A to B - 1; either may be left out.", show_default=False)
  ] = ":",
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Show every device's rank, mesh coordinates, host, layers and experts."""
  from jaxmoe.report.placement import document, table

  d = deployment_of(deployment)
  chosen = parse_ranks(ranks, d.strategy.devices)
  if as_json:
    write_json(document(d, at_most(chosen)))
    return
  printed = chosen[:SHOWN_RANKS] if ranks == ":" else at_most(chosen)
  write_tables([table(d, printed)])
  if len(printed) < len(chosen):
    write(f"... {len(chosen) - len(printed):,} more; use --ranks A:B\n")


def parse_ranks(text: str, devices: int) -> range:
  """`8:16`, `8:` or `:16` of so many devices.

  Raises:
    UsageError: anything else, or no rank among them.
  """
  match = _RANGE.fullmatch(text)
  if match:
    first, end = int(match["first"] or 0), int(match["end"] or devices)
    if first < end <= devices:
      return range(first, end)
  raise UsageError(
    f"--ranks: expected A:B with 0 <= A < B <= {devices}, got '{shown(text)}'; --ranks 0:{min(8, devices)} is the first"
  )


def at_most(ranks: range) -> range:
  """`ranks`, if they are few enough to be written at once."""
  if len(ranks) > MOST_RANKS:
    few = f"{ranks.start}:{ranks.start + MOST_RANKS}"
    raise UsageError(f"expected at most {MOST_RANKS} ranks at once, got {len(ranks)}; choose some with --ranks {few}")
  return ranks
