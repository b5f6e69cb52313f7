"""`jaxmoe plan`: the best deployment of a model on a cluster for a job, searched."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from jaxmoe.cli.amounts import bytes_of, seconds_of
from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.expert_load import load_from
from jaxmoe.cli.loading import with_home
from jaxmoe.cli.output import json_text, log, write, write_json, write_tables
from jaxmoe.config.files import shown
from jaxmoe.config.job import ITEM_BYTES, WIDE_DTYPES, Job, Kind, Precision, Transport
from jaxmoe.meshes.errors import MissingError, UsageError

if TYPE_CHECKING:
  from jaxmoe.planner.answer import Answer
  from jaxmoe.planner.pareto import Explored
  from jaxmoe.planner.question import Constraints, Question

TRAIN_BATCH = 1024


def run(
  model: Annotated[str, typer.Option(help="A model of the catalogue, a YAML file, or a config.json.")],
  cluster: Annotated[str, typer.Option(help="A cluster of the catalogue, or a YAML file.")],
  devices: Annotated[int, typer.Option(help="Devices that a plan uses; at most, where fewest are best.")],
  job: Annotated[str, typer.Option(help="train, prefill or decode.")] = "train",
  batch: Annotated[int | None, typer.Option(help="Sequences of a step; serving chooses, if not given.")] = None,
  sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence; of a cache, in decode.")] = 4096,
  objective: Annotated[str, typer.Option(help="latency, throughput, devices or cost.")] = "",
  transport: Annotated[
    list[str] | None,
    typer.Option(help="How tokens reach experts; may be repeated. Else ragged, gather; runnable: capacity, gather."),
  ] = None,
  capacity_factor: Annotated[float, typer.Option(help="Room of an expert's buffer, transport capacity.")] = 1.25,
  weights: Annotated[str, typer.Option(help="Dtype of stored weights.")] = "",
  compute: Annotated[str, typer.Option(help="Dtype of matmuls, activations and cache.")] = "bfloat16",
  gradients: Annotated[str, typer.Option(help="Dtype of gradients, where not that of the weights.")] = "",
  master: Annotated[str, typer.Option(help="Dtype of a second, wider copy of the weights; none is kept else.")] = "",
  runnable: Annotated[
    bool, typer.Option("--runnable", help="Only what verify compiles and this package runs.")
  ] = False,
  max_step: Annotated[str | None, typer.Option(help="Longest step: 10s, 250ms.")] = None,
  max_ttft: Annotated[str | None, typer.Option(help="Longest time to the first token, in prefill.")] = None,
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
  from jaxmoe.config.assumptions import Assumptions
  from jaxmoe.config.catalogue import load_cluster, load_model
  from jaxmoe.planner.question import Question, serving_batches

  kind, loaded = _kind(job), load_model(with_home(model), mtp=mtp)
  question = Question(
    model=loaded,
    cluster=load_cluster(with_home(cluster)),
    devices=devices,
    job=_job(kind, batch, sequence_length, capacity_factor, _precision(kind, weights, compute, gradients, master)),
    batches=() if batch is not None or kind == "train" else serving_batches(devices, sequence_length),
    space=_space(kind, runnable, transport),
    objective=objective or ("latency" if kind == "train" else "throughput"),  # pyright: ignore[reportArgumentType]
    constraints=_constraints(_longest_step(kind, max_step, max_ttft), min_tokens_per_ms, reserve),
    assumptions=Assumptions(
      dispatch_overlap=dispatch_overlap, gradient_overlap=gradient_overlap, **load_from(load, loaded.num_experts)
    ),
  )
  _check(question, mtp=mtp, runnable=runnable)
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


def _longest_step(kind: Kind, max_step: str | None, max_ttft: str | None) -> float | None:
  """Seconds, of either option: a prefill's step ends with the first token."""
  if max_ttft is not None and kind != "prefill":
    raise UsageError(f"--max-ttft is for --job prefill, got it for {kind}; give --max-step")
  if max_step is not None and max_ttft is not None:
    raise UsageError("--max-step and --max-ttft are both given, and mean the same in prefill; keep one")
  option, text = ("--max-step", max_step) if max_ttft is None else ("--max-ttft", max_ttft)
  return None if text is None else seconds_of(option, text)


def _constraints(max_step_s: float | None, min_tokens_per_ms: float | None, reserve: str) -> "Constraints":
  from jaxmoe.planner.question import Constraints

  if min_tokens_per_ms is not None and not 0 < 1000 * min_tokens_per_ms < math.inf:
    raise UsageError(f"--min-tokens-per-ms must be above 0 and finite, got {min_tokens_per_ms:g}")
  return Constraints(
    max_step_s=max_step_s,
    min_tokens_per_s_per_device=None if min_tokens_per_ms is None else 1000 * min_tokens_per_ms,
    reserve_bytes=bytes_of("--reserve", reserve),
  )


def _kind(job: str) -> Kind:
  kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
  if job not in kinds:
    raise UsageError(f"--job must be one of {', '.join(kinds)}, got {job!r}")
  return kinds[job]


def _precision(kind: Kind, weights: str, compute: str, gradients: str, master: str) -> Precision:
  """Training keeps float32 weights and moments, serving weights as it computes, where nothing else is said."""
  options = {"--weights": weights, "--compute": compute, "--gradients": gradients, "--master": master}
  for option, dtype in options.items():
    legal = ITEM_BYTES if option == "--weights" else WIDE_DTYPES
    if dtype not in legal and (dtype or option == "--compute"):
      raise UsageError(f"{option} must be one of {', '.join(legal)}, got {shown(dtype)!r}")
  for option in ("--gradients", "--master"):
    if options[option] and kind != "train":
      raise UsageError(f"{option} is for --job train, got it for {kind}, which keeps none; leave it out")
  return Precision(
    weights=weights or ("float32" if kind == "train" else compute),
    compute=compute,
    gradients=gradients or None,
    master=master or None,
  )


def _job(kind: Kind, batch: int | None, length: int, capacity_factor: float, precision: Precision) -> Job:
  for option, size in (("--batch", batch), ("--sequence-length", length)):
    if size is not None and size < 1:
      raise UsageError(f"{option} must be at least 1, got {size}")
  sizes: dict[str, Any] = {"batch": TRAIN_BATCH if batch is None else batch, "sequence_length": length}
  return Job(kind=kind, **sizes, capacity_factor=capacity_factor, precision=precision)


def _space(kind: Kind, runnable: bool, transports: list[str] | None):
  from jaxmoe.planner.space import runnable_space, whole_space

  space = runnable_space(kind) if runnable else whole_space(kind)
  if not transports:
    return space
  from jaxmoe.planner.own_plan import RUNNABLE_TRANSPORTS

  for name in transports:
    if name not in get_args(Transport):
      raise UsageError(f"--transport must be one of {', '.join(get_args(Transport))}, got {name!r}")
    if runnable and name not in RUNNABLE_TRANSPORTS:
      raise UsageError(
        f"--transport {name} can be planned but not run; with --runnable expected one of"
        f" {', '.join(RUNNABLE_TRANSPORTS)}"
      )
  return dataclasses.replace(space, transports=tuple(dict.fromkeys(transports)))


def _check(question: "Question", *, mtp: bool, runnable: bool) -> None:
  """Refuses what cannot run where that is asked for, and warns of what is hardly meant."""
  from jaxmoe.report.plan import warnings

  if runnable:
    _check_runnable(question)
  for warning in warnings(question):
    log(f"warning: {warning}")
  if mtp and not question.model.mtp_layers:
    log(f"warning: --mtp changes nothing: no prediction layers are known of {shown(question.model.name)}")
  elif mtp and question.job.kind != "train":
    log(f"warning: --mtp: {question.job.kind} keeps the prediction layers' weights, and computes nothing with them")


def _check_runnable(question: "Question") -> None:
  """Of the model and the dtypes, which no plan changes; plans are made of choices that run."""
  from jaxmoe.config.features import cannot_run, unusual, unusual_dtypes

  model, precision = question.model, question.job.precision
  parts = {
    f"model {shown(model.name)}": unusual(model),
    f"this {question.job.kind} job": unusual_dtypes(precision),
  }
  for what, lacking in parts.items():
    if why := cannot_run(lacking):
      raise UsageError(f"--runnable: {what} {why}; leave --runnable out")
