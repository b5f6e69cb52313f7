"""Predictions for the rows that constants may be fitted on, the fit itself, and what it says of a row left out."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from systems import ROWS, Row, System, deepseek_v3, megatron, qwen3

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.catalogue import load_cluster
from jaxmoe.cost import constants
from jaxmoe.cost.collectives import Collective
from jaxmoe.cost.load import power_law_load
from jaxmoe.cost.memory import memory
from jaxmoe.cost.network import Group
from jaxmoe.cost.time import StepTime, step_time
from jaxmoe.meshes.axes import DATA
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.strategy import Strategy

FIT_ROWS = [row for row in ROWS if row["use"] == "fit"]
LARGE_BYTES = 8e9  # a message so large that latency does not count


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
  """Of the datasheet's figures, what is reached: the fitted constants."""

  matmul: float = constants.MATMUL_SHARE
  expert_matmul: float = constants.EXPERT_MATMUL_SHARE
  memory: float = constants.MEMORY_SHARE
  link: float = constants.LINK_SHARE

  def of(self, cluster: Cluster) -> Cluster:
    return dataclasses.replace(
      cluster,
      matmul_efficiency=self.matmul,
      expert_matmul_efficiency=self.expert_matmul,
      memory_efficiency=self.memory,
      tiers=tuple(dataclasses.replace(tier, efficiency=self.link) for tier in cluster.tiers),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
  """One published figure of a row and our prediction.

  Attributes:
    given: an input of ours, so that meeting it says nothing.
    beside: no time or bandwidth, but memory or a part of a step: no fit uses it.
  """

  what: str
  unit: str
  predicted: float
  published: float
  given: bool = False
  beside: bool = False

  @property
  def error(self) -> float:
    return self.predicted / self.published - 1


def predicted_time(system: System, shares: Shares, overlap: float = 0.0) -> StepTime:
  placed = dataclasses.replace(system, cluster=shares.of(system.cluster))
  time = step_time(placed, Assumptions(dispatch_overlap=overlap)).plain()
  return dataclasses.replace(time, head=0.0) if system.head_apart else time


def values(row: Row, shares: Shares | None = None) -> list[Value]:
  """Every figure of a row, predicted."""
  return PREDICTIONS[row["name"].split(" ")[0] if row["kind"].startswith("train") else row["kind"]](
    row, shares or Shares()
  )


def gpt(row: Row, shares: Shares) -> list[Value]:
  if row["kind"] == "train_throughput":
    seconds = predicted_time(megatron(row), shares).total_s
    return [
      Value("step", "TFLOP/s", recomputing_flops(row) / row["devices"] / seconds / 1e12, row["tflops_per_device"])
    ]
  selective = megatron(row, remat="none", sequence_parallel=True)
  return [
    Value("step, full recomputation", "s", predicted_time(megatron(row), shares).total_s, row["recompute_full_s"]),
    Value("step, selective", "s", predicted_time(selective, shares).total_s, row["selective_with_sequence_parallel_s"]),
  ]


def recomputing_flops(row: Row) -> float:
  """96 B s l h^2 (1 + s/6h + V/16lh): the rule of arXiv 2104.04473, which counts forward twice."""
  s, layers, h, vocab = (row[key] for key in ("seq", "layers", "d_model", "vocab"))
  return 96 * row["global_batch"] * s * layers * h * h * (1 + s / 6 / h + vocab / 16 / layers / h)


def qwen(row: Row, shares: Shares) -> list[Value]:
  system, hidden = qwen3(row), row["conditions"]["dispatch_overlap"]
  overlapped = predicted_time(system, shares, hidden).total_s
  if not isinstance(row["step_s"], list):
    peak_gib = memory(system).total / 2**30
    return [
      Value("step, dispatch overlapped", "s", overlapped, row["step_s"]),
      Value("peak memory", "GiB", peak_gib, row["peak_memory_gib"], beside=True),
    ]
  off, on = row["step_s"]
  return [
    Value("step", "s", predicted_time(system, shares).total_s, off),
    Value("step, dispatch overlapped", "s", overlapped, on),
  ]


def deepseek(row: Row, shares: Shares) -> list[Value]:
  time = predicted_time(deepseek_v3(row), shares, row["conditions"]["dispatch_overlap"])
  return [
    Value("step", "s", time.total_s, row["step_s"]),
    Value("bubble", "s", time.bubble, row["breakdown_s"]["bubble"], beside=True),
  ]


def bandwidth(row: Row, shares: Shares) -> list[Value]:
  """Bus bandwidth in a node of 8: what all devices' links carry, however the collective works."""
  found: list[Value] = []
  for device, measured in row["rows"].items():
    group = Group(Strategy(data=8), (DATA,), shares.of(load_cluster(f"dgx_{device.lower()}")))
    for name, published in measured.items():
      kind, floor, _ = name.partition("_floor_us")
      once = Collective("", KINDS[kind], (DATA,), 0.0 if floor else LARGE_BYTES, 1)
      seconds = float(group.collective_s(once))
      crossing = (2 if kind == "all_reduce" else 1) * 7 / 8 * LARGE_BYTES
      what = f"{device} {kind.replace('_', '-')}"
      found.append(
        Value(f"{what}, empty", "us", seconds * 1e6, published)
        if floor
        else Value(what, "GB/s", crossing / seconds / 1e9, published)
      )
  return found


KINDS: dict[str, Any] = {
  "all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
  "all_to_all": "all-to-all",
}  # fmt: skip


def latency(row: Row, shares: Shares) -> list[Value]:
  """H800's links: latencies are inputs of its cluster's file, bandwidths are predicted."""
  nvlink, infiniband = shares.of(load_cluster("h800")).tiers
  return [
    Value("NVLink", "GB/s", nvlink.reached_bytes_per_s / 1e9, row["h800"]["nvlink_effective_gb_per_s"]),
    Value("InfiniBand", "GB/s", infiniband.reached_bytes_per_s / 1e9, row["h800"]["ib_effective_gb_per_s"]),
    Value("NVLink message", "us", nvlink.latency_s * 1e6, row["rows"]["nvlink"], given=True),
    Value("InfiniBand message", "us", infiniband.latency_s * 1e6, row["rows"]["ib_cross_leaf"], given=True),
  ]


# Sizes of aiconfigurator's benchmark (collector, collect_moe.py): D, F, experts a token visits, experts; tokens.
MOE_MODELS = (
  (4096, 14336, 2, 8), (6144, 16384, 2, 8), (7168, 2048, 8, 256), (2048, 768, 8, 128), (4096, 1536, 8, 128),
  (6144, 2560, 8, 160), (7168, 2048, 8, 384),
)  # fmt: skip
MOE_TOKENS = (2048, 3072, 4096, 6144, 8192, 12288, 16384, 20480, 32768, 65536)


def imbalance(row: Row, shares: Shares) -> list[Value]:
  """Median over models and tokens of the experts' time on the busiest device over the balanced one."""
  cluster, found = shares.of(load_cluster("dgx_h100")), list[Value]()
  for name, slowdowns in row["rows"].items():
    devices = int(name.removeprefix("EP"))
    for exponent, published in zip((1.01, 1.2), slowdowns, strict=True):
      sizes = [(model, tokens) for model in MOE_MODELS if model[3] % devices == 0 for tokens in MOE_TOKENS]
      predicted = np.median([_slowdown(cluster, *model, tokens, devices, exponent) for model, tokens in sizes])
      found.append(Value(f"{name}, exponent {exponent}", "x", float(predicted), published))
  return found


def _slowdown(
  cluster: Cluster, D: int, F: int, visited: int, experts: int, tokens: int, devices: int, exponent: float
) -> float:
  """A kernel that multiplies its own rows, and reads and writes the tokens of the whole group."""
  load = _load(experts, devices, exponent, tokens)
  flops_per_s = cluster.peak_flops_per_s["bfloat16"] * (cluster.expert_matmul_efficiency or 1)
  bytes_per_s = cluster.memory_bandwidth_bytes_per_s * cluster.memory_efficiency
  balanced = tokens * visited / devices

  def kernel_s(rows: float) -> float:
    weights = 3 * experts / devices * D * F
    matmuls_s = max(6 * rows * D * F / flops_per_s, 2 * (weights + rows * (2 * D + 3 * F)) / bytes_per_s)
    return matmuls_s + 2 * 2 * tokens * D / bytes_per_s

  return kernel_s(load * balanced) / kernel_s(balanced)


@functools.cache
def _load(experts: int, devices: int, exponent: float, tokens: int) -> float:
  """The benchmark's most popular expert is chosen by 80 % of the tokens, its least popular by one."""
  return power_law_load(experts, devices, exponent, most_over_least=0.8 * tokens)


PREDICTIONS: dict[str, Callable[[Row, Shares], list[Value]]] = {
  "GPT": gpt, "Qwen3-30B-A3B": qwen, "DeepSeek-V3": deepseek, "collective_bandwidth_gb_per_s": bandwidth,
  "network_latency_us": latency, "expert_imbalance_slowdown": imbalance,
}  # fmt: skip

RUNS = [row for row in FIT_ROWS if row["kind"].startswith("train")]
LINKS = [row for row in FIT_ROWS if row["name"] in constants.BANDWIDTH_ROWS]
# Reduced in the switch, which the network's formulas lack: kept out of the fit, not out of the report.
IN_SWITCH = "H100 all-reduce"


def fit(rows: Sequence[Row] = tuple(FIT_ROWS)) -> Shares:
  """Shares that make the mean square of log(predicted / published) least, every row counting alike.

  The links' share comes from bandwidths alone, the others from whole runs.
  """
  link = _link_share([row for row in LINKS if row in rows])
  runs = [row for row in RUNS if row in rows]

  def residuals(shares: np.ndarray) -> list[float]:
    matmul, expert_matmul, memory = map(float, shares)
    tried = Shares(matmul=matmul, expert_matmul=expert_matmul, memory=memory, link=link)
    found = ([value for value in values(row, tried) if not value.beside] for row in runs)
    return [math.log(1 + value.error) / math.sqrt(len(of_row)) for of_row in found for value in of_row]

  best = least_squares(residuals, x0=(0.7, 0.5, 0.7), bounds=(0.05, 1.0))
  matmul, expert_matmul, memory = map(float, best.x)
  return Shares(matmul=matmul, expert_matmul=expert_matmul, memory=memory, link=link)


def _link_share(rows: Sequence[Row]) -> float:
  """Bandwidth is in proportion to the share, so that the best is a geometric mean, each row counting alike."""
  whole = [[v for v in values(row, Shares(link=1.0)) if v.unit == "GB/s" and v.what != IN_SWITCH] for row in rows]
  logs = [np.mean([math.log(value.published / value.predicted) for value in of_row]) for of_row in whole]
  return math.exp(float(np.mean(logs)))


@functools.cache
def _without(name: str) -> Shares:
  return fit([row for row in FIT_ROWS if row["name"] != name])


def row_error(found: Sequence[Value], *, beside: bool = False) -> float:
  """Mean absolute error of what a row has us predict, with or without what stands beside its times and bandwidths."""
  counted = (value for value in found if not value.given and (beside or not value.beside))
  return float(np.mean([abs(value.error) for value in counted]))


def left_out(row: Row) -> list[Value]:
  """The row as predicted by a fit on all others."""
  return values(row, _without(row["name"]))
