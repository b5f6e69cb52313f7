"""Writes docs/accuracy.md: every published figure beside our prediction. `make accuracy`, some seconds.

`--fit` prints the shares that fit best, to be written into jaxmoe/cost/constants.py and the clusters' files.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from checks import CHECK_ROWS, Check, checks
from fits import FIT_ROWS, RUNS, Shares, Value, fit, left_out, predicted_time, row_error, values
from systems import Row, deepseek_v3, qwen3

from jaxmoe.cost.constants import CONSTANTS

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "accuracy.md"

HEAD = """\
# Accuracy

Written by `make accuracy` from [published.json](../benchmarks/accuracy/published.json) and the cost model as it is; do
not edit. Predictions come from the formulas of [cost_model.md](cost_model.md); nothing was measured for this page.
"""

CHECKED = """\
## Exact accounting

Counts must be equal, FLOPs within 0.5 % of the nearer end of the published range (published rates have three digits),
GiB as printed. The table of a GPT layer's saved tensors is `jaxmoe/cost/activations.py`, eight devices where a rule
splits; the first stage of 35 with three chunks each holds what the interleaved schedule's own table says. Idle
times are those of the schedules' tables; F&B, a forward and a backward at once, takes as long as one after the other.
"""

FITTED = """\
## Fitted rows

A row's error is the mean absolute error of its figures; "left out" is that of a fit on all other rows. Rows count
alike. Figures marked "given" are inputs of a cluster's file and count nowhere. Those in brackets, memory and a bubble,
are predicted beside the times and bandwidths: no fit uses them, and they count only where the summary says so.
"""

READ = """\
## How the published runs are read

- A GPT's feed-forward is one expert that every token visits. Its attention is not fused: scores are written and read.
  Microbatches and chunks of arXiv 2104.04473 are from the authors' scripts; those of arXiv 2205.05198 from its table 3.
- The head is on the last stage, where our own program splits it over all stages. DeepSeek-V3's last stage has so few
  layers that it waits for the others, so its head is left out.
- DeepSeek-V3's schedule, DualPipe, is priced as `zero_bubble`, for the reason given below. Weights' matmuls are in FP8,
  whose operands are converted; prediction layers are left out, as in the published FLOPs. Dispatch is hidden behind
  matmuls as far as they last, but for the 20 of 132 multiprocessors that it occupies. Microbatches of one sequence are
  assumed.
- Qwen3-30B-A3B's overlapped run hid 36.55 % of its communication, as its authors measured; we take that share as given.
  Of the run without overlap they measured 10.8 s of communication in a step of 24.7 s; we predict {exchange:.1f} s.
- A token that visits several devices of another node crosses the network once and is then handed on inside the node.
  The two steps are priced one after the other.

## What is not met, and why

- **All-reduce in one H100 node** reaches 445 GB/s because the switch adds (NVLink SHARP); our formulas have no
  reduction in the network. The figure is reported and kept out of the fit of `LINK_SHARE`.
- **An empty all-to-all in one node** takes 7.4 us; our floor is one message, because NCCL sends to all peers at once.
  What each further message costs its sender is not derived, so that small exchanges are priced too low. One message
  after another, 21 us, would be further off, and more so the more peers there are.
- **Imbalance**: the published figures are slowdowns of kernels, ours follow the rows of the busiest device. Rows are
  drawn as the benchmark draws them, and a kernel's time is that of its rows and of the tokens of its whole group; a
  kernel's fixed part beyond that is not derived, so that a busy device is predicted too slow. With every expert on one
  device the figures show unequal groups alone, about 6 %, which we leave out.
- **DeepSeek-V3's bubble**, 2.06 s as published, is longer than that of DualPipe's table with our times of its passes,
  {bubble:.2f} s. That of `zero_bubble` is nearer, and the fit stands on it.
- Three of the fitted rows have routed experts, two of them of one plan, all on Hopper. `EXPERT_MATMUL_SHARE` stands on
  these alone, and on experts of width 768 and 2048; wider experts may reach more.
"""


def document() -> str:
  return "\n".join([HEAD, _summary(), CHECKED, _check_table(), FITTED, _fit_table(), _constants(), _read()])


def _summary() -> str:
  found = {row["name"]: values(row) for row in FIT_ROWS}
  runs = [row_error(found[row["name"]]) for row in RUNS]
  everything = [row_error(of_row) for of_row in found.values()]
  beside = [row_error(of_row, beside=True) for of_row in found.values()]
  out = {row["name"]: row_error(left_out(row)) for row in FIT_ROWS}
  out_beside = {row["name"]: row_error(left_out(row), beside=True) for row in FIT_ROWS}
  checked = [check for row in CHECK_ROWS for check in checks(row)]
  rows = [
    ("whole training steps", len(runs), np.mean(runs), np.mean([out[row["name"]] for row in RUNS])),
    ("all fitted rows", len(everything), np.mean(everything), np.mean(list(out.values()))),
    ("the same with memory and bubble", len(everything), np.mean(beside), np.mean(list(out_beside.values()))),
  ]
  lines = [f"| {name} | {count} | {_share(error)} | {_share(left)} |" for name, count, error, left in rows]
  return "\n".join(
    [
      f"{sum(check.passes for check in checked)} of {len(checked)} exact figures are reproduced.",
      "",
      "| mean absolute error | rows | fitted | left out |",
      "| --- | --- | --- | --- |",
      *lines,
      "",
    ]
  )


def _check_table() -> str:
  lines = ["| model | figure | predicted | published | error | source |", "| --- | --- | --- | --- | --- | --- |"]
  for row in CHECK_ROWS:
    lines += [_check_line(row, check) for check in checks(row)]
  return "\n".join([*lines, ""])


def _check_line(row: Row, check: Check) -> str:
  what = f"{check.what} {check.unit and f'({check.unit})'}".strip()
  predicted, published = (_number(number, check.unit) for number in (check.predicted, check.published))
  return f"| {row['name']} | {what} | {predicted} | {published} | {_error(check.error)} | {row['source']} |"


def _fit_table() -> str:
  lines = [
    "| row | figure | predicted | published | error | row's error | left out | source |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in FIT_ROWS:
    found, ends = values(row), ["", "", ""]
    for place, value in enumerate(found):
      if place == 0:
        ends = [_share(row_error(found)), _share(row_error(left_out(row))), row["source"]]
      lines.append(_fit_line(row["name"] if place == 0 else "", value, ends if place == 0 else ["", "", ""]))
  return "\n".join([*lines, ""])


def _fit_line(name: str, value: Value, ends: Sequence[str]) -> str:
  error = "given" if value.given else f"({_error(value.error)})" if value.beside else _error(value.error)
  cells = (f"{value.what} ({value.unit})", f"{value.predicted:.4g}", f"{value.published:.4g}", error, *ends)
  return f"| {name} | " + " | ".join(cells) + " |"


def _constants() -> str:
  fitted = [c for c in CONSTANTS if c.kind == "fitted"]
  lines = [f"| `{c.name}` | {c.value} {c.unit} | {c.reason} | {', '.join(c.rows)} |" for c in fitted]
  return "\n".join(
    [
      "## Constants",
      "",
      f"{len(fitted)} constants are fitted, by least squares over log(predicted / published), rows counting alike"
      " (`python benchmarks/accuracy/report.py --fit`). Clusters of A100, H100, H200 and H800 carry them, and GB200"
      " for want of better; other clusters keep what their files assume.",
      "",
      "| constant | value | meaning | fitted on |",
      "| --- | --- | --- | --- |",
      *lines,
      "",
      "Every other number of the cost model follows from what a program does or is a datasheet's:"
      " `jaxmoe/cost/constants.py` and `meshes/clusters/`.",
      "",
    ]
  )


def _read() -> str:
  row = next(row for row in RUNS if row["name"] == "Qwen3-30B-A3B off/on")
  exchange = predicted_time(qwen3(row), Shares()).exchange
  published = next(row for row in RUNS if row["name"] == "DeepSeek-V3")
  priced = deepseek_v3(published)
  both_ways = dataclasses.replace(priced, job=dataclasses.replace(priced.job, schedule="dualpipe"))
  time = predicted_time(both_ways, Shares(), published["conditions"]["dispatch_overlap"])
  return READ.format(exchange=exchange, bubble=time.bubble)


def _number(number: float, unit: str) -> str:
  return f"{number:.5g}" if unit in ("GFLOP", "GiB") or number < 1000 else f"{number:,.0f}"


def _error(error: float) -> str:
  return "0" if abs(error) < 1e-12 else f"{error:+.2%}" if abs(error) < 0.01 else f"{error:+.1%}"


def _share(share: float) -> str:
  return f"{share:.1%}"


def main(arguments: Iterable[str]) -> None:
  if "--fit" in arguments:
    print(fit())
  else:
    DOCUMENT.write_text(document())
    print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
  main(sys.argv[1:])
