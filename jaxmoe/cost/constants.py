"""Every constant of the cost model, in one place, by kind; `tests/test_constants.py` finds any other number.

`physics` follows from what a program does or from how numbers are stored; `datasheet` is a vendor's; `fitted` was
chosen to make predictions meet published runs, which docs/accuracy.md lists. Whole numbers up to two are structure,
not constants: two operations of a multiply-add, two gradients, a half.
"""

import dataclasses
from typing import Literal

Kind = Literal["physics", "datasheet", "fitted"]


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
  """One number.

  Attributes:
    reason: where it comes from.
    rows: names of the published rows that it was fitted on.
  """

  name: str
  value: float
  kind: Kind
  unit: str
  reason: str
  rows: tuple[str, ...] = ()


CONSTANTS: list[Constant] = []


def _physics[N: (int, float)](name: str, value: N, unit: str, reason: str) -> N:
  CONSTANTS.append(Constant(name, value, "physics", unit, reason))
  return value


def _fitted(name: str, value: float, unit: str, reason: str, rows: tuple[str, ...]) -> float:
  CONSTANTS.append(Constant(name, value, "fitted", unit, reason, rows))
  return value


TRAIN_PASSES = _physics("TRAIN_PASSES", 3, "passes", "Forward, and a gradient for each of the two operands.")
FUSED_SCORE_BACKWARD = _physics(
  "FUSED_SCORE_BACKWARD", 2.5, "forwards", "Two matmuls of scores; backward has four, and computes scores again."
)
INT_BYTES = _physics("INT_BYTES", 4, "bytes", "Token ids, experts' numbers, lengths and step counters are int32.")
WIDE_BYTES = _physics("WIDE_BYTES", 4, "bytes", "Softmax, statistics and losses are kept in at least float32.")
MASK_BYTES = _physics("MASK_BYTES", 1, "bytes", "Of dropout, a number.")
STREAM_PASSES = _physics(
  "STREAM_PASSES", 5, "numbers", "A norm reads and writes the residual stream; a sum reads two of it and writes one."
)
PERMUTED_PASSES = _physics(
  "PERMUTED_PASSES", 4, "numbers", "Rows are read and written in their experts' order, and back."
)
DISPATCH_BUFFERS = _physics(
  "DISPATCH_BUFFERS", 4, "buffers", "Rows as sent, as received, and the same on the way back."
)
SCORE_PASSES = _physics(
  "SCORE_PASSES", 4, "numbers", "Forward, not fused: softmax and dropout each read scores and write them."
)
SCORE_GRADIENT_PASSES = _physics(
  "SCORE_GRADIENT_PASSES", 5, "numbers", "Dropout reads a gradient and writes one; softmax reads it and itself, writes."
)
ROUNDING = _physics("ROUNDING", 1e-9, "share", "Far above a float64's error, far below any share that is priced.")
MOST_POPULAR_SHARE = _physics(
  "MOST_POPULAR_SHARE", 0.8, "share", "Of tokens that may choose one expert, as aiconfigurator's power law has it."
)
LOAD_DRAWS = _physics("LOAD_DRAWS", 1000, "draws", "Of experts' popularity; their mean varies by less than 1 %.")

DENSE_ROWS = (
  "GPT 1.7B", "GPT 7.5B", "GPT 39.1B", "GPT 145.6B", "GPT 529.6B", "GPT 22B full/selective", "GPT 530B full/selective",
)  # fmt: skip
EXPERT_ROWS = ("Qwen3-30B-A3B overlapped", "Qwen3-30B-A3B off/on", "DeepSeek-V3")
BANDWIDTH_ROWS = ("bandwidth in a node", "effective bandwidth of H800")

MATMUL_SHARE = _fitted(
  "MATMUL_SHARE", 0.721, "share of the datasheet's dense peak", "That large matmuls reach.", DENSE_ROWS + EXPERT_ROWS
)
EXPERT_MATMUL_SHARE = _fitted(
  "EXPERT_MATMUL_SHARE", 0.492, "share of the same peak", "That one device's experts reach together.", EXPERT_ROWS
)
MEMORY_SHARE = _fitted(
  "MEMORY_SHARE", 0.723, "share of the datasheet's bandwidth", "That streaming reaches.", DENSE_ROWS + EXPERT_ROWS
)
LINK_SHARE = _fitted(
  "LINK_SHARE", 0.76, "share of a link's bandwidth", "That large messages reach, in a node and between.", BANDWIDTH_ROWS
)
