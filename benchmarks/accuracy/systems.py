"""Published systems as the cost model sees them: plans that others ran with programs of their own."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.parts import Biases
from jaxmoe.config.shares import OneJob
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.strategy import Strategy

type Row = Mapping[str, Any]

ROWS: list[Row] = json.loads((pathlib.Path(__file__).parent / "published.json").read_text())["rows"]
MIXED = Precision(weights="bfloat16", compute="bfloat16", optimizer="float32", gradients="float32", master="float32")


class HeadOnLastStage(Strategy):
  """Embedding on the first stage and head on the last, where our own program splits both over all stages."""

  __slots__ = ()

  @property
  def vocabulary_axes(self) -> tuple[str, ...]:
    return self.heads_over


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class System(OneJob):
  """A plan whose layers need not divide evenly over stages.

  Attributes:
    head_apart: whether the stage with the head has so few layers that it waits for the others.
  """

  model: ModelConfig
  cluster: Cluster
  strategy: Strategy
  job: Job
  skips_masked: bool = True
  scatters_messages: bool = False
  writes_scores: bool = False
  head_apart: bool = False

  @property
  def executes_idle(self) -> int:
    return 0


def dense_model(name: str, layers: int, d_model: int, heads: int, vocab: int) -> ModelConfig:
  """A GPT: its feed-forward is one expert that every token visits, two matrices and 4 D wide."""
  return ModelConfig(
    name=name,
    num_layers=layers,
    d_model=d_model,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=d_model // heads,
    num_experts=1,
    experts_per_token=1,
    d_expert=4 * d_model,
    vocab_size=vocab,
    gated=False,
    activation="gelu",
    tied_embeddings=True,
    norm="layer",
    biases=Biases(query_key_value=True, output=True, expert=True, norm=True),
  )


def megatron(row: Row, *, remat: Any = "full", sequence_parallel: bool = False) -> System:
  """A GPT on DGX A100 as Megatron-LM ran it: attention not fused, the head on the last stage."""
  r = {**row, **row.get("strategy", {}), **row["conditions"]}
  data = r["devices"] // r["tensor"] // r["stage"]
  return System(
    model=dense_model(row["model"], r["layers"], r["d_model"], r["heads"], r["vocab"]),
    cluster=load_cluster("dgx_a100"),
    strategy=HeadOnLastStage(data=data, stage=r["stage"], tensor=r["tensor"], sequence_parallel=sequence_parallel),
    job=Job(
      kind="train",
      batch=r["global_batch"],
      sequence_length=r["seq"],
      microbatches=r["global_batch"] // data // r["micro_batch"],
      transport="ragged",
      schedule="interleaved" if r["chunks"] > 1 else "1f1b",
      chunks=r["chunks"],
      remat=remat,
      precision=MIXED,
    ),
    skips_masked=False,
    scatters_messages=True,
    writes_scores=True,
  )


def qwen3(row: Row) -> System:
  """Expert parallel over two nodes, routing balanced by force; both rows are of one plan."""
  return System(
    model=load_model("qwen3-30b-a3b"),
    cluster=load_cluster("dgx_h100"),
    strategy=HeadOnLastStage(expert=row["strategy"]["expert"]),
    job=_expert_job(batch=1024, microbatches=64, schedule="1f1b", precision=MIXED),
  )


def deepseek_v3(row: Row) -> System:
  """Its schedule is DualPipe; `zero_bubble` idles more nearly as long as published."""
  s, conditions = row["strategy"], row["conditions"]
  data = row["devices"] // s["stage"] // s["expert"]
  return System(
    model=dataclasses.replace(load_model("deepseek-v3"), mtp_layers=0),
    cluster=load_cluster("h800"),
    strategy=HeadOnLastStage(data=data, stage=s["stage"], expert=s["expert"]),
    job=_expert_job(
      batch=row["global_batch"],
      microbatches=row["global_batch"] // data // s["expert"] // conditions["micro_batch"],
      schedule="zero_bubble",
      precision=dataclasses.replace(MIXED, matmuls=conditions["matmuls"]),
    ),
    head_apart=True,
  )


def _expert_job(**job: Any) -> Job:
  return Job(kind="train", sequence_length=4096, transport="ragged", zero=1, **job)
