"""What is tuned, in which order, and which tile shapes are worth compiling for it."""

import dataclasses
import json
import math
import pathlib
from typing import NamedTuple

from problems import GOAL_SECTIONS, LAUNCH, Problem, plan

from jaxmoe.kernels.hopper import config
from jaxmoe.kernels.hopper.config import Leg, TileShape
from jaxmoe.kernels.hopper.device import Device

KEYS = ("device", "leg", "groups", "D", "F", "rows_per_group")
BANDS = (8, 4, 16)
FEWEST, SLACK = 3, 1.3  # candidates of a leg, and how much more than the best one's bound is still worth a try
# A processor's cycles: a tensor core instruction of 64 x 256 x 16 takes 128, and L2 gives 64 bytes a cycle at best.
OPERATIONS_A_CYCLE, BYTES_A_CYCLE = 4096, 64


class Tunable(NamedTuple):
  """A leg of a problem, as a sum over D to F columns or a D x F gradient; `swapped` takes the layer's other side."""

  problem: Problem
  leg: Leg
  D: int
  F: int
  swapped: bool

  def key(self, target: Device) -> tuple:
    N, _, _, E = self.problem.dims
    return target.kind, self.leg, E, self.D, self.F, config.bucket(N, E)

  def rule(self, target: Device) -> TileShape:
    N, _, _, E = self.problem.dims
    return config.by_rule(self.leg, self.D, self.F, rows=N, groups=E, processors=target.processors)


def tunables(target: Device, table: pathlib.Path, seed: int, problems: list[Problem] | None = None) -> list[Tunable]:
  """Those that the table lacks: what goals are judged by first, then the benchmark's other problems."""
  problems = problems or [Problem(model, tokens, seed=seed) for model, tokens in ordered()]
  goal = dict.fromkeys((p.model, p.tokens) for s in plan() if s.name in GOAL_SECTIONS for p in s.problems)
  few = {(p.model, p.tokens) for s in plan() if s.name == "decode" for p in s.problems}
  legs = [each for problem in problems for each in legs_of(problem)]

  def later(each: Tunable) -> bool:
    shape = each.problem.model, each.problem.tokens
    forward = each.leg in ("gated_up", "matmul", "matmul_scaled")
    return shape not in goal or (not forward if shape in few else each.leg == "matmul_scaled")

  known = {tuple(entry[key] for key in KEYS) for entry in json.loads(table.read_text())["entries"]}
  first: dict[tuple, Tunable] = {}
  for each in sorted(legs, key=later):
    first.setdefault(each.key(target), each)
  return [each for key, each in first.items() if key not in known]


def ordered() -> list[tuple[str, int]]:
  """(model, tokens) of the benchmark: shapes of many rows that goals name, those of few, then the others."""
  sections = {section.name: section.problems for section in plan() if section.name != LAUNCH}
  names = dict.fromkeys(["qwen3", "seed", "mixtral", "deepseek-v3", "decode", "skew", *sections])
  return list(dict.fromkeys((p.model, p.tokens) for name in names for p in sections[name]))


def legs_of(problem: Problem) -> list[Tunable]:
  _, D, F, _ = problem.dims
  return [
    Tunable(problem, "gated_up", D, F, False),
    Tunable(problem, "matmul", F, D, False),
    Tunable(problem, "matmul_transposed", F, D, False),
    Tunable(problem, "matmul_transposed", D, F, True),
    Tunable(problem, "weight_gradient", D, F, False),
    Tunable(problem, "weight_gradient", F, D, True),
    Tunable(problem, "matmul_scaled", F, D, False),
  ]


def candidates(each: Tunable, target: Device) -> list[TileShape]:
  """The rule's first; then those whose bound is near the least, and never fewer than `FEWEST` where so many serve."""
  rule = each.rule(target)
  serving = [shape for shape in config.candidates() if shape.serves(each.leg, each.D, each.F)]
  cycles = {shape: least_cycles(each, shape, target.processors) for shape in serving}
  others = sorted((shape for shape in serving if shape != rule), key=cycles.__getitem__)
  near = [shape for shape in others if cycles[shape] <= SLACK * min(cycles.values())]
  return [rule, *others[: max(len(near), FEWEST - 1)]]


def least_cycles(each: Tunable, shape: TileShape, processors: int) -> float:
  """A bound on the busiest processor's cycles: its tiles' multiplications, or what they read again and again from L2.

  A tile count that leaves processors idle shows as the last turn's waste, small tiles as bytes. Reading device memory
  is the same for all shapes, so it is left out.
  """
  N, _, _, E = each.problem.dims
  columns = each.F * (2 if each.leg == "gated_up" else 1)
  if each.leg == "weight_gradient":
    tiles, depth = E * (each.D / shape.height) * (columns / shape.width), N / E
    rows = shape.height
  else:
    down = N / shape.height + min(E, N) / 2  # a group ends within a tile
    tiles, depth = down * (columns / shape.width), each.D
    rows = min(shape.height, 64 * (N / 64 + min(E, N) / 2) / down)  # chunks of 64 that nobody owns are skipped
  multiply = 2 * rows * shape.width * depth / OPERATIONS_A_CYCLE
  read = 2 * (shape.height + shape.width) * depth / BYTES_A_CYCLE
  return math.ceil(tiles / processors) * max(multiply, read)


def variants(each: Tunable, shape: TileShape) -> list[TileShape]:
  """The same tile in other orders, and with one consumer behind the other where rows are many enough to compute."""
  bands = [dataclasses.replace(shape, band=band) for band in BANDS if band != shape.band]
  lagging = [] if shape.split_columns else config.lagging(shape)
  return [*bands, *(other for other in lagging if other.serves(each.leg, each.D, each.F))]
