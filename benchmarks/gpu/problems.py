"""What is measured: shapes of published models, how rows fall on experts, and the work that a leg must do."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

Leg = Literal["up", "down", "down_fp8", "input_gradient", "weight_gradient", "layer"]
Skew = Literal["balanced", "dirichlet", "quarter"]
LEGS: tuple[Leg, ...] = ("up", "down", "down_fp8", "input_gradient", "weight_gradient", "layer")
TIMED_DTYPE = "bfloat16"
LAUNCH = "launch"  # the section of next to no work: its times are what the host and the device take to launch a leg
# What is checked: the legs of the package, and a whole layer with its gradient; the word after a leg is its activation.
CHECKED = (
  "matmul", "gated_up silu", "weight_gradient", "matmul_transposed", "matmuls_transposed", "matmul_scaled", "up",
  "gated_up gelu", "gated_up clamped", "layer",
)  # fmt: skip
CHECKED_AS = {
  "up": "gated_up silu", "down": "matmul", "down_fp8": "matmul_scaled", "input_gradient": "matmul_transposed",
}  # fmt: skip

# Name -> (model width D, expert width F, experts, experts a token).
SHAPES = {
  "seed": (1024, 2048, 64, 2),
  "qwen3-30b-a3b": (2048, 768, 128, 8),
  "mixtral": (4096, 14336, 8, 2),
  "deepseek-v3": (7168, 2048, 256, 8),
  "tiny": (128, 128, 3, 2),  # for --dry-run, and for what a launch takes
}
MATMULS = {
  "up": 2,
  "down": 1,
  "down_fp8": 1,
  "input_gradient": 1,
  "weight_gradient": 1,
  "layer": 9,
}  # of one row, D x F each


def checked_as(leg: str) -> str:
  """How a leg that is timed is called among those that are checked."""
  return CHECKED_AS.get(leg, leg)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
  """Tokens routed to the experts of one layer."""

  model: str
  tokens: int
  skew: Skew = "dirichlet"
  seed: int = 0
  dtype: str = TIMED_DTYPE

  @property
  def dims(self) -> tuple[int, int, int, int]:
    """(rows N, D, F, experts E)."""
    D, F, E, top_k = SHAPES[self.model]
    return self.tokens * top_k, D, F, E

  def sizes(self) -> np.ndarray:
    """Rows of each expert: drawn from shares that are equal, or Dirichlet(2), or a quarter for the first expert."""
    N, _, _, E = self.dims
    random = np.random.default_rng(self.seed)
    shares = np.full(E, 1 / E)
    if self.skew == "dirichlet":
      shares = random.dirichlet(np.full(E, 2.0))
    if self.skew == "quarter":
      shares = np.array([0.25] + [0.75 / (E - 1)] * (E - 1))
    return random.multinomial(N, shares).astype(np.int32)

  def flops(self, leg: Leg) -> float:
    """Useful operations: a matmul of R rows is 2 R D F."""
    N, D, F, _ = self.dims
    return 2.0 * MATMULS[leg] * N * D * F

  def floor_bytes(self, leg: Leg) -> float:
    """The least that must cross device memory in 16 bits: operands of experts that have rows once, results once.

    For "up" the pre-activations count too, as training keeps them. For "layer" hidden rows and pre-activations are
    written once and read once more in each pass that needs them.
    """
    N, D, F, E = self.dims
    matrix = 2.0 * D * F
    used = float((self.sizes() > 0).sum()) * matrix
    return {
      "up": 2 * used + N * (2 * D + 6 * F),
      "down": used + N * (2 * F + 2 * D),
      "down_fp8": used / 2 + 4 * E * D + N * (2 * F + 2 * D),
      "input_gradient": used + N * (2 * F + 2 * D),
      "weight_gradient": E * matrix + N * (2 * D + 2 * F),
      "layer": 6 * used + 3 * E * matrix + N * (8 * D + 20 * F),
    }[leg]


class Section(NamedTuple):
  """Problems that answer one question; `alone` without peers, because the answer needs none."""

  name: str
  problems: list[Problem]
  legs: tuple[Leg, ...]
  alone: bool = False


def plan(seed: int = 0) -> list[Section]:
  """The most important first: what a run that is cut short has measured should answer most goals."""
  sections = _plan()
  return [s._replace(problems=[dataclasses.replace(p, seed=seed) for p in s.problems]) for s in sections]


def _plan() -> list[Section]:
  compute: tuple[Leg, ...] = ("up", "down", "input_gradient", "weight_gradient")
  every: tuple[Leg, ...] = (*compute, "layer")
  memory: tuple[Leg, ...] = ("up", "down", "down_fp8")
  few = [Problem(model, 64) for model in ("seed", "qwen3-30b-a3b", "mixtral", "deepseek-v3")]
  return [
    Section("qwen3", [Problem("qwen3-30b-a3b", 32768)], ("layer", *compute)),
    Section("decode", few, memory, alone=True),
    Section(LAUNCH, [Problem("tiny", 16)], memory, alone=True),
    Section("skew", [Problem("qwen3-30b-a3b", 16384, skew) for skew in ("balanced", "quarter")], compute, alone=True),
    Section("seed", [Problem("seed", 32768)], every),
    Section("mixtral", [Problem("mixtral", 8192)], every),
    Section("deepseek-v3", [Problem("deepseek-v3", 16384)], compute),
    Section("decode-peers", few, ("up", "down")),
    Section("ridge", [Problem("seed", 4096)], every),
    Section("few", [Problem(model, n) for n in (256, 1024) for model in ("seed", "qwen3-30b-a3b")], memory),
    Section("middle", [Problem(model, 4096) for model in ("qwen3-30b-a3b", "mixtral", "deepseek-v3")], every),
    Section("large", [Problem(model, 32768) for model in ("mixtral", "deepseek-v3")], compute),
  ]


# Sections that answer a goal, in `plan`'s order.
GOAL_SECTIONS = ("qwen3", "decode", "skew", "seed", "mixtral", "deepseek-v3")


def tiny_plan(seed: int = 0) -> list[Section]:
  return [Section("tiny", [Problem("tiny", 16, seed=seed)], LEGS)]


def cases_to_check(*, dry_run: bool, seed: int = 0) -> list[tuple[Problem, str]]:
  """What must be right before anything is timed: every leg, on tall and on low tiles, with one expert ahead.

  Every leg in the other dtypes too, once.
  """
  dtypes = (TIMED_DTYPE, "float16", "float32")
  if dry_run:
    return [(Problem("tiny", 16, dtype=dtype, seed=seed), leg) for dtype in dtypes for leg in CHECKED]
  problems = [Problem("seed", 3000, seed=seed), Problem("qwen3-30b-a3b", 3000, "quarter", seed + 1)]
  problems += [Problem("seed", 64, seed=seed + 2)]
  problems += [Problem("seed", 1000, seed=seed + 3, dtype=dtype) for dtype in dtypes[1:]]
  return [(problem, leg) for problem in problems for leg in CHECKED]
