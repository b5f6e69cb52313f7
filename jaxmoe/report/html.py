"""A comparison as one HTML page that needs nothing beside itself: no script, no network."""

import functools
from collections.abc import Sequence

import jinja2

from jaxmoe import __version__
from jaxmoe.cost.estimate import Estimate
from jaxmoe.report import estimate as estimate_report
from jaxmoe.report import verification
from jaxmoe.report.html_compiled import checks, communication, flops, notes, versions
from jaxmoe.report.html_measured import measured
from jaxmoe.report.html_memory import memory
from jaxmoe.report.html_parts import Number, Section, numeric_columns
from jaxmoe.report.html_pipeline import pipeline
from jaxmoe.report.html_placement import placement
from jaxmoe.report.html_plan import deployment, time
from jaxmoe.report.html_roofline import roofline
from jaxmoe.xla.compare import Comparison
from jaxmoe.xla.measured import Measured


def page(c: Comparison, e: Estimate | None, m: Measured | None = None) -> str:
  """The page of `c`, with what `e`, the estimate of the same deployment, adds. The same input gives the same page.

  Args:
    e: None where the cluster states no peak for the compute dtype; then what needs a time or a price is left out.
    m: a step that ran, if one did.
  """
  template = _templates().get_template("report.html.jinja")
  word, css = _word(c)
  return template.render(
    title=f"{c.deployment.name} on {c.target}: {word}",
    name=c.deployment.name,
    word=word,
    css=css,
    sentences=[verification.verdict(c), *([] if e is None else [estimate_report.verdict(e)])],
    sections=sections(c, e, m),
    version=__version__,
  )


def sections(c: Comparison, e: Estimate | None, m: Measured | None = None) -> Sequence[Section]:
  """What stands under the verdict, in its order."""
  clock = [] if m is None else [measured(c, e, m)]
  if e is None:
    return (*clock, checks(c), notes(c), versions(c))
  return (
    *clock,
    deployment(e),
    memory(c, e),
    checks(c),
    communication(c, e),
    flops(c, e),
    roofline(e),
    pipeline(e),
    placement(e.deployment),
    time(e, c.compiled.optimal_s),
    notes(c),
    versions(c),
  )


def _word(c: Comparison) -> tuple[str, str]:
  """The verdict in a word, and the class that colours it."""
  if not c.agrees:
    return "disagrees", "bad"
  return ("agrees", "good") if c.fit.ok else ("does not fit", "bad")


@functools.cache
def _templates() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxmoe.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.tests["exact_number"] = lambda cell: isinstance(cell, Number)
  environment.filters["numeric_columns"] = numeric_columns
  return environment
