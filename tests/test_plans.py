"""The same functions price one plan and a million: every element of `Plans` costs what its `Deployment` costs."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from drawn_deployments import Unchecked

from jaxmoe.config.assumptions import NOTHING_HIDDEN, Assumptions
from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job, Precision
from jaxmoe.cost.memory import memory, peak_bytes
from jaxmoe.cost.plans import Plans, StrategyColumns
from jaxmoe.cost.time import step_s, step_time
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

REMATS = ("none", "selective", "full")
ZEROS = (0, 1, 2, 3)
SCHEDULES = (
  ("gpipe", 1),
  ("1f1b", 1),
  ("interleaved", 2),
  ("interleaved", 4),
  ("zero_bubble", 1),
  ("dualpipe", 1),
)
FOLDINGS = (  # heads_over, experts_over
  (("tensor",), ("expert",)),
  (("tensor",), ("expert", "tensor")),
  (("expert",), ("expert",)),
  (("expert", "tensor"), ("expert",)),
  (("expert", "tensor"), ("expert", "tensor")),
)
ORDERS = (("data", "stage", "expert", "tensor"), ("stage", "tensor", "data", "expert"))
MODELS = ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b")
MIXED = Precision(weights="bfloat16", matmuls="float8_e4m3fn", gradients="float32", master="float32")
HIDDEN = Assumptions(dispatch_overlap=0.7, gradient_overlap=0.4, load=1.3)
BATCH = 768
PARTED_BYTES = 8  # an array deals out parts of a byte; one deployment rounds up, once for each group of replicas
DEALT_OUT = ("parameters", "gradients", "optimizer", "step", "peak")
SAMPLE = 40


def model(name, kind):
  """The catalogue's; in training with prediction layers, where it has them."""
  return load_model(name, mtp=kind == "train")


def rows(rng, make, count):
  """Strategies and microbatches that make a legal deployment."""
  found = []
  for _ in range(100 * count):
    data, stage = rng.choice((1, 2, 3, 4, 8, 32)), rng.choice((1, 1, 2, 3, 4, 8))
    sizes = {"data": data, "stage": stage, "expert": rng.choice((1, 2, 4, 8, 16)), "tensor": rng.choice((1, 2, 4, 8))}
    context = rng.choice([n for n in (1, 1, 2, 3, 4) if data % n == 0])
    row = {**sizes, "context": context, "microbatches": rng.choice((1, 2, 4, 8, 16))}
    try:
      make(**row)
    except UsageError:
      continue
    if row not in found:
      found.append(row)
    if len(found) == count:
      break
  return found


def maker(model, cluster, job, folding, kind=Deployment):
  """A function from a row to its deployment."""

  def make(*, microbatches, remat="none", zero=0, schedule=("gpipe", 1), **sizes):
    own = dataclasses.replace(
      job, microbatches=microbatches, remat=remat, zero=zero, schedule=schedule[0], chunks=schedule[1]
    )
    return kind(name="x", title="", model=model, cluster=cluster, strategy=Strategy(**sizes, **folding), job=own)

  return make


def column(values, dimension):
  """Along one of a plan's four dimensions."""
  return np.array(list(values)).reshape([-1 if place == dimension else 1 for place in range(4)])


def plans(model, cluster, job, folding, rows, options):
  """All combinations of rows with (schedules, remats, zeros)."""
  schedules, remats, zeros = options
  axes = ("data", "stage", "expert", "tensor", "context")
  return Plans(
    model=model,
    cluster=cluster,
    job=job,
    strategy=StrategyColumns(**{axis: column((row[axis] for row in rows), 0) for axis in axes}, **folding),
    batch=column([job.batch], 0),
    microbatches=column((row["microbatches"] for row in rows), 0),
    schedules=schedules,
    executes_idle=column((name == "gpipe" for name, _ in schedules), 1) * 1,
    recomputed=column((remat == "full" for remat in remats), 2) * 1,
    hidden_recomputed=column((remat == "selective" for remat in remats), 2) * 1,
    zero=column(zeros, 3),
  )


def price(d, assumed):
  """Every term of time and every class of memory, with their totals, by name."""
  seconds = {**step_time(d, assumed).terms(), "step": step_s(d, assumed)}
  return {"s": seconds, "bytes": {**dataclasses.asdict(memory(d, assumed.load)), "peak": peak_bytes(d, assumed.load)}}


def assert_equal_prices(rng, make, many, rows, options, assumed):
  """Of a sample of all combinations."""
  cells = list(itertools.product(*(range(len(values)) for values in (rows, *options))))
  shape = tuple(len(values) for values in (rows, *options))
  together = price(many, assumed)
  rounded = {"s": PARTED_BYTES * 4 / many.cluster.memory_bandwidth_bytes_per_s, "bytes": PARTED_BYTES}
  for cell in rng.sample(cells, min(SAMPLE, len(cells))):
    row, schedule, remat, zero = (values[at] for values, at in zip((rows, *options), cell, strict=True))
    alone = price(make(**row, schedule=schedule, remat=remat, zero=zero), assumed)
    for unit, whole in (("s", "step"), ("bytes", "peak")):
      for name, wanted in alone[unit].items():
        found = np.broadcast_to(together[unit][name], shape)[cell]
        slack = rounded[unit] if name in DEALT_OUT else 0
        assert np.isclose(found, wanted, rtol=1e-9, atol=slack, equal_nan=True), (name, row, schedule, remat, zero)
      terms = sum(value for name, value in alone[unit].items() if name != whole)
      assert np.isclose(terms, alone[unit][whole], rtol=1e-12, equal_nan=True)


CASES = [
  (name, kind, cluster, transport)
  for name in MODELS
  for kind, cluster, transport in (
    ("train", "dgx_h100", "capacity"), ("train", "tpu_v5p", "ragged"), ("train", "dgx_h100", "ragged"),
    ("train", "tpu_v5p", "gather"), ("prefill", "dgx_h100", "ragged"), ("prefill", "tpu_v5p", "capacity"),
    ("decode", "dgx_h100", "gather"), ("decode", "tpu_v5p", "ragged"), ("decode", "dgx_h100", "capacity"),
  )
]  # fmt: skip


@pytest.mark.parametrize("name,kind,cluster,transport", CASES)
@pytest.mark.parametrize("assumed", [NOTHING_HIDDEN, HIDDEN], ids=["nothing_hidden", "hidden"])
def test_plans_cost_what_their_deployments_cost(name, kind, cluster, transport, assumed):
  rng = random.Random(f"{name} {kind} {cluster} {transport} {assumed.load}")
  m, joined = model(name, kind), load_cluster(cluster)
  if m.num_layers == 61:
    m = dataclasses.replace(m, num_layers=64)  # divides over stages
  precision = rng.choice((Precision(), MIXED)) if kind == "train" else Precision(weights="bfloat16")
  job = Job(kind=kind, batch=BATCH, sequence_length=4096, transport=transport, precision=precision)
  for heads_over, experts_over in rng.sample(FOLDINGS, 2):
    folding = {
      "heads_over": heads_over, "experts_over": experts_over,
      "sequence_parallel": rng.random() < 0.5, "order": rng.choice(ORDERS),
    }  # fmt: skip
    found = rows(rng, maker(m, joined, job, folding), 6)
    make = maker(m, joined, job, folding, Unchecked)
    options = (SCHEDULES, REMATS, ZEROS) if kind == "train" else ((("gpipe", 1),), ("none",), (0,))
    assert len(found) >= 4
    assert_equal_prices(rng, make, plans(m, joined, job, folding, found, options), found, options, assumed)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["train", "decode"])
def test_stages_may_have_unequal_layers(name, kind):
  """Only plans allow that, or a deployment that skips its check."""
  rng = random.Random(name)
  m, cluster = model(name, kind), load_cluster("dgx_h100")
  job = Job(kind=kind, batch=BATCH, sequence_length=1024, transport="ragged")
  folding = {"heads_over": ("tensor",), "experts_over": ("expert",)}
  sizes = {"data": 2, "expert": 4, "tensor": 4, "context": 1}
  found = [{**sizes, "stage": stage, "microbatches": M} for stage, M in ((1, 4), (3, 12), (5, 8), (6, 12), (7, 4))]
  options = (SCHEDULES, REMATS, ZEROS) if kind == "train" else ((("gpipe", 1),), ("none",), (0,))
  make = maker(m, cluster, job, folding, Unchecked)
  assert_equal_prices(rng, make, plans(m, cluster, job, folding, found, options), found, options, NOTHING_HIDDEN)
