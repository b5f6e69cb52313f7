"""`jaxmoe plan`: the best deployment of a model on a cluster for a job, searched."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from jaxmoe.cli.amounts import bytes_of, seconds_of
from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.expert_load import load_from
from jaxmoe.cli.loading import with_home
from jaxmoe.cli.output import json_text, log, write, write_json, write_tables
from jaxmoe.config.files import shown
from jaxmoe.config.job import Job, Kind, Precision, Transport
from jaxmoe.meshes.errors import MissingError, UsageError

if TYPE_CHECKING:
  from jaxmoe.planner.answer import Answer
  from jaxmoe.planner.pareto import Explored
  from jaxmoe.planner.question import Constraints, Question

TRAIN_BATCH = 1024
SERVING_BATCHES = tuple(4**n for n in range(8))


def run(
  model: Annotated[str, typer.Option(help="A model of the catalogue, a YAML file, or a config.json.")],
  cluster: Annotated[str, typer.Option(help="A cluster of the catalogue, or a YAML file.")],
  devices: Annotated[int, typer.Option(help="Devices that a plan uses; at most, where fewest are best.")],
  job: Annotated[str, typer.Option(help="train, prefill or decode.")] = "train",
  batch: Annotated[int | None, typer.Option(help="Sequences of a step; serving chooses, if not given.")] = None,
  sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence; of a cache, in decode.")] = 4096,
  objective: Annotated[str, typer.Option(help="latency, throughput, devices or cost.")] = "",
  transport: Annotated[list[str] | None, typer.Option(help="How tokens reach experts; may be repeated.")] = None,
  capacity_factor: Annotated[float, typer.Option(help="Room of an expert's buffer, transport capacity.")] = 1.25,
  weights: Annotated[str, typer.Option(help="Dtype of stored weights.")] = "",
  compute: Annotated[str, typer.Option(help="Dtype of matmuls, activations and cache.")] = "bfloat16",
  runnable: Annotated[
    bool, typer.Option("--runnable", help="Only what verify compiles and this package runs.")
  ] = False,
  max_step: Annotated[str | None, typer.Option("--max-step", "--max-ttft", help="Longest step: 10s, 250ms.")] = None,
  min_tokens_per_ms: Annotated[float | None, typer.Option(help="Fewest tokens a millisecond and device.")] = None,
  reserve: Annotated[str, typer.Option(help="Memory of a device to keep free: 4GB.")] = "0GB",
  dispatch_overlap: Annotated[float, typer.Option(help="Share of the experts' exchange that is hidden.")] = 0.0,
  gradient_overlap: Annotated[float, typer.Option(help="Share of the gradients' sum that is hidden.")] = 0.0,
  load: Annotated[
    str,
    typer.Option(help="Expert load: busiest device over mean (1.5), power:1.2, or a file with rows_by_expert."),
  ] = "1",
  mtp: Annotated[bool, typer.Option("--mtp", help="With the layers that predict further tokens.")] = False,
  top: Annotated[int, typer.Option(min=1, max=100, help="Plans to show.")] = 10,
  out: Annotated[str | None, typer.Option(metavar="DIR", help="Write the plan, its guide and its checks here.")] = None,
  force: Annotated[bool, typer.Option("--force", help="Replace the files of a plan in --out.")] = False,
  as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
  """Search every way to lay a model out over devices, and explain the best."""
  from jaxmoe.config.catalogue import load_cluster, load_model
  from jaxmoe.cost.assumptions import Assumptions
  from jaxmoe.planner.question import Question

  kind = _kind(job)
  question = Question(
    model=load_model(with_home(model), mtp=mtp),
    cluster=load_cluster(with_home(cluster)),
    devices=devices,
    job=_job(kind, batch, sequence_length, capacity_factor, weights, compute),
    batches=() if batch is not None or kind == "train" else SERVING_BATCHES,
    space=_space(kind, runnable, transport),
    objective=objective or ("latency" if kind == "train" else "throughput"),  # pyright: ignore[reportArgumentType]
    constraints=_constraints(max_step, min_tokens_per_ms, reserve),
    assumptions=Assumptions(dispatch_overlap=dispatch_overlap, gradient_overlap=gradient_overlap, **load_from(load)),
  )
  _warn(question)
  found = _answer(question, top, out, force)
  _show(found, as_json)
  if not found.plans:
    raise typer.Exit(ExitCode.NO_PLAN)


def _answer(question: "Question", top: int, out: str | None, force: bool) -> "Answer":
  """The search's answer; its files are written, if they are asked for and there is a plan."""
  from jaxmoe.planner.answer import answer

  if out is None:
    return answer(question, top)
  from jaxmoe.cli.folder import checked_folder
  from jaxmoe.planner.pareto import Explored

  folder, explored = checked_folder("--out", out, force=force), Explored(question)
  found = answer(question, top, explored.see)
  if found.plans:
    _write_files(folder, found, explored)
  else:
    log("nothing was written to --out: there is no plan")
  return found


def _write_files(folder: Path, found: "Answer", explored: "Explored") -> None:
  from jaxmoe.cli.folder import write_folder
  from jaxmoe.report.pareto_figure import FIGURES, figures
  from jaxmoe.report.plan_files import plan_files

  files = {name: text.encode() for name, text in plan_files(found, explored, json_text).items()}
  missing = ""
  try:
    files |= figures(explored)
  except MissingError as error:
    missing = f"; {error}"
  write_folder("--out", folder, files, stale=FIGURES)
  log(f"wrote {', '.join(files)} to {shown(folder)}{missing}")


def _show(found: "Answer", as_json: bool) -> None:
  from jaxmoe.report.plan import document, tables, verdict

  if as_json:
    write_json(document(found))
  else:
    write(verdict(found) + "\n\n")
    write_tables(tables(found))


def _constraints(max_step: str | None, min_tokens_per_ms: float | None, reserve: str) -> "Constraints":
  from jaxmoe.planner.question import Constraints

  return Constraints(
    max_step_s=None if max_step is None else seconds_of("--max-step", max_step),
    min_tokens_per_s_per_device=None if min_tokens_per_ms is None else 1000 * min_tokens_per_ms,
    reserve_bytes=bytes_of("--reserve", reserve),
  )


def _kind(job: str) -> Kind:
  kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
  if job not in kinds:
    raise UsageError(f"--job must be one of {', '.join(kinds)}, got {job!r}")
  return kinds[job]


def _job(kind: Kind, batch: int | None, length: int, capacity_factor: float, weights: str, compute: str) -> Job:
  """Training keeps float32 weights and moments, serving weights as it computes, where nothing else is said."""
  precision = Precision(weights=weights or ("float32" if kind == "train" else compute), compute=compute)
  sizes: dict[str, Any] = {"batch": TRAIN_BATCH if batch is None else batch, "sequence_length": length}
  return Job(kind=kind, **sizes, capacity_factor=capacity_factor, precision=precision)


def _space(kind: Kind, runnable: bool, transports: list[str] | None):
  from jaxmoe.planner.space import runnable_space, whole_space

  space = runnable_space(kind) if runnable else whole_space(kind)
  if not transports:
    return space
  for name in transports:
    if name not in get_args(Transport):
      raise UsageError(f"--transport must be one of {', '.join(get_args(Transport))}, got {name!r}")
  return dataclasses.replace(space, transports=tuple(dict.fromkeys(transports)))


def _warn(question: "Question") -> None:
  limit, length = question.model.max_sequence_length, question.job.sequence_length
  if limit is not None and length > limit:
    log(f"warning: --sequence-length {length} exceeds the {limit} tokens that {question.model.name} was trained for")
