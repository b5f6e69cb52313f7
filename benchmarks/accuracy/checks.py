"""Exact accounting against published figures: nothing is fitted here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from systems import MIXED, ROWS, HeadOnLastStage, Row, System, dense_model

from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.job import ITEM_BYTES, Job
from jaxmoe.config.model import ModelConfig
from jaxmoe.cost.activations import (
  attention_tensors,
  dropout_tensors,
  expert_tensors,
  layer_input_bytes,
  score_tensors,
  total_bytes,
)
from jaxmoe.cost.memory import cache_bytes_per_token, kept_microbatches
from jaxmoe.cost.parameters import active_parameters, parameter_tensors, total_parameters
from jaxmoe.cost.stage import stage_layers
from jaxmoe.cost.token_flops import token_flops
from jaxmoe.pipeline.schedule_facts import idle_s

CHECK_ROWS = [row for row in ROWS if row["use"] == "check"]
FLOPS_TOLERANCE = 0.005  # tokens per second and TFLOP/s are published in three or four digits


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
  """One published figure and ours.

  Attributes:
    tolerance: share by which they may differ; 0 for counts.
  """

  what: str
  unit: str
  predicted: float
  published: float
  tolerance: float = 0.0

  @property
  def error(self) -> float:
    return self.predicted / self.published - 1

  @property
  def passes(self) -> bool:
    return abs(self.error) <= max(self.tolerance, 1e-12)


def checks(row: Row) -> list[Check]:
  return CHECKS[row["kind"]](row)


def parameters(row: Row) -> list[Check]:
  model = _model(row["model"], mtp=False)
  return [
    Check("parameters", "", total_parameters(model), row["total"]),
    Check("active parameters", "", active_parameters(model), row["active"]),
  ]


def flops(row: Row) -> list[Check]:
  """Three passes a token; the published range is taken at its nearer end."""
  model = _model(row["model"], mtp=row.get("mtp", False))
  predicted = 3 * token_flops(model, row["seq"], seen=row["attention"]).total / 1e9
  published = row["gflop"] if isinstance(row["gflop"], list) else [row["gflop"]] * 2
  nearest = min(max(predicted, published[0]), published[1])
  return [Check("training FLOPs a token", "GFLOP", predicted, nearest, FLOPS_TOLERANCE)]


def cache(row: Row) -> list[Check]:
  model = LLAMA_405B if row["model"] == LLAMA_405B.name else load_model(row["model"].lower())
  return [Check("cache a token", "bytes", cache_bytes_per_token(model, "bfloat16"), row["bytes"])]


def activations(row: Row) -> list[Check]:
  """Every rule of the row on both of the paper's models."""
  found: list[Check] = []
  for name, sizes in PAPER_MODELS.items():
    d = {rule: _paper_system(sizes, rule) for rule in row["rules"]}
    s, b, h, a, t = 2048, sizes["micro"], sizes["d_model"], sizes["heads"], 8
    published = {
      "none": s * b * h * (34 + 5 * a * s / h),
      "tensor": s * b * h * (10 + 24 / t + 5 * a * s / (h * t)),
      "tensor_sequence": s * b * h / t * (34 + 5 * a * s / h),
      "tensor_sequence_selective": 34 * s * b * h / t,
      "full": 2 * s * b * h,
    }
    found += [
      Check(f"{name}, {rule}: {text}", "bytes", layer_bytes(d[rule], rule), published[rule])
      for rule, text in row["rules"].items()
    ]
  return found


def layer_bytes(d: System, rule: str) -> float:
  """What the itemised account keeps of one layer and microbatch of a GPT with dropout."""
  if rule == "full":
    return layer_input_bytes(d)
  scores = [] if rule.endswith("selective") else score_tensors(d)
  return layer_input_bytes(d) + total_bytes([*attention_tensors(d), *scores, *expert_tensors(d), *dropout_tensors(d)])


def memory(row: Row) -> list[Check]:
  """GiB on the first stage: 18 bytes a weight of layers' matrices; activations of all microbatches in flight."""
  found: list[Check] = []
  for place, (name, sizes) in enumerate(PAPER_MODELS.items()):
    for key, rule in (("activations_none", "tensor"), ("activations_sequence_selective", "tensor_sequence_selective")):
      d = _paper_system(sizes, rule)
      kept = stage_layers(d)[0].all * float(kept_microbatches(d))
      found.append(Check(f"{name}, {key}", "GiB", _published_gib(kept * layer_bytes(d, rule)), row[key][place], 5e-4))
    held = _published_gib(_state_bytes(_paper_system(sizes, "tensor")))
    found.append(Check(f"{name}, params_and_optimizer", "GiB", held, row["params_and_optimizer"][place], 5e-4))
  return found


def _published_gib(number: float) -> float:
  return number / 2**30


def _state_bytes(d: System) -> float:
  """Of layers' matrices alone, as the paper counts; the router of a GPT's only expert is ours alone."""
  stage, p = stage_layers(d)[0], d.job.precision
  matrices = [t for t in parameter_tensors(d.model) if t.is_matrix and t.role in ("attention", "expert")]
  count = sum(t.layer_count(d.rules) * stage.of(t.stack) for t in matrices)
  dtypes = (p.weights, p.gradients or p.weights, p.optimizer, p.optimizer, p.master or p.weights)
  return count * sum(ITEM_BYTES[dtype] for dtype in dtypes)


def bubbles(row: Row) -> list[Check]:
  """Idle time by the schedules' tables, in the published letters: B is the whole backward, W its weight part."""
  F, B, W, PP, M = 1.0, 2.1, 0.9, 16, 64
  published = {
    "1F1B": (PP - 1) * (F + B),
    "ZB1P": (PP - 1) * (F + B - 2 * W),
    "DualPipe": (PP / 2 - 1) * (F + B + B - 3 * W),  # F&B as long as F and B one after the other
  }
  predicted = {
    "1F1B": float(idle_s("1f1b", 1, PP, M, F, B)),
    "ZB1P": float(idle_s("zero_bubble", 1, PP, M, F, B - W, W)),
    "DualPipe": float(idle_s("dualpipe", 1, PP, M, F, B - W, W)),
  }
  return [Check(f"{name}: {text}", "", predicted[name], published[name]) for name, text in row["rules"].items()]


def _model(name: str, *, mtp: bool) -> ModelConfig:
  return dataclasses.replace(load_model(name.removesuffix(" (no MTP)").lower()), mtp_layers=int(mtp))


LLAMA_405B = dataclasses.replace(
  dense_model("Llama-3.1-405B", 126, 16_384, 128, 128_256), num_kv_heads=8, d_expert=53_248, gated=True
)
# arXiv 2205.05198, table 3: on eight devices, and on 35 stages of eight with three chunks each.
PAPER_MODELS: dict[str, dict[str, int]] = {
  "22B": {"layers": 48, "d_model": 6144, "heads": 64, "micro": 4, "stage": 1, "chunks": 1, "batch": 4},
  "530B": {"layers": 105, "d_model": 20_480, "heads": 128, "micro": 1, "stage": 35, "chunks": 3, "batch": 280},
}


def _paper_system(sizes: Mapping[str, int], rule: str) -> System:
  tensor = 1 if rule in ("none", "full") else 8
  return System(
    model=dense_model("GPT", sizes["layers"], sizes["d_model"], sizes["heads"], 51_200),
    cluster=load_cluster("dgx_a100"),
    strategy=HeadOnLastStage(stage=sizes["stage"], tensor=tensor, sequence_parallel=rule.startswith("tensor_sequence")),
    job=Job(
      kind="train",
      batch=sizes["batch"],
      sequence_length=2048,
      microbatches=sizes["batch"] // sizes["micro"],
      transport="ragged",
      schedule="interleaved" if sizes["chunks"] > 1 else "1f1b",
      chunks=sizes["chunks"],
      precision=MIXED,
    ),
    skips_masked=False,
    writes_scores=True,
  )


CHECKS: dict[str, Callable[[Any], list[Check]]] = {
  "parameters": parameters, "flops_per_token": flops, "kv_bytes_per_token": cache,
  "activation_bytes_per_layer": activations, "memory_gib": memory, "pipeline_bubble": bubbles,
}  # fmt: skip
