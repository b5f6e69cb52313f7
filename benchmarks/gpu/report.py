"""Results of `kernels.py` as Markdown: correctness, medians beside the peers', and the goals that they meet or miss."""

OURS, DENSE = "jaxmoe", "dense matmul"

# Leg -> (least rate relative to a dense matmul, least relative to the best tokamax backend), where rows are many.
GOALS = {"up": (0.85, 1.3), "down": (0.85, 1.2), "input_gradient": (0.80, 1.6), "weight_gradient": (0.85, 1.1)}
LAYER_OVER_LIGER, LAYER_TFLOPS = 1.25, 550  # forward and backward of Qwen3 at 32768 tokens
DECODE_SHARE, H200_GB_PER_S = 0.8, 4300  # of what a copy reads and writes: measured on an H200; else as in this run
MOST_DIFFERENCE = 3e-2  # of a peer's result from ours, relative to the largest entry, both in bfloat16
SKEW_COST = 1.10  # a quarter of the rows on one expert, over balanced


def markdown(results: dict) -> str:
  env, limits = results["environment"], results["ceilings"]
  lines = [f"# Expert kernels on {env['device']}, measured", "", f"{env['date']}, driver {env['driver']}."]
  lines += ["", ", ".join(f"{name} {number}" for name, number in env["versions"].items()) + "."]
  lines += [f"cuDNN {env['cudnn']}; `jax.lax.ragged_dot` compiled as: {env['ragged_dot']}.", ""]
  lines += ["Made by `python benchmarks/gpu/kernels.py`."]
  if results["dry_run"]:
    lines += ["", "**A dry run in the interpreter: times mean nothing.**"]
  lines += ["", "## Correctness", "", "| model | tokens | dtype | leg | error | correct |"]
  lines += ["| --- | ---: | --- | --- | ---: | --- |"]
  for row in results["correctness"]:
    error = row["error"] if isinstance(row["error"], str) else f"{row['error']:.2e}"
    lines.append(f"| {row['model']} | {row['tokens']} | {row['dtype']} | {row['leg']} | {error} | {row['correct']} |")
  names = list(dict.fromkeys(row["who"] for row in results["rows"]))
  lines += ["", "## Median microseconds", ""]
  lines += [
    f"`floor`: the larger of useful operations at {limits['flops_per_s'] / 1e12:.0f} TFLOP/s and least bytes at"
  ]
  lines += [f"{limits['bytes_per_s'] / 1e12:.2f} TB/s, as one dense matmul and one copy ran in this run."]
  lines += ["`of dense`: rate relative to one dense matmul of equal operations.", ""]
  lines += [f"| model | tokens | skew | leg | floor | of dense | TFLOP/s | GB/s | {' | '.join(names)} |"]
  lines += ["|" + " --- |" * (8 + len(names))]
  lines += [*table(results["rows"], names), "", *notes(results["rows"]), "", "## Goals", ""]
  lines += [
    "| case | measure | limit | value | |",
    "| --- | --- | ---: | ---: | --- |",
    *goals(results["rows"], decode_gb_per_s(results)),
    "",
  ]
  return "\n".join(lines)


def table(rows: list[dict], names: list[str]) -> list[str]:
  lines = []
  for case, by_name in cases_of(rows).items():
    ours, dense = by_name.get(OURS, {}), by_name.get(DENSE, {})
    ratio = dense["median_us"] / ours["median_us"] if "median_us" in ours and "median_us" in dense else None
    facts = [ours.get("floor_us"), ratio, ours.get("tflops"), ours.get("gb_per_s")]
    shown = ["-" if fact is None else f"{fact:.2f}" if fact is ratio else f"{fact:.0f}" for fact in facts]
    times = [f"{by_name[name]['median_us']:.1f}" if "median_us" in by_name.get(name, {}) else "-" for name in names]
    lines.append("| " + " | ".join([*map(str, case), *shown, *times]) + " |")
  return lines


def notes(rows: list[dict]) -> list[str]:
  """Each distinct reason for a missing time, once."""
  reasons: dict[tuple[str, str], list[str]] = {}
  for row in rows:
    for kind in ("absent", "error", "skipped"):
      if kind in row:
        where = f"{row['model']}/{row['tokens']}/{row['leg']}"
        reasons.setdefault((row["who"], f"{kind}: {row[kind]}"), []).append(where)
    if row.get("difference", 0) > MOST_DIFFERENCE:
      reason = row["who"], "its result is not ours"
      reasons.setdefault(reason, []).append(f"{row['model']}/{row['tokens']}/{row['leg']}: {row['difference']:.1e}")
  return [
    f"- {who}, {reason} ({', '.join(where[:4])}{', ...' * (len(where) > 4)})"
    for (who, reason), where in reasons.items()
  ]


def cases_of(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
  """(model, tokens, skew, leg) -> who -> row."""
  cases: dict[tuple, dict[str, dict]] = {}
  for row in rows:
    cases.setdefault((row["model"], row["tokens"], row["skew"], row["leg"]), {})[row["who"]] = row
  return cases


def decode_gb_per_s(results: dict) -> float:
  """What few rows must reach."""
  on_h200 = "H200" in results["environment"]["device"]
  return DECODE_SHARE * (H200_GB_PER_S if on_h200 else results["ceilings"]["bytes_per_s"] / 1e9)


def goals(rows: list[dict], decode_gb_per_s: float) -> list[str]:
  """One line for each goal of each measured case."""
  cases, lines = cases_of(rows), []

  def goal(case, name: str, value: float | None, limit: float, least: bool = True):
    if value is not None:
      met = value >= limit if least else value <= limit
      lines.append(f"| {' '.join(map(str, case))} | {name} | {limit:g} | {value:.2f} | {'met' if met else 'missed'} |")

  for case, who in cases.items():
    model, tokens, skew, leg = case
    mine = who.get(OURS, {}).get("median_us")
    if mine is None:
      continue
    theirs = {name: row["median_us"] for name, row in who.items() if "median_us" in row}
    if leg == "layer" and (model, tokens) == ("qwen3-30b-a3b", 32768):
      goal(case, "of Liger's rate", rate(mine, theirs, "Liger"), LAYER_OVER_LIGER)
      goal(case, "TFLOP/s", who[OURS]["tflops"], LAYER_TFLOPS)
    elif leg in GOALS and tokens >= 8192:
      goal(case, "of a dense matmul's rate", rate(mine, theirs, DENSE), GOALS[leg][0])
      goal(case, "of tokamax's best", rate(mine, theirs, "tokamax"), GOALS[leg][1])
    elif tokens <= 64:
      goal(case, "GB/s", who[OURS]["gb_per_s"], decode_gb_per_s)
    balanced = cases.get((model, tokens, "balanced", leg), {}).get(OURS, {}).get("median_us")
    if skew == "quarter" and balanced and mine:
      goal(case, "of the balanced time", mine / balanced, SKEW_COST, least=False)
  return lines


def rate(mine: float, theirs: dict[str, float], peer: str) -> float | None:
  """Our rate relative to that of the peer, the best of those whose names start so."""
  known = [us for name, us in theirs.items() if name.startswith(peer)]
  return min(known) / mine if known else None
