"""How much work a grouped matmul does when only the routing decides: expected, and at most. Plain numbers, no jax.

Expected means that rows fall on experts uniformly at random. The array of rows may be longer than the rows that are
expected in it: a caller that must have room for the worst routing says what to expect with `expecting`.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import NamedTuple

# Measured on 2 cores (benchmarks/kernels_cpu.py): smaller tiles pack the weights more often, larger ones pad more rows.
TILE_STEP = 8
LARGEST_TILE = 128

LEAST_ROWS = 1e-6  # that may be expected: of less, a fraction of the experts that have any is no number

FLOAT32_PRODUCTS = 6  # of bfloat16 parts, where tensor cores multiply 16 bits (jaxmoe/kernels/hopper/parts.py)


class Expectation(NamedTuple):
  """Of the routing: how many rows, None for as many as fit, and whether every expert has the same number of them."""

  rows: float | None = None
  even: bool = False


NOTHING_SAID = Expectation()
_expectation: contextvars.ContextVar[Expectation] = contextvars.ContextVar("expectation", default=NOTHING_SAID)


class Trips(NamedTuple):
  """How often a loop runs: as expected, and at most."""

  expected: float
  most: float


@contextlib.contextmanager
def expecting(rows: float | None, *, even: bool = False) -> Iterator[None]:
  """While tracing: what grouped matmuls expect in their arrays, see `Expectation`."""
  token = _expectation.set(Expectation(rows, even))
  try:
    yield
  finally:
    _expectation.reset(token)


def expected_rows(num_rows: int) -> float:
  """Rows expected in an array of `num_rows`."""
  rows = _expectation.get().rows
  return num_rows if rows is None else min(max(rows, LEAST_ROWS), num_rows)


def is_even() -> bool:
  """Whether every expert is expected to have the same number of rows."""
  return _expectation.get().even


def tile_rows(num_rows: int, num_experts: int) -> int:
  """Rows of a tile: three quarters of the mean rows of an expert, in steps of 8, within limits and the array."""
  steps = math.ceil(3 * expected_rows(num_rows) / (4 * num_experts * TILE_STEP))
  return min(num_rows, LARGEST_TILE, max(1, steps) * TILE_STEP)


def expert_trips(num_rows: int, num_experts: int) -> Trips:
  """Experts that have rows."""
  if is_even():
    return Trips(num_experts, num_experts)
  return Trips(num_experts * (1 - (1 - 1 / num_experts) ** expected_rows(num_rows)), min(num_experts, num_rows))


def tile_trips(num_rows: int, num_experts: int, tile: int) -> Trips:
  """Tiles of one expert that has rows: the last one is half full if sizes are spread at random."""
  if is_even():
    tiles = math.ceil(num_rows / num_experts / tile)
    return Trips(tiles, tiles)
  experts = expert_trips(num_rows, num_experts)
  most = (num_rows + experts.most * (tile - 1)) // tile
  expected = expected_rows(num_rows) / tile + experts.expected * (tile - 1) / (2 * tile)
  return Trips(min(max(expected, experts.expected), most) / experts.expected, most / experts.most)


def kernel_scope(flops_a_row: float, num_rows: int, bytes_: float) -> str:
  """Name of the `jax.named_scope` around a kernel that the compiler cannot look into: matmul FLOPs, expected bytes."""
  expected, most = flops_a_row * expected_rows(num_rows), flops_a_row * num_rows
  return f"kernel[expected={expected:g},max={most:g},bytes={bytes_:g}]"


def kernel_bytes(
  num_rows: int, num_experts: int, *, row_bytes: float, weight_bytes: float, result_bytes: float
) -> float:
  """Bytes that a grouped matmul reads and writes: the rows and the weights of experts that are expected, its result.

  Args:
    row_bytes: read of one row, in all passes over it.
    weight_bytes: of all experts.
    result_bytes: of the whole result, which is zero where no expert's rows are.
  """
  visited = expert_trips(num_rows, num_experts).expected / num_experts if weight_bytes else 0
  return expected_rows(num_rows) * row_bytes + visited * weight_bytes + result_bytes


def products(kernel: str | None, dtype: str) -> int:
  """Multiplications that a kernel makes of one multiplication of numbers of this dtype."""
  return FLOAT32_PRODUCTS if kernel == "hopper" and dtype == "float32" else 1


def multiplied_rows(kernel: str | None, num_rows: int, num_experts: int) -> Trips:
  """Rows that a grouped matmul multiplies. Only the CPU's loops show the padding of their last tiles to a compiler."""
  if kernel != "cpu_tiles":
    return Trips(expected_rows(num_rows), num_rows)
  tile = tile_rows(num_rows, num_experts)
  experts, tiles = expert_trips(num_rows, num_experts), tile_trips(num_rows, num_experts, tile)
  return Trips(experts.expected * tiles.expected * tile, experts.most * tiles.most * tile)
