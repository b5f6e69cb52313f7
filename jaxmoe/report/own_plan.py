"""The planner's own plans beside a document's, as tables that fit 100 columns and as JSON."""

import math
from collections.abc import Sequence
from typing import Any

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.meshes.axes import AXES, CONTEXT, label
from jaxmoe.planner.amount import shown
from jaxmoe.planner.own_plan import OwnPlan, OwnPlans
from jaxmoe.report.table import Table

NAMES = {
  ("priced", False): "same transport",
  ("runnable", False): "same, runs here",
  ("priced", True): "any transport",
  ("runnable", True): "any, runs here",
}
IN_SUMMARY = ("same, runs here", "same transport", "any transport")
DOCUMENTS = "document's"


def summary(own: Sequence[OwnPlans]) -> Table:
  """A row for the plan of each document, and for the best with its transport and with any."""
  rows: list[tuple[str, ...]] = []
  for plans in own:
    d = plans.document.deployment
    rows.append((d.name, *[""] * 6))
    rows.append((f"  {DOCUMENTS}", *_numbers(plans.document), "", SOURCE))
    found = {name_of(o): o for o in plans.plans}
    rows += [_row(name, found[name]) for name in IN_SUMMARY]
  headers = ["plan", " x ".join(AXES), "step", "memory", "MFU", "gain", "source"]
  return Table("The planner's own plan, on the document's devices and for its job", headers, rows)


def _row(name: str, own: OwnPlan) -> tuple[str, ...]:
  if own.plan is None:
    return f"  {name}", "none runs" if own.lacking else "none fits", "", "", "", "", ""
  return f"  {name}", *_numbers(own.plan), gain(own), SOURCE


def _numbers(e: Estimate) -> tuple[str, ...]:
  times, size = shown(e.time.total_s, "s"), shown(e.memory.total, "bytes")
  return f"{mesh(e)} = {e.deployment.strategy.devices}", times, size, shown(e.mfu, "share")


def table(plans: OwnPlans) -> Table:
  """All of a document's plan and of the planner's, a column each."""
  d = plans.document.deployment
  columns = [_column(plans.document, None), *(_column(own.plan, own) for own in plans.plans)]
  rows = [(key, *(column.get(key, "-") for column in columns)) for key in columns[0]]
  title = f"{d.name}: the planner's own plan on {d.strategy.devices} devices beside the document's"
  return Table(title, ["", DOCUMENTS, *map(name_of, plans.plans)], rows)


def _column(e: Estimate | None, own: OwnPlan | None) -> dict[str, str]:
  """Empty if nothing fits."""
  if e is None:
    return {}
  return {
    "mesh": mesh(e),
    "step": shown(e.time.total_s, "s"),
    "memory": shown(e.memory.total, "bytes"),
    "MFU": shown(e.mfu, "share"),
    "gain": gain(own) if own else "-",
    **_choices(e),
    "plans priced": f"{own.legal:,}" if own else "-",
    "document's too": "-" if own is None else "no" if own.unsearched else "yes",
    "source": SOURCE,
  }


def _choices(e: Estimate) -> dict[str, str]:
  d, job, strategy = e.deployment, e.deployment.job, e.deployment.strategy
  order = [axis for axis in strategy.order if strategy.size(axis) > 1]
  return {
    "transport": job.transport,
    "microbatches": f"{job.microbatches} of {d.microbatch_sequences}",
    "schedule": f"{job.schedule} x {job.chunks}" if job.chunks > 1 else job.schedule if strategy.stage > 1 else "-",
    "recomputed": job.remat,
    "zero": f"{job.zero}",
    "context": f"{strategy.context}",
    "heads over": label(strategy.heads_over),
    "experts over": label(strategy.experts_over),
    "sliced between": "yes" if _sliced(e) else "no",
    "outermost": order[0] if order else "-",
  }


def _sliced(e: Estimate) -> bool:
  """Whether activations are sliced over devices between attention and experts."""
  return e.deployment.strategy.sequence_parallel and e.deployment.strategy.tensor > 1


def mesh(e: Estimate) -> str:
  """`4 x 16 x 8 x 2`, in the order of the axes."""
  return " x ".join(str(e.deployment.strategy.size(axis)) for axis in AXES)


def name_of(own: OwnPlan) -> str:
  return NAMES[own.reach, own.any_transport]


def gain(own: OwnPlan) -> str:
  """`2.5 x`; `1 x` where the document's plan is the best."""
  if own.gain is None:
    return "-"
  return "1 x" if math.isclose(own.gain, 1) else f"{own.gain:.3g} x"


def unsearched(own: Sequence[OwnPlans]) -> Table | None:
  """Which documents' plans a search did not price, and why; None if all were."""
  rows = [
    (plans.document.deployment.name, name_of(one), one.unsearched)
    for plans in own
    for one in plans.plans
    if one.unsearched
  ]
  return Table("Documents' plans that were not searched", ["deployment", "search", "reason"], rows) if rows else None


def document(plans: OwnPlans) -> dict[str, Any]:
  """Bytes and seconds; the gain of `own_plan` is the document's step time over its own."""
  return {
    "document_plan": _plan(plans.document),
    "own_plan": _own(plans.best),
    "gain": plans.best.gain,
    "own_plans": [_own(own) for own in plans.plans],
  }


def _own(own: OwnPlan) -> dict[str, Any]:
  return {
    "search": name_of(own),
    "reach": own.reach,
    "transports": list(own.transports),
    "plans_priced": own.legal,
    "document_plan_searched": not own.unsearched,
    "unsearched": own.unsearched,
    "gain": own.gain,
    "plan": None if own.plan is None else _plan(own.plan),
  }


def _plan(e: Estimate) -> dict[str, Any]:
  """What a deployment file takes, and what it comes to."""
  job, strategy = e.deployment.job, e.deployment.strategy
  return {
    "name": e.deployment.name,
    "product": strategy.product,
    "strategy": {
      **{axis: strategy.size(axis) for axis in (*AXES, CONTEXT)},
      "heads_over": list(strategy.heads_over),
      "experts_over": list(strategy.experts_over),
      "order": list(strategy.order),
      "sequence_parallel": strategy.sequence_parallel,
    },
    "job": {
      "kind": job.kind,
      "batch": job.batch,
      "sequence_length": job.sequence_length,
      "microbatches": job.microbatches,
      "schedule": job.schedule,
      "chunks": job.chunks,
      "remat": job.remat,
      "zero": job.zero,
      "transport": job.transport,
    },
    "step_s": e.time.total_s,
    "memory_bytes": e.memory.total,
    "mfu": e.mfu,
    "tokens_per_s": e.tokens_per_s,
    "source": SOURCE,
  }
