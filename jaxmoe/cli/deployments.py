"""`jaxmoe deployments`: what the catalogue holds."""

import dataclasses
from typing import Annotated, Any

import typer

from jaxmoe.cli.output import write_json, write_table
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job


def run(as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False) -> None:
  """List the deployments of the catalogue."""
  from jaxmoe.config.catalogue import deployment_names, load_deployment

  deployments = [load_deployment(name) for name in deployment_names()]
  if as_json:
    write_json({"deployments": [_summary(deployment) for deployment in deployments]})
  else:
    write_table(
      ["name", "from", "devices", "job", "title"],
      [[d.name, _source(d), d.strategy.product, job_line(d.job), d.title] for d in deployments],
    )


def job_line(job: Job) -> str:
  """`train 512 x 1024`: kind, sequences and tokens of each."""
  return f"{job.kind} {job.batch} x {job.sequence_length}"


def _source(d: Deployment) -> str:
  """Who laid it out: a document, or `jaxmoe plan`, whose command is the title."""
  return "planner" if d.document is None else "document"


def _summary(deployment: Deployment) -> dict[str, Any]:
  d = deployment
  return {
    "name": d.name,
    "title": d.title,
    "source": _source(d),
    "document": d.document,
    "devices": d.strategy.devices,
    "product": d.strategy.product,
    "strategy": dataclasses.asdict(d.strategy),
    "job": dataclasses.asdict(d.job),
    "model": d.model.name,
    "cluster": d.cluster.name,
    "claims": len(d.claims),
    "readings": len(d.readings),
  }
