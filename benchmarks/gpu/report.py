"""Results of `kernels.py` as Markdown: correctness, medians beside the peers', and the goals that they meet or miss."""

from goals import DENSE, KINDS, OURS, cases_of, goals


def markdown(results: dict) -> str:
  lines = [*heading(results), *correctness(results["correctness"]), *medians(results)]
  lines += ["", "## Goals", "", "| case | measure | limit | value | |", "| --- | --- | ---: | ---: | --- |"]
  return "\n".join([*lines, *goals(results), ""])


def heading(results: dict) -> list[str]:
  env = results["environment"]
  lines = [f"# Expert kernels on {env['device']}, measured", "", f"{env['date']}, driver {env['driver']}."]
  lines += ["", ", ".join(f"{name} {number}" for name, number in env["versions"].items()) + "."]
  lines += [f"cuDNN {env['cudnn']}; `jax.lax.ragged_dot` compiled as: {env['ragged_dot']}.", ""]
  lines += [f"Made by `python benchmarks/gpu/kernels.py --seed {results['seed']}`."]
  if results["dry_run"]:
    lines += ["", "**A dry run in the interpreter: times mean nothing.**"]
  return lines


def correctness(rows: list[dict]) -> list[str]:
  lines = ["", "## Correctness", "", "| model | tokens | dtype | leg | error | correct |"]
  lines += ["| --- | ---: | --- | --- | ---: | --- |"]
  for row in rows:
    case = f"| {row['model']} | {row['tokens']} | {row['dtype']} | {row['leg']} |"
    if "skipped" in row:
      lines.append(f"{case} - | not checked: {row['skipped']} |")
      continue
    error = cell(row["error"]) if isinstance(row["error"], str) else f"{row['error']:.2e}"
    lines.append(f"{case} {error} | {row['correct']}{', in an earlier run' * row.get('reused', False)} |")
  return lines


def medians(results: dict) -> list[str]:
  limits, rows = results["ceilings"], results["rows"]
  names = list(dict.fromkeys(row["who"] for row in rows))
  lines = ["", "## Median microseconds", ""]
  lines += [
    f"`floor`: the larger of useful operations at {limits['flops_per_s'] / 1e12:.0f} TFLOP/s and least bytes at"
  ]
  lines += [f"{limits['bytes_per_s'] / 1e12:.2f} TB/s, as one dense matmul and one copy ran in this run."]
  lines += ["`of dense`: rate relative to one dense matmul of equal operations. Before it was timed, each result was"]
  lines += ["compared with float64 at samples, for the same problem and tile. What is near the time of its leg at"]
  lines += ["`tiny`, which is next to no work, is a launch's time.", ""]
  lines += [f"| model | tokens | skew | leg | floor | of dense | TFLOP/s | GB/s | {' | '.join(names)} |"]
  lines += ["|" + " --- |" * (8 + len(names))]
  return [*lines, *table(rows, names), "", *notes(rows)]


def table(rows: list[dict], names: list[str]) -> list[str]:
  lines = []
  for case, by_name in cases_of(rows).items():
    ours, dense = by_name.get(OURS, {}), by_name.get(DENSE, {})
    ratio = dense["median_us"] / ours["median_us"] if "median_us" in ours and "median_us" in dense else None
    facts = [ours.get("floor_us"), ratio, ours.get("tflops"), ours.get("gb_per_s")]
    shown = ["-" if fact is None else f"{fact:.2f}" if fact is ratio else f"{fact:.0f}" for fact in facts]
    times = [time(by_name.get(name, {})) for name in names]
    lines.append("| " + " | ".join([*map(str, case), *shown, *times]) + " |")
  return lines


def time(row: dict) -> str:
  return f"{row['median_us']:.1f}{' (differs)' * row.get('differs', False)}" if "median_us" in row else "-"


def notes(rows: list[dict]) -> list[str]:
  """Each distinct reason for a missing time, or remark on one, once."""
  said: dict[tuple[str, str], list[str]] = {}
  for row in rows:
    remarks = [f"{kind}: {row[kind]}" for kind in KINDS if kind in row]
    remarks += [row[kind] for kind in ("note", "remark") if kind in row]
    remarks += ["its result is not that of float64, so it does not count as a peer"] if row.get("differs") else []
    for remark in remarks:
      said.setdefault((row["who"], remark), []).append(f"{row['model']}/{row['tokens']}/{row['leg']}")
  return [
    f"- {who}, {cell(remark)} ({', '.join(where[:4])}{', ...' * (len(where) > 4)})"
    for (who, remark), where in said.items()
  ]


def cell(text: str) -> str:
  return text.replace("|", "/")
