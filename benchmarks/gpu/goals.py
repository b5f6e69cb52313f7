"""The targets of the expert kernels, each judged by the rows of a run, or with the reason why it cannot be."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from problems import Problem, plan

OURS, DENSE, LIGER, TOKAMAX = "jaxmoe", "dense matmul", "Liger", "tokamax"
# Leg -> (least rate relative to a dense matmul, least relative to the best tokamax backend), where rows are many.
GOALS = {"up": (0.85, 1.3), "down": (0.85, 1.2), "input_gradient": (0.80, 1.6), "weight_gradient": (0.85, 1.1)}
MANY_ROWS = ("qwen3", "seed", "mixtral", "deepseek-v3")  # the sections that goals of legs are judged by; then others
LAYER_OVER_LIGER, LAYER_TFLOPS = 1.25, 550  # forward and backward of Qwen3 at 32768 tokens
DECODE_SHARE, H200_GB_PER_S = 0.8, 4300  # of what a copy reads and writes: measured on an H200; else as in this run
SKEW_COST = 1.10  # a quarter of the rows on one expert, over balanced

KINDS = ("absent", "error", "wrong", "skipped")  # of reasons for a missing time

By = dict[tuple, dict[str, dict]]


class Unmeasured(Exception):
  """Why a goal has no value."""


class Goal(NamedTuple):
  """A target for a case; `value` raises Unmeasured."""

  case: tuple[str, int, str, str]
  measure: str
  limit: float
  value: Callable[[By], float]
  least: bool = True
  peer: str = ""  # how the names of those begin whose best decides


def goals(results: dict) -> list[str]:
  """A line of a table for every target, measured or not."""
  cases, lines = cases_of(results["rows"]), []
  for goal in targets(decode_gb_per_s(results)):
    try:
      value = goal.value(cases)
      said = f"{value:.2f} | {'met' if (value >= goal.limit if goal.least else value <= goal.limit) else 'missed'}"
      said += lacking(cases.get(goal.case, {}), goal.peer)
    except Unmeasured as reason:
      said = f"- | not measured: {str(reason).replace('|', '/')}"
    lines.append(f"| {' '.join(map(str, goal.case))} | {goal.measure} | {goal.limit:g} | {said} |")
  return lines


def lacking(by_name: dict[str, dict], peer: str) -> str:
  """Whom the best of several is without: it might have been one of them."""
  names = [(name, kind) for name in sorted(by_name) for kind in KINDS if kind in by_name[name]]
  without = ", ".join(f"{name} ({kind})" for name, kind in names if peer and name.startswith(peer))
  return f", without {without}" if without else ""


def targets(decode_gb_per_s: float) -> Iterator[Goal]:
  problems = {section.name: section.problems for section in plan()}
  yield from _of_layer(problems["qwen3"][0])
  for section in (*MANY_ROWS, "large"):
    for problem in problems[section]:
      for leg, (dense, tokamax) in GOALS.items():
        case = case_of(problem, leg)
        yield Goal(case, "of a dense matmul's rate", dense, lambda by, case=case: rate(by, case, DENSE))
        yield Goal(case, "of tokamax's best", tokamax, lambda by, case=case: rate(by, case, TOKAMAX), peer=TOKAMAX)
  for problem in problems["decode"]:
    for leg in ("up", "down", "down_fp8"):
      case = case_of(problem, leg)
      yield Goal(case, "GB/s", decode_gb_per_s, lambda by, case=case: measured(by, case, OURS)["gb_per_s"])
  balanced, quarter = problems["skew"]
  for leg in GOALS:
    yield Goal(case_of(quarter, leg), "of the balanced time", SKEW_COST, _skew_cost(case_of(balanced, leg),
               case_of(quarter, leg)), least=False)  # fmt: skip


def _of_layer(problem: Problem) -> Iterator[Goal]:
  case = case_of(problem, "layer")
  yield Goal(case, "of Liger's rate", LAYER_OVER_LIGER, lambda by: rate(by, case, LIGER))
  yield Goal(case, "TFLOP/s", LAYER_TFLOPS, lambda by: measured(by, case, OURS)["tflops"])


def _skew_cost(balanced: tuple, quarter: tuple) -> Callable[[By], float]:
  return lambda by: measured(by, quarter, OURS)["median_us"] / measured(by, balanced, OURS)["median_us"]


def case_of(problem: Problem, leg: str) -> tuple[str, int, str, str]:
  return problem.model, problem.tokens, problem.skew, leg


def cases_of(rows: list[dict]) -> By:
  """(model, tokens, skew, leg) -> who -> row; of several rows, one with a time."""
  cases: By = {}
  for row in rows:
    by_name = cases.setdefault((row["model"], row["tokens"], row["skew"], row["leg"]), {})
    if "median_us" in row or "median_us" not in by_name.get(row["who"], {}):
      by_name[row["who"]] = row
  return cases


def rate(by: By, case: tuple, peer: str) -> float:
  """Our rate relative to that of the peer, the best of those whose names start so."""
  mine = measured(by, case, OURS)["median_us"]
  known, reasons = [], []
  for name in sorted(name for name in by[case] if name.startswith(peer)) or [peer]:
    try:
      known.append(measured(by, case, name)["median_us"])
    except Unmeasured as reason:
      reasons.append(str(reason))
  if not known:
    raise Unmeasured("; ".join(reasons))
  return min(known) / mine


def measured(by: By, case: tuple, who: str) -> dict[str, Any]:
  """The row with a time that counts."""
  row = by.get(case, {}).get(who)
  if row is None:
    raise Unmeasured(f"{who}: not in this run")
  if row.get("differs"):
    raise Unmeasured(f"{who}: its result is {row['difference']:.1e} from float64")
  for kind in KINDS:
    if kind in row:
      raise Unmeasured(f"{who}: {kind}: {row[kind][:120]}")
  return row


def decode_gb_per_s(results: dict) -> float:
  """What few rows must reach."""
  on_h200 = "H200" in results["environment"]["device"]
  return DECODE_SHARE * (H200_GB_PER_S if on_h200 else results["ceilings"]["bytes_per_s"] / 1e9)
