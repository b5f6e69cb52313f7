"""The option `--html FILE`: a comparison as one page, asked for before the compile and written after it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxmoe.cli.output import log
from jaxmoe.cli.whole_file import checked_file, write_file
from jaxmoe.config.assumptions import NOTHING_HIDDEN
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import shown

if TYPE_CHECKING:
  from jaxmoe.xla.compare import Comparison


def page_writer(path: str | None, deployment: Deployment) -> "Callable[[Comparison], None]":
  """Writes the page of a comparison, or does nothing without a path.

  Raises:
    UsageError: already here, before anything is compiled: the path cannot be written, or the formulas lack a number.
  """
  if path is None:
    return lambda comparison: None
  from jaxmoe.cost.estimate import estimate

  plain = dataclasses.replace(deployment, assumptions=NOTHING_HIDDEN)  # as what is compared
  file, prediction = checked_file("--html", path), estimate(plain)

  def write_page(comparison: "Comparison") -> None:
    from jaxmoe.report.html import page

    write_file("--html", file, page(comparison, prediction))
    log(f"wrote {shown(path)}")

  return write_page
