"""`jaxmoe demo`: one deployment from its document to a compiled, compared and running model."""

import time
from collections.abc import Callable
from typing import Annotated

import typer

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.output import write, write_json, write_table
from jaxmoe.cli.progress import progress_display

DEPLOYMENT = "ep64_tp2"
REDUCED_DEVICES = 8
STEPS = 20
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def run(as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False) -> None:
  """Plan, place, predict, compile for 128 devices, compare, then train a reduced copy on 8 fake devices."""
  from jaxmoe.config.catalogue import load_deployment
  from jaxmoe.config.reduced import reduced
  from jaxmoe.cost.estimate import estimate
  from jaxmoe.xla.child import run_in_child
  from jaxmoe.xla.verify import verify

  deployment = load_deployment(DEPLOYMENT)
  small = reduced(deployment, REDUCED_DEVICES)
  seconds: dict[str, float] = {}
  with progress_display() as progress:
    prediction = _timed(seconds, "estimate", lambda: estimate(deployment))
    comparison = _timed(seconds, "verify", lambda: verify(deployment, "cpu", progress))
    training = _timed(
      seconds,
      "train",
      lambda: run_in_child(
        "jaxmoe.train.reduced:train_and_check", small, STEPS, devices=REDUCED_DEVICES, progress=progress
      ),
    )
  from jaxmoe.report import demo

  outcome = demo.Outcome(deployment, small, prediction, comparison, training, TOLERANCE, seconds)
  if as_json:
    write_json(demo.document(outcome))
  else:
    for table in demo.tables(outcome):
      write_table(table.headers, table.rows, title=table.title)
      write("\n")
    write(demo.verdict(outcome) + "\n")
  if not outcome.ok:
    raise typer.Exit(ExitCode.DISAGREES)


def _timed[T](seconds: dict[str, float], part: str, work: Callable[[], T]) -> T:
  start = time.perf_counter()
  result = work()
  seconds[part] = time.perf_counter() - start
  return result
