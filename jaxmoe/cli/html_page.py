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
  from jaxmoe.xla.measured import Measured


def page_writer(
  path: str | None, deployment: Deployment, *, needs_time: bool = True
) -> "Callable[[Comparison, Measured | None], None]":
  """Writes the page of a comparison and of a step that ran, if one did; or does nothing without a path.

  Args:
    needs_time: whether a page is refused for which the cluster states no peak.

  Raises:
    UsageError: already here, before anything is compiled: the path cannot be written, or the formulas lack a number.
  """
  if path is None:
    return lambda comparison, measured: None
  from jaxmoe.cost.estimate import estimate

  plain = dataclasses.replace(deployment, assumptions=NOTHING_HIDDEN)  # as what is compared
  file, priced = checked_file("--html", path), plain.job.precision.compute in plain.cluster.peak_flops_per_s
  prediction = estimate(plain) if priced or needs_time else None

  def write_page(comparison: "Comparison", measured: "Measured | None") -> None:
    from jaxmoe.report.html import page

    write_file("--html", file, page(comparison, prediction, measured))
    log(f"wrote {shown(path)}")

  return write_page
