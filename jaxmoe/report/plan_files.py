"""The files that a plan comes with, by name: the deployment, the answer, candidates, the guide and its checks."""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

from jaxmoe.config.catalogue import read_deployment
from jaxmoe.config.plan_form import deployment_mapping, deployment_text
from jaxmoe.cost.estimate import SOURCE, Estimate, estimate
from jaxmoe.meshes.axes import AXES, label
from jaxmoe.planner.answer import Answer
from jaxmoe.planner.pareto import Explored
from jaxmoe.planner.plan_checks import PlanCheck, plan_checks
from jaxmoe.report.guide import guide
from jaxmoe.report.plan import document

PLAN, GUIDE = "plan.yaml", "deployment_guide.md"
FILES = (PLAN, "plan.json", "candidates.csv", "pareto.csv", GUIDE, "verification.json")


def plan_files(a: Answer, explored: Explored, to_json: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
  """All of `FILES`, for the best plan; `to_json` writes a document."""
  text = plan_text(a)
  checks = [*plan_checks(a.best, a.question), _reads_back(a, text)]
  front = [explored.estimate(c) for c in explored.found]
  contents = (
    text,
    to_json(document(a)),
    candidates_csv(a, explored, front),
    pareto_csv(front),
    guide(a, explored, checks),
    to_json(verification(a, checks)),
  )
  return dict(zip(FILES, contents, strict=True))


def plan_text(a: Answer) -> str:
  """The best plan as a deployment's file, with the assumptions that it was priced under."""
  return deployment_text(a.best.deployment, "Found by `jaxmoe plan`.")


def _reads_back(a: Answer, text: str) -> PlanCheck:
  """That the file is the plan, and costs what the plan costs."""
  back = read_deployment(text, origin=PLAN)
  again = estimate(back)
  numbers = {"step_s": a.best.time.total_s, "read_step_s": again.time.total_s}
  same = deployment_mapping(back) == deployment_mapping(a.best.deployment)
  what = f"{PLAN} reads back as this plan and costs the same"
  return PlanCheck("plan_reads_back", what, same and again.time == a.best.time, numbers)


def verification(a: Answer, checks: list[PlanCheck]) -> dict[str, Any]:
  """Every check with its numbers, and whether all hold."""
  return {
    "deployment": a.best.deployment.name,
    "source": SOURCE,
    "ok": all(check.ok for check in checks),
    "checks": [dataclasses.asdict(check) for check in checks],
  }


def candidates_csv(a: Answer, explored: Explored, front: list[Estimate]) -> str:
  """The ranked plans; `on_pareto_front` where no plan of the search beats one in both of the front's numbers."""
  points = [explored.objectives_of(e) for e in front]
  rows = [
    {"rank": rank, "on_pareto_front": not _beaten(explored.objectives_of(e), points), **_row(e)}
    for rank, e in enumerate(a.plans, 1)
  ]
  return _csv(rows)


def pareto_csv(front: list[Estimate]) -> str:
  """The front, the fastest plan first."""
  return _csv([_row(e) for e in front])


def _beaten(point: tuple[float, float], front: list[tuple[float, float]]) -> bool:
  """Whether a point of the front is better in one number and no worse in the other, rounding aside."""
  return any(
    all(mine <= other * (1 + 1e-9) for mine, other in zip(one, point, strict=True))
    and any(mine < other * (1 - 1e-9) for mine, other in zip(one, point, strict=True))
    for one in front
  )


def _row(e: Estimate) -> dict[str, Any]:
  d, s, job = e.deployment, e.deployment.strategy, e.deployment.job
  return {
    "plan": d.name,
    "devices": s.devices,
    **{axis: s.size(axis) for axis in AXES},
    "context": s.context,
    "heads_over": label(s.heads_over),
    "experts_over": label(s.experts_over),
    "axis_order": " ".join(s.order),
    "sequence_parallel": s.sequence_parallel,
    "transport": job.transport,
    "schedule": job.schedule,
    "chunks": job.chunks,
    "batch_sequences": job.batch,
    "microbatches": job.microbatches,
    "microbatch_sequences": d.microbatch_sequences,
    "remat": job.remat,
    "zero": job.zero,
    "step_s": e.time.total_s,
    "tokens_per_s": e.tokens_per_s,
    "tokens_per_s_per_device": e.tokens_per_s / s.devices,
    "mfu_share": e.mfu,
    "bubble_share": e.bubble,
    **({"tokens_per_s_per_user": 1 / e.time.total_s} if job.kind == "decode" else {}),
    "memory_bytes": round(e.memory.total),
    "free_bytes": round(d.cluster.memory_bytes - e.memory.total),
    **{f"{name}_bytes": round(size) for name, size in dataclasses.asdict(e.memory).items()},
    "bottleneck": e.time.bottleneck,
    **{f"{name}_s": s for name, s in e.time.terms().items()},
    "source": SOURCE,
  }


def _csv(rows: list[dict[str, Any]]) -> str:
  text = io.StringIO()
  writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows({key: str(x).lower() if isinstance(x, bool) else x for key, x in row.items()} for row in rows)
  return text.getvalue()
