"""Placement against the tables that deployment documents print, rank by rank, and against counting."""

import itertools
import json
import re
from collections import Counter

import pytest
from plans import edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import deployment_names, load_deployment
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.placement import place, rank_of
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report.placement import expert_numbers, placements

# Document 000
PAIRS = """
  - Stage 0: Layers 0-3 (GPUs 0-31)
  - Stage 1: Layers 4-7 (GPUs 32-63)
  - Stage 2: Layers 8-11 (GPUs 64-95)
  - Stage 3: Layers 12-15 (GPUs 96-127)

Pipeline Stage 0 (Layers 0-3):
├── Expert 0: GPUs 0,1 (tensor parallel pair)
├── Expert 1: GPUs 2,3 (tensor parallel pair)
├── ...
└── Expert 15: GPUs 30,31 (tensor parallel pair)

Pipeline Stage 1 (Layers 4-7):
├── Expert 16: GPUs 32,33 (tensor parallel pair)
├── Expert 17: GPUs 34,35 (tensor parallel pair)
├── ...
└── Expert 31: GPUs 62,63 (tensor parallel pair)
"""

# Document 003
FOLDED = """
#### Pipeline Stage 0 (Layers 0-1) - GPUs 0-3
- **GPU 0**: TP rank 0, Expert 0, PP stage 0
- **GPU 1**: TP rank 1, Expert 1, PP stage 0
- **GPU 2**: TP rank 2, Expert 2, PP stage 0
- **GPU 3**: TP rank 3, Expert 3, PP stage 0

#### Pipeline Stage 1 (Layers 2-3) - GPUs 4-7
- **GPU 4**: TP rank 0, Expert 0, PP stage 1
- **GPU 5**: TP rank 1, Expert 1, PP stage 1
- **GPU 6**: TP rank 2, Expert 2, PP stage 1
- **GPU 7**: TP rank 3, Expert 3, PP stage 1

#### Pipeline Stage 2 (Layers 4-5) - GPUs 8-11
- **GPU 8**: TP rank 0, Expert 0, PP stage 2
- **GPU 9**: TP rank 1, Expert 1, PP stage 2
- **GPU 10**: TP rank 2, Expert 2, PP stage 2
- **GPU 11**: TP rank 3, Expert 3, PP stage 2

#### Pipeline Stage 3 (Layers 6-7) - GPUs 12-15
- **GPU 12**: TP rank 0, Expert 0, PP stage 3
- **GPU 13**: TP rank 1, Expert 1, PP stage 3
- **GPU 14**: TP rank 2, Expert 2, PP stage 3
- **GPU 15**: TP rank 3, Expert 3, PP stage 3
"""


def numbers(pattern, text):
  return [tuple(map(int, match)) for match in re.findall(pattern, text)]


def test_document_000_stages_and_tensor_pairs():
  d = load_deployment("ep64_tp2_pp4")
  rows = placements(d)
  stages = numbers(r"Stage (\d+): Layers (\d+)-(\d+) \(GPUs (\d+)-(\d+)\)", PAIRS)
  printed = numbers(r"Expert (\d+): GPUs (\d+),(\d+)", PAIRS)
  assert len(stages) == 4 and len(printed) == 6 and len(rows) == 128
  for stage, first_layer, last_layer, first, last in stages:
    assert [row.rank for row in rows if row.coordinates["stage"] == stage] == list(range(first, last + 1))
    assert {row.layers for row in rows[first : last + 1]} == {tuple(range(first_layer, last_layer + 1))}
  for expert, *pair in printed:
    assert [row.rank for row in rows if expert_numbers(d, row) == (expert,)] == pair
    assert [rows[rank].coordinates["tensor"] for rank in pair] == [rows[rank].width_part for rank in pair] == [0, 1]
  # "[Stages 2-3 follow same pattern with remaining experts]"
  assert [expert_numbers(d, row) for row in rows] == [(rank // 2,) for rank in range(128)]


def test_document_003_tensor_and_expert_ranks_on_the_same_devices():
  d = load_deployment("tp4_ep4_pp4")
  rows = placements(d)
  printed = numbers(r"GPU (\d+)\*\*: TP rank (\d+), Expert (\d+), PP stage (\d+)", FOLDED)
  assert [(r.rank, r.heads_part, *expert_numbers(d, r), r.coordinates["stage"]) for r in rows] == printed
  for stage, first_layer, last_layer, first, last in numbers(
    r"Stage (\d+) \(Layers (\d+)-(\d+)\) - GPUs (\d+)-(\d+)", FOLDED
  ):
    held = {(row.layers, row.coordinates["stage"]) for row in rows[first : last + 1]}
    assert held == {(tuple(range(first_layer, last_layer + 1)), stage)}


def test_text_table_prints_document_003(capsys):
  assert main(["place", "tp4_ep4_pp4"]) == 0
  lines = capsys.readouterr().out.splitlines()
  header = next(line for line in lines if line.startswith("rank"))
  columns = re.split(r"\s{2,}", header)
  rows = [dict(zip(columns, line.split(), strict=True)) for line in lines[lines.index(header) + 1 :]]
  printed = numbers(r"GPU (\d+)\*\*: TP rank (\d+), Expert (\d+), PP stage (\d+)", FOLDED)
  assert [tuple(int(row[key]) for key in ("rank", "heads part", "experts", "stage")) for row in rows] == printed
  assert max(map(len, lines)) <= 80


def test_text_table_numbers_experts_as_document_000(capsys):
  assert main(["place", "ep64_tp2_pp4"]) == 0
  rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" *\d", line)]
  assert [(int(row[0]), int(row[8])) for row in rows] == [(rank, rank // 2) for rank in range(128)]


def test_json_is_one_document(capsys):
  assert main(["place", "ep64_tp2_pp4", "--json"]) == 0
  document = json.loads(capsys.readouterr().out)
  assert document["schema_version"] == 1 and document["devices"] == 128
  row = document["placement"][34]
  assert row["coordinates"] == {"data": 0, "stage": 1, "expert": 1, "tensor": 0}
  assert (row["experts"], row["expert_numbers"], row["layers"], row["host"]) == ([1], [17], [4, 5, 6, 7], 4)


MANY = 8_000_000
PLAN_OF_MANY = (
  ("  devices: 16\n", f"  devices: {MANY}\n"),
  ("link, devices: 16", f"link, devices: {MANY}"),
  ("data: 1, stage: 2, expert: 4, tensor: 2", f"data: {MANY // 16}, stage: 2, expert: 4, tensor: 2"),
  ("batch: 16", f"batch: {MANY // 2}"),
)


@pytest.fixture
def many(tmp_path):
  (tmp_path / "plan.yaml").write_text(edited(*PLAN_OF_MANY))
  return str(tmp_path / "plan.yaml")


def test_the_first_of_millions_are_printed(many, capsys):
  assert main(["place", many]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [int(line.split()[0]) for line in lines[3:-1]] == list(range(4096))
  assert lines[-1] == "... 7,995,904 more; use --ranks A:B"


def test_ranks_are_a_slice(many, capsys):
  assert main(["place", many, "--ranks", "7999998:", "--json"]) == 0
  document = json.loads(capsys.readouterr().out)
  assert document["ranks"] == [7999998, 8000000] and document["devices"] == MANY
  last = document["placement"][-1]
  assert last["coordinates"] == {"data": MANY // 16 - 1, "stage": 1, "expert": 3, "tensor": 1}
  assert main(["place", many, "--ranks", "0:4097"]) == 0
  out = capsys.readouterr().out
  assert out.splitlines()[-1].startswith("4096 ") and "more" not in out


@pytest.mark.parametrize("arguments", [["--json"], ["--ranks", "5:131078"], ["--ranks", ":131073", "--json"]])
def test_too_many_ranks_at_once_are_refused(arguments, many, capsys):
  assert main(["place", many, *arguments]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and "131072" in err and "--ranks" in err


@pytest.mark.parametrize("ranks", ["", "5", "5:5", "9:3", "-1:", ":129", "a:b", ":" + "9" * 5000])
def test_bad_ranks_are_refused(ranks, capsys):
  assert main(["place", "ep64_tp2", "--ranks", ranks]) == 2
  out, err = capsys.readouterr()
  assert out == "" and "A:B with 0 <= A < B <= 128" in err and len(err) < 400


def test_rank_order_is_the_strategys():
  strategy = Strategy(data=2, stage=2, expert=2, tensor=2, order=("stage", "data", "tensor", "expert"))
  rows = place(strategy, 2, 2)
  assert [rows[rank].coordinates["expert"] for rank in range(3)] == [0, 1, 0]
  assert [row.coordinates["stage"] for row in rows] == [0] * 8 + [1] * 8
  assert [rank_of(strategy, row.coordinates) for row in rows] == list(range(16))


GRID = [
  Strategy(data=d, stage=s, expert=e, tensor=t, heads_over=heads, experts_over=experts)
  for d, s, e, t in itertools.product((1, 2), (1, 2), (1, 4), (1, 2))
  for heads in (("tensor",), ("expert",), ("expert", "tensor"))
  for experts in (("expert",), ("expert", "tensor"))
  if heads != ("expert",) or t == 1
]


@pytest.mark.parametrize("strategy", GRID, ids=lambda s: f"{s.product} {s.heads_over} {s.experts_over}")
def test_everything_is_held_as_often_as_its_axes_say(strategy):
  layers, experts = 4, 8
  rows = place(strategy, layers, experts, devices_per_host=3)
  assert [row.rank for row in rows] == list(range(strategy.devices))
  assert [rank_of(strategy, row.coordinates) for row in rows] == list(range(strategy.devices))
  assert [row.host for row in rows] == [rank // 3 for rank in range(strategy.devices)]
  assert len({tuple(row.coordinates[axis] for axis in AXES) for row in rows}) == strategy.devices
  width = 1 if "tensor" in strategy.experts_over else strategy.tensor
  held = Counter((row.width_part, at) for row in rows for at in itertools.product(row.layers, row.experts))
  assert set(held) == {(w, (at, e)) for w in range(width) for at in range(layers) for e in range(experts)}
  assert set(held.values()) == {strategy.data}
  parts = strategy.size(*strategy.heads_over)
  assert Counter(row.heads_part for row in rows) == dict.fromkeys(range(parts), strategy.devices // parts)


def test_whole_experts_over_both_axes():
  rows = place(Strategy(expert=2, tensor=2, experts_over=("expert", "tensor")), 1, 8)
  assert [row.experts for row in rows] == [(0, 1), (2, 3), (4, 5), (6, 7)]
  assert [row.width_part for row in rows] == [0, 0, 0, 0]


def test_uneven_stages_and_chunks():
  """The first get one more; a stage of several chunks holds every stages-th of them."""
  uneven = place(Strategy(stage=3), 8, 1)
  assert [row.layers for row in uneven] == [(0, 1, 2), (3, 4, 5), (6, 7)]
  chunked = place(Strategy(stage=2), 9, 1, chunks=2)
  assert [row.layers for row in chunked] == [(0, 1, 2, 5, 6), (3, 4, 7, 8)]


@pytest.mark.parametrize("name", deployment_names())
def test_catalogue_placement_covers_the_strategy(name):
  d = load_deployment(name)
  assert len(placements(d)) == d.strategy.devices


@pytest.mark.parametrize(
  "sizes, words",
  [((1, 8), ["num_layers=1", "stage = 2", "is 2"]), ((4, 6), ["num_experts=6", "expert = 4", "is 8"])],
)
def test_what_does_not_divide_is_refused(sizes, words):
  with pytest.raises(UsageError) as caught:
    place(Strategy(stage=2, expert=4), *sizes)
  assert all(word in str(caught.value) for word in words), caught.value
