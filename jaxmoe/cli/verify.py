"""`jaxmoe verify`: compile a deployment's real step and compare it with the plan."""

from typing import TYPE_CHECKING, Annotated

import typer

from jaxmoe.cli.amounts import bytes_of, seconds_of
from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.html_page import page_writer
from jaxmoe.cli.loading import deployment_of
from jaxmoe.cli.output import log, write, write_json, write_tables
from jaxmoe.cli.progress import progress_display
from jaxmoe.cli.verify_all import verify_all
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import UsageError
from jaxmoe.xla.failed import CompileFailed

if TYPE_CHECKING:
  from jaxmoe.cost.estimate import Estimate
  from jaxmoe.xla.verify import Options

ALL = "all"


def run(
  deployment: Annotated[
    str, typer.Argument(metavar="DEPLOYMENT", help="A deployment of the catalogue, a YAML file, or all: the catalogue.")
  ],
  target: Annotated[
    str,
    typer.Option(
      metavar="TARGET",
      help="Compile for: cpu or cpu:N fake devices; tpu[:v5e|v5p|v6e[:SLICE]], such as tpu:v5p:4x4x8, or"
      " cuda[:h100|h200|b200[:HOSTSxGPUS]], none of which need be here; or local, the devices that are here.",
    ),
  ] = "cpu",
  timeout: Annotated[str, typer.Option(help="Longest compile: 90s, 15min.")] = "15min",
  memory_limit: Annotated[str, typer.Option(help="Most memory of the process that compiles (Linux).")] = "6GB",
  cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use and keep results of compiles.")] = True,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
  html: Annotated[str | None, typer.Option(metavar="FILE", help="Write one HTML page, whole by itself, too.")] = None,
) -> None:
  """Compile at full size, compare with the prediction; exit code 4 if they disagree or a device is too small."""
  from jaxmoe.xla.verify import Options

  options = Options(
    timeout_s=seconds_of("--timeout", timeout),
    memory_limit_bytes=bytes_of("--memory-limit", memory_limit),
    cached=cache,
  )
  if deployment == ALL:
    if html is not None:
      raise UsageError("--html writes the page of one deployment; name it instead of all")
    code = verify_all(target, options, as_json)
  else:
    code = _verify(deployment_of(deployment), target, options, as_json, html)
  if code:
    raise typer.Exit(code)


def _verify(d: Deployment, target: str, options: "Options", as_json: bool, html: str | None) -> ExitCode:
  from jaxmoe.xla.verify import verify

  write_page = page_writer(html, d)
  try:
    with progress_display() as progress:
      comparison = verify(d, target, progress, options)
  except CompileFailed as error:
    _write_refusal(d, target, error, as_json)
    if html is not None:
      log(f"{shown(html)} is not written: the compiler made nothing to compare")
    return ExitCode.DISAGREES
  from jaxmoe.report.refused import nearest_document, nearest_plan
  from jaxmoe.report.verification import document, tables, verdict

  write_page(comparison, None)
  fit = comparison.fit
  nearest = None if fit.ok else _nearest(d, fit.capacity_bytes, fit.needed_bytes)
  if as_json:
    write_json(document(comparison) | ({} if fit.ok else {"nearest_plan": nearest_document(nearest)}))
  else:
    write(verdict(comparison) + ("" if fit.ok else f"\n{nearest_plan(nearest)}") + "\n\n")
    write_tables(tables(comparison))
  return ExitCode.DONE if comparison.ok else ExitCode.DISAGREES


def _write_refusal(d: Deployment, target: str, error: CompileFailed, as_json: bool) -> None:
  from jaxmoe.report.refused import refusal, refusal_document
  from jaxmoe.xla.fit import smallest
  from jaxmoe.xla.target import Target

  resolved = Target.parse(target).on(d)
  capacity_bytes = smallest(d.cluster, resolved.generation).memory_bytes
  nearest = _nearest(d, capacity_bytes, error.said.needed_bytes) if error.out_of_memory else None
  if as_json:
    write_json(refusal_document(d, str(resolved), error, nearest))
  else:
    write(refusal(d, str(resolved), error, nearest))


def _nearest(d: Deployment, capacity_bytes: int, needed_bytes: int | None) -> "Estimate | None":
  """The best plan for the same job on as many devices of that size, or else on the fewest more.

  What the compiler needs beyond the formula is kept free, for it may need as much of another plan; where it does not
  say how much that is, what the formula of this plan counts is already too much.
  """
  import dataclasses

  from jaxmoe.cost.load import load_of
  from jaxmoe.cost.memory import memory
  from jaxmoe.planner.answer import answer
  from jaxmoe.planner.question import Constraints, Question
  from jaxmoe.planner.space import runnable_space

  formula_bytes = memory(d, load_of(d, d.assumptions)).total
  beyond_bytes = max(0, (capacity_bytes + 1 if needed_bytes is None else needed_bytes) - formula_bytes)
  cluster = dataclasses.replace(d.cluster, memory_bytes=capacity_bytes)
  question = Question(
    model=d.model,
    cluster=cluster,
    devices=d.strategy.devices,
    job=d.job,
    space=runnable_space(d.job.kind),
    constraints=Constraints(reserve_bytes=min(beyond_bytes, capacity_bytes - 1)),
    assumptions=d.assumptions,
  )
  found = answer(question, keep=1)
  if found.plans:
    return found.best
  return found.shortage.fitting if found.shortage else None
