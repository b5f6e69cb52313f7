"""Tile tables of the Hopper kernels, and their tile shapes, against plain Python."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from compiled_modules import WITH_CUDA, modules_on
from kernel_oracle import PATTERNS

from jaxmoe.kernels import work
from jaxmoe.kernels.hopper import config, legs, tiles
from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.kernels.hopper.device import Device

SIZES = [(rows, sizes) for rows, sizes in PATTERNS.values() if rows]
SIZES += [(2048, [7, 1, 1000, 0, 0, 40, 64, 936]), (512, [128, 128, 128, 128]), (96, [0] * 64), (64, [1] * 64)]


def random_sizes(seed):
  random = np.random.default_rng(seed)
  rows, groups = int(random.integers(1, 700)), int(random.integers(1, 40))
  return rows, np.diff(np.sort(random.integers(0, rows + 1, groups)), prepend=0).tolist()


@pytest.mark.parametrize("rows,sizes", SIZES + [random_sizes(seed) for seed in range(5)])
def test_every_row_is_in_one_tile_of_its_group(rows, sizes):
  height = 128 if rows % 2 else 64
  group_of_row = np.repeat(np.arange(len(sizes) + 1), [*sizes, rows - sum(sizes)])
  table = [np.asarray(column).tolist() for column in tiles.row_tiles(jnp.array(sizes), rows, height)]
  count = table.pop()[-1]
  covered = np.zeros(rows, int)
  for group, row, low, high in list(zip(*table, strict=True))[:count]:
    assert row % tiles.ALIGN == 0 and 0 <= low < high <= height
    assert set(group_of_row[row + low : row + high]) == {group}
    covered[row + low : row + high] += 1
  assert (covered == 1).all()
  assert count <= len(table[0])


@pytest.mark.parametrize("sizes", [[5, 0, 0], [0, 12, 0], [0, 0, 4000]])
def test_no_tile_lies_past_the_last_row(sizes):
  _, row, low, high, before = tiles.row_tiles(jnp.array(sizes), 8, 64)
  assert int(before[-1]) <= 2 and int((row + high)[: int(before[-1])].max()) == 8 and bool((low >= 0).all())


@WITH_CUDA
@pytest.mark.parametrize("rows,height,groups", [(512, 64, 128), (128, 64, 64), (262_144, 128, 128)])
def test_a_table_takes_xla_four_kernels(rows, height, groups):
  """Few experts' rows take little longer to multiply than as many launches."""
  made = modules_on("cuda", lambda sizes_E: tiles.row_tiles(sizes_E, rows, height), np.zeros(groups, np.int32))
  assert [each.opcode for each in made["optimised"].entry.instructions].count("fusion") == 4


def multiplied(sizes, rows):
  """Rows that consumers multiply, 64 at a time, in tiles of 128."""
  *_, low, high, before = (np.asarray(column) for column in tiles.row_tiles(jnp.asarray(sizes), rows, 128))
  low, high = low[: before[-1], None], high[: before[-1], None]
  parts = np.arange(0, 128, 64)[None, :]
  return 64 * ((high > parts) & (low < parts + 64)).sum()


def multiplied_for_gradients(sizes, rows):
  """Rows that a weight's gradient sums, in blocks of 64."""
  start, end = (np.asarray(column)[:-1] for column in tiles.group_rows(jnp.asarray(sizes), rows)[1:])
  return 64 * np.where(end > start, -(-(end - start // 8 * 8) // 64), 0).sum()


def test_tail_tile_costs_64_rows_at_most():
  """Of 256 experts with 65 rows each: a consumer skips the 64 rows it has none of, so few rows are multiplied twice."""
  assert multiplied([65] * 256, 256 * 65) <= 2 * 256 * 65


@pytest.mark.parametrize("count", [multiplied, multiplied_for_gradients])
@pytest.mark.parametrize("experts, mean, limit", [
  (128, 2048, 1.03), (8, 2048, 1.03), (64, 1024, 1.05), (256, 1024, 1.05), (256, 512, 1.08), (128, 256, 1.15),
])  # fmt: skip
def test_few_rows_beside_the_ideal_are_multiplied(count, experts, mean, limit):
  """Qwen3-30B-A3B, Mixtral, the seeds and DeepSeek-V3 with many tokens, unevenly routed: within 1.05 from 1,024 on."""
  random = np.random.default_rng(0)
  rows = experts * mean
  sizes = random.multinomial(rows, random.dirichlet(np.full(experts, 2.0)))
  assert rows < count(sizes, rows) <= limit * rows


@pytest.mark.parametrize("rows,sizes", SIZES)
def test_groups_come_largest_first(rows, sizes):
  order, *bounds = (np.asarray(column) for column in tiles.group_rows(jnp.array(sizes), rows))
  start, end = (edges[:-1] for edges in bounds)
  assert sorted(order.tolist()) == list(range(len(sizes)))
  assert (end - start).tolist() == sizes
  assert (np.diff((end - start)[order]) <= 0).all()


def test_bounds_of_more_rows_than_half_the_numbers():
  """No sum of two of them passes 2**31."""
  rows, sizes = 2**31 - 1, [2**30, 0, 5]
  _, start, end = (np.asarray(column).tolist() for column in tiles.group_rows(jnp.array(sizes), rows))
  assert start == [0, 2**30, 2**30, 2**30 + 5] and end == [2**30, 2**30, 2**30 + 5, rows]


@pytest.mark.parametrize("count,columns,band", [(1, 1, 8), (8, 3, 8), (13, 4, 8), (5, 7, 2), (3, 2, 1)])
def test_visits_every_tile_and_column_once_band_by_band(count, columns, band):
  turns = [tiles.visit(jnp.int32(t), jnp.int32(count), columns, band) for t in range(count * columns)]
  visited = [(int(tile), int(column)) for tile, column in turns]
  assert sorted(visited) == [(tile, column) for tile in range(count) for column in range(columns)]
  assert [tile // band for tile, _ in visited] == sorted(tile // band for tile, _ in visited)


MODELS = {"seed": (1024, 2048), "mixtral": (4096, 14336), "qwen3-30b-a3b": (2048, 768), "deepseek-v3": (7168, 2048)}


@pytest.mark.parametrize("leg", config.LEGS)
@pytest.mark.parametrize("D,F", [*MODELS.values(), (64, 128), (192, 128)])
@pytest.mark.parametrize("rows", [128, 65536])
def test_rule_finds_a_tile_that_fits(leg, D, F, rows):
  shape = config.by_rule(leg, D, F, rows=rows, groups=64, processors=132)
  assert shape.serves(leg, D, F)
  if (D, F) in MODELS.values() and rows == 65536:
    assert shape == TileShape(height=128, width=256)
  if (D, F) in MODELS.values() and rows == 128 and leg != "weight_gradient":
    assert shape.height == 64


@pytest.mark.parametrize("leg,D,F", [
  *itertools.product(("gated_up", "matmul", "matmul_transposed"), (1024, 64, 7168), (2048, 704, 192)),
  *(("matmul_scaled", D, F) for D, F in ((1024, 2048), (192, 1408))),
])  # fmt: skip
@pytest.mark.parametrize("rows,groups", [(1, 1), (8, 64), (64, 1), (4096, 64)])
def test_rule_takes_low_tiles_for_few_rows(leg, D, F, rows, groups):
  """Low ones where any serves; where none gives every processor a tile, the one of which there are most."""
  serving = [shape for shape in config.candidates() if shape.height <= 128 and shape.serves(leg, D, F)]
  low = [shape for shape in serving if shape.height == 64]
  shape = config.by_rule(leg, D, F, rows=rows, groups=groups, processors=132)
  assert shape in (low or serving)
  columns = 2 * F if leg == "gated_up" else F
  most = max((rows // one.height + min(groups, rows)) * (columns // one.width) for one in low or serving)
  if most < 132:
    assert (rows // shape.height + min(groups, rows)) * (columns // shape.width) == most


@pytest.mark.parametrize("shape", config.candidates())
def test_a_tile_can_lag_where_its_consumers_do_not_meet(shape):
  """The halves take as much shared memory; with fewer stages the first consumer would wait for the second one."""
  once, halves = config.lagging(shape)
  for leg in config.LEGS:
    lags = leg in ("gated_up", "matmul", "matmul_transposed") and shape.serves(leg, 2304, 2304)
    assert once.serves(leg, 2304, 2304) == halves.serves(leg, 2304, 2304) == lags
    assert shape.shared_bytes(leg) == once.shared_bytes(leg)
  assert halves.shared_bytes("matmul") == shape.shared_bytes("matmul")


@pytest.mark.parametrize("leg", config.LEGS)
@pytest.mark.parametrize("change", [{"stages": 1}, {"stages": 2, "lag": 1}, {"lag": -1}, {"depth": 16}, {"depth": 128}])
def test_a_tile_that_would_hang_or_not_compile_is_refused(leg, change):
  shape = TileShape(width=128, stages=2)
  assert shape.serves(leg, 256, 256) and not dataclasses.replace(shape, **change).serves(leg, 256, 256)


def test_tiles_are_for_the_rows_that_are_expected(monkeypatch):
  asked = []
  monkeypatch.setattr(config, "tile_shape", lambda *_, rows, **__: asked.append(rows))
  for expected in (None, 512, 0.2):
    with work.expecting(expected):
      legs._shape(None, "matmul", 1024, 2048, 131_072, 64, Device("H200", 132))
  assert asked == [131_072, 512, 1]


@pytest.mark.parametrize("leg,D,F", [("matmul", 96, 128), ("gated_up", 64, 32), ("weight_gradient", 192, 64),
                                     ("matmul", 0, 64), ("matmul", 64, 0)])  # fmt: skip
def test_no_tile_for_other_widths(leg, D, F):
  with pytest.raises(NotImplementedError, match=f"multiples of 64.*{D} and {F}.*pad"):
    config.by_rule(leg, D, F, rows=64, groups=4, processors=132)


def test_table_holds_tiles_that_serve():
  for entry in json.loads(config.TABLE.read_text())["entries"]:
    assert TileShape(**entry["shape"]).serves(entry["leg"], entry["D"], entry["F"]), entry


def test_table_comes_before_the_rule(monkeypatch):
  mine = TileShape(width=128, band=2)
  monkeypatch.setattr(config, "_table", lambda: {("H200", "matmul", 8, 64, 128, 512): mine})
  ask = lambda rows: config.tile_shape("matmul", 64, 128, rows=rows, groups=8, device="H200", processors=132)  # noqa: E731
  assert ask(8 * 400) == mine != ask(8 * 40)
