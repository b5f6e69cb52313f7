"""A page's pipeline: the schedule's table, timed with what the formulas say of one microbatch's passes."""

import dataclasses
from collections.abc import Sequence

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.cost.passes import Device, Network, layer_passes
from jaxmoe.cost.stage import stage_layers
from jaxmoe.pipeline import schedule_makers as makers
from jaxmoe.pipeline.schedule_facts import SPLIT
from jaxmoe.pipeline.schedule_timing import Costs, Span, Timeline, time_schedule
from jaxmoe.pipeline.schedules import KINDS, Schedule, label
from jaxmoe.report import units
from jaxmoe.report.html_parts import Section, of_seconds, of_share, percent
from jaxmoe.report.table import Table

MOST_STAGES = 16
MOST_PIECES = 2048  # of work, that a figure holds
PIECE_PX = 26  # that the shortest piece gets, so that its name fits
MOST_PX = 2400

PASSES = {"F": "forward", "B": "backward", "W": "weights' gradient"}


@dataclasses.dataclass(frozen=True, slots=True)
class Lanes:
  """A lane a stage.

  Attributes:
    width_px: at least, for names to fit.
    lanes: pieces of each stage: name, kind, left and width in percent, and whether its name fits.
  """

  title: str
  width_px: int
  lanes: Sequence[Sequence[tuple[str, str, float, float, bool]]]
  kinds: Sequence[tuple[str, str]]
  kind: str = "lanes"


def pipeline(e: Estimate) -> Section:
  """The timeline, where it is small enough to be read."""
  d = e.deployment
  stages, microbatches = d.strategy.stage, d.job.microbatches
  costs = pass_costs(d)
  pieces = stages * microbatches * d.job.chunks * len(costs)
  rows = [(PASSES[kind], of_seconds(s), SOURCE) for kind, s in costs.items()]
  tables = [Table("One microbatch in one stage", ["pass", "time", "source"], rows)]
  if stages > MOST_STAGES or pieces > MOST_PIECES:
    text = f"{stages} stages and {microbatches} microbatches are too many to draw."
    return Section("pipeline", "Pipeline", [text, _idle_text(e)], tables=tables)
  timeline = timed(d)
  tables.append(_stages(timeline))
  text = "One stage: nothing waits for another." if stages == 1 else _idle_text(e)
  return Section("pipeline", "Pipeline", [text], [_figure(timeline, d, list(costs))], tables)


def _idle_text(e: Estimate) -> str:
  idle = f"{units.seconds(e.time.bubble)} of a step, {units.percent(e.bubble)} of its time"
  return f"The busiest stage idles for {idle} ({SOURCE})."


def pass_costs(d: Deployment) -> dict[str, float]:
  """Seconds of one microbatch's passes through all layers of the slowest stage, by kind of work in the schedule."""
  layers = layer_passes(d, Device(d.cluster, d.job.precision), Network(d), d.assumptions)
  found = [layers.through(stage) for stage in stage_layers(d)]
  p = max(found, key=lambda one: one.F.total + one.B.total + one.W.total + one.again.total)
  F, B, W = float(p.F.total), float(p.B.total + p.again.total), float(p.W.total)
  if not d.train:
    return {"F": F}
  return {"F": F, "B": B, "W": W} if d.job.schedule in SPLIT else {"F": F, "B": B + W}


def timed(d: Deployment) -> Timeline:
  """The job's schedule with its passes' times; all stages alike, and messages free."""
  each = {kind: s / d.job.chunks for kind, s in pass_costs(d).items()}
  return time_schedule(_schedule(d), Costs(**each))


def _schedule(d: Deployment) -> Schedule:
  stages, microbatches = d.strategy.stage, d.job.microbatches
  if not d.train:
    return makers.forward_only(stages, microbatches)
  match d.job.schedule:
    case "gpipe":
      return makers.gpipe(stages, microbatches)
    case "1f1b":
      return makers.one_forward_one_backward(stages, microbatches)
    case "interleaved":
      return makers.interleaved(stages, microbatches, d.job.chunks)
    case "zero_bubble":
      return makers.zero_bubble(stages, microbatches)
    case "dualpipe":
      return makers.dualpipe(stages, microbatches)


def _figure(timeline: Timeline, d: Deployment, kinds: Sequence[str]) -> Lanes:
  whole = timeline.makespan
  shortest = min((span.end - span.start) / len(span.cell) for lane in timeline.spans for span in lane) or whole
  width = min(MOST_PX, round(PIECE_PX * whole / shortest))

  def piece(span: Span) -> tuple[str, str, float, float, bool]:
    long = span.end - span.start
    colour = f"s{KINDS.index(span.cell[0].kind)}"
    fits = width * long >= PIECE_PX * 0.9 * whole * len(span.cell)
    return ("+".join(map(label, span.cell)), colour, percent(span.start, whole), percent(long, whole), fits)

  lanes = [[piece(span) for span in lane] for lane in timeline.spans]
  name = d.job.schedule if d.train else "forward only"
  rest = "head, gradients and optimizer" if d.train else "the head"
  long = f"{units.seconds(whole)} by formula, without {rest}"
  return Lanes(f"{name}: {long}", width, lanes, [(PASSES[kind], f"s{KINDS.index(kind)}") for kind in kinds])


def _stages(timeline: Timeline) -> Table:
  busy = (timeline.makespan - idle for idle in timeline.idle)
  rows = [
    (f"{stage}", of_seconds(works), of_seconds(idle), of_share(share), SOURCE)
    for stage, (works, idle, share) in enumerate(zip(busy, timeline.idle, timeline.bubble_shares, strict=True))
  ]
  return Table("Work and waiting", ["number of the stage", "works", "idles", "share idle", "source"], rows)
