"""The deployment guide in Markdown: why the best plan is what it is, and how to start it."""

import dataclasses
from collections.abc import Iterable
from importlib import resources
from typing import Any

from jaxmoe.cost.estimate import SOURCE, Estimate, collectives_by_axis
from jaxmoe.cost.load import load_of
from jaxmoe.meshes.axes import label
from jaxmoe.planner.answer import Answer
from jaxmoe.planner.pareto import Explored
from jaxmoe.planner.plan_checks import PlanCheck
from jaxmoe.planner.why import why
from jaxmoe.report import balance, launch, units
from jaxmoe.report import estimate as one_plan
from jaxmoe.report import placement as placement_report
from jaxmoe.report import plan as plans_report
from jaxmoe.report import why as why_report
from jaxmoe.report.decisions import decisions
from jaxmoe.report.groups import span
from jaxmoe.report.table import Table

SHOWN_RANKS = 16


def guide(a: Answer, explored: Explored, checks: list[PlanCheck]) -> str:
  """The whole text, of the best plan."""
  import jinja2  # here, for only a folder of a plan needs it

  environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
  source = resources.files("jaxmoe.report") / "templates" / "deployment_guide.md.jinja"
  text = environment.from_string(source.read_text(encoding="utf-8")).render(_context(a, explored, checks))
  return text.rstrip("\n") + "\n"


def markdown(table: Table) -> str:
  """A table of Markdown, its title left to the heading above."""
  rows = [table.headers, ["---"] * len(table.headers), *table.rows]
  return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _context(a: Answer, explored: Explored, checks: list[PlanCheck]) -> dict[str, Any]:
  best, d = a.best, a.best.deployment
  chosen = decisions(a, explored)
  return {
    "model": d.model.name,
    "devices": units.devices(d.strategy.devices),
    "cluster": d.cluster.name,
    "verdict": plans_report.verdict(a),
    "warnings": list(plans_report.warnings(a.question)),
    "choices": markdown(_choices(best)),
    "structure": markdown(_structure(best)),
    "decisions": {axis: {"sentence": x.sentence, "table": markdown(x.table)} for axis, x in chosen.items()},
    "runner_up": _runner_up(a),
    **_placement(best),
    **_costs(best, a.question.constraints.reserve_bytes),
    "first_tokens": markdown(plans_report.first_tokens_table(a)) if d.job.kind == "prefill" else "",
    "launch": launch.sentence(d),
    "mesh_code": launch.mesh_code(d),
    "settings": launch.settings(best, a.question.assumptions),
    "passed": sum(check.ok for check in checks),
    "checks": len(checks),
    "verify_sentence": launch.verify_sentence(d),
    "commands": launch.commands(d),
    "assumptions": list(_assumptions(a)),
  }


def _choices(e: Estimate) -> Table:
  rows = [(name, value, SOURCE) for name, value in plans_report.choices(e).items()]
  return Table("Choices", ["choice", "value", "source"], rows)


def _structure(e: Estimate) -> Table:
  d, m = e.deployment, e.deployment.model
  sizes = {
    "layers": f"{m.num_layers}, {m.expert_layers} of them with experts",
    "experts of a layer": f"{m.num_experts}, of which a token visits {m.experts_per_token}",
    "width": f"{m.d_model}; of an expert {m.d_expert}",
    "heads": f"{m.num_heads} of {m.head_dim}, {m.num_kv_heads} of keys and values",
    "vocabulary": f"{m.vocab_size:,}",
    "job": f"{d.job.kind}, sequences of {d.job.sequence_length} tokens",
  }
  counted = {
    "parameters": f"{e.parameters['total']:,}, of which a token uses {e.parameters['active']:,}",
    "in experts": units.percent(e.parameters["expert"] / e.parameters["total"]),
    "FLOPs of a token, forward": units.flops(e.flops_per_token_forward),
    "cache of a token": units.bytes_(e.cache_bytes_per_token),
  }
  rows = [*((*row, "document") for row in sizes.items()), *((*row, SOURCE) for row in counted.items())]
  return Table("Model", ["what", "value", "source"], rows)


def _runner_up(a: Answer) -> str:
  if len(a.plans) < 2:
    asked = f"Of {a.fitting:,} plans that keep every limit, the best alone was asked for."
    return "No other plan keeps every limit." if a.fitting < 2 else asked
  others = [e for e in a.plans if e.deployment.strategy != a.best.deployment.strategy]
  text = why_report.verdict(why(others[0] if others else a.plans[1], a.best))
  which = "the best plan with another strategy" if others else "the second"
  return f"Against {which}: here {text}. `candidates.csv` ranks {len(a.plans)} plans, `pareto.csv` holds the front."


def _placement(e: Estimate) -> dict[str, Any]:
  d, s = e.deployment, e.deployment.strategy
  shown = range(min(SHOWN_RANKS, s.devices))
  rows = [(axis, f"{s.size(axis)}", f"{s.stride(axis)}", span(d, (axis,)), SOURCE) for axis in s.order]
  axes = Table("Axes", ["axis, outermost first", "size", "ranks apart", "neighbours", "source"], rows)
  table = placement_report.table(d, shown)
  rule = f"The first {len(shown)} of {s.devices} ranks; `jaxmoe place plan.yaml` shows the others."
  return {
    "rank_rule": _rank_rule(e),
    "devices_per_host": d.cluster.devices_per_host,
    "placement_rule": rule,
    "axes": markdown(axes),
    "placement": markdown(Table(table.title, [*table.headers, "source"], [[*row, SOURCE] for row in table.rows])),
  }


def _rank_rule(e: Estimate) -> str:
  """`((data * 8 + stage) * 2 + expert) * 1 + tensor`."""
  s = e.deployment.strategy
  rule = s.order[0]
  for place, axis in enumerate(s.order[1:], 1):
    rule = f"{f'({rule})' if place > 1 else rule} * {s.size(axis)} + {axis}"
  return rule


def _costs(e: Estimate, reserve_bytes: int) -> dict[str, Any]:
  d, time = e.deployment, e.time
  room = d.cluster.memory_bytes
  heavier = balance.imbalance(d)
  return {
    "memory_sentence": (
      f"The busiest device needs {units.bytes_(e.memory.total)} of {units.bytes_(room)};"
      f" {units.bytes_(room - e.memory.total)} stay free."
    ),
    "memory": markdown(_memory(e, reserve_bytes)),
    "network_sentence": (
      f"Messages take {units.seconds(time.network_s)} of a step of {units.seconds(time.total_s)}, after what is taken"
      " for hidden; the times below are before that"
      + (f", with gradients summed at once rather than as zero {d.job.zero} does." if d.job.zero else ".")
    ),
    "network": markdown(_network(e)),
    "load_sentence": (
      f"The busiest stage does {units.percent(heavier - 1)} more than the mean of {d.strategy.stage};"
      f" the pipeline idles {units.percent(e.bubble)} of its time."
      f" The busiest device's experts get {one_plan.uneven_load(e) or 'as many rows as any'}."
    ),
    "modules": markdown(balance.modules_table(e)),
    "stages": markdown(balance.stages_table(d)),
  }


def _memory(e: Estimate, reserve_bytes: int) -> Table:
  """Classes of memory, what stays free, and what of that was asked to."""
  table = one_plan.memory_table(e)
  share = units.percent(reserve_bytes / e.deployment.cluster.memory_bytes)
  return dataclasses.replace(
    table, rows=[*table.rows, ("reserve, of what is free", units.bytes_(reserve_bytes), share, "document")]
  )


def _network(e: Estimate) -> Table:
  """Collectives by axis: who takes part, over which tiers, how often, how much and how long."""
  d = e.deployment
  rows = [
    (
      label(row["axes"]),
      f"{d.strategy.size(*row['axes'])}",
      span(d, row["axes"]),
      row["kind"],
      f"{row['count']}",
      units.bytes_(row["bytes"]),
      units.seconds(row["s"]),
      SOURCE,
    )
    for row in collectives_by_axis(e)
  ]
  headers = ["axis", "devices", "tiers", "collective", "count", "payload", "time", "source"]
  return Table("Collectives", headers, rows)


def _busiest(a: Answer) -> str:
  x, load = a.question.assumptions, load_of(a.best.deployment, a.question.assumptions)
  law = {float: "by a power law of exponent", tuple: "by the rows measured"}.get(type(x.popularity), "")
  exponent = f" {x.popularity:g}" if isinstance(x.popularity, float) else ""
  return f"{load:.3g}" + (f" ({law}{exponent})" if law else "")


def _assumptions(a: Answer) -> Iterable[str]:
  """Of the prediction, then of the cluster's file."""
  x = a.question.assumptions
  yield f"{units.percent(x.dispatch_overlap)} of the experts' exchange is hidden behind matmuls"
  yield f"{units.percent(x.gradient_overlap)} of the gradients' sum is hidden behind the last backward"
  yield f"the busiest device's experts get {_busiest(a)} times the mean rows"
  for field, reason in a.question.cluster.assumptions.items():
    yield f"cluster, `{field}`: {reason}"
  if a.question.cluster.source:
    yield f"cluster, source: {a.question.cluster.source}"
