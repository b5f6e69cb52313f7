"""Deployments drawn by hypothesis: models of the catalogue and tiny ones, on clusters of one tier and of two."""

import dataclasses
import functools

import tiny
from hypothesis import assume
from hypothesis import strategies as st

from jaxmoe.config.catalogue import load_cluster, load_model
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.parts import DenseLayers, LocalAttention, SharedExpert
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import EXPERTS_OVER, HEADS_OVER, Strategy

KINDS = ("train", "prefill", "decode")
TRANSPORTS = ("capacity", "gather", "ragged", "dense")
REMATS = ("none", "selective", "full")
PRECISIONS = (
  Precision(),
  Precision(weights="bfloat16"),
  Precision(weights="bfloat16", gradients="float32", master="float32"),
  Precision(matmuls="float8_e4m3fn"),
)


class Unchecked(Deployment):
  """A deployment that may be what only plans allow, such as a schedule that does not exist, whose idle time is NaN."""

  __slots__ = ()

  def __post_init__(self):
    pass


@functools.cache
def models():
  """By name: of the catalogue, with layers that divide over four stages and with prediction layers; and tiny ones."""
  deepseek = dataclasses.replace(load_model("deepseek-v3", mtp=True), num_layers=64)
  return {
    "mixtral": load_model("mixtral-8x7b"),
    "qwen3": load_model("qwen3-30b-a3b"),
    "deepseek": deepseek,
    "gpt-oss": load_model("gpt-oss-120b"),
    "tied": tiny.model(tied_embeddings=True, gated=False),
    "mixed": tiny.model(
      dense=DenseLayers(layers=(0,), d_hidden=256),
      shared=SharedExpert(d_hidden=64, weighed=True),
      local=LocalAttention(kind="chunked", size=24, layers=(1, 3)),
      mtp_layers=1,
    ),
  }


@functools.cache
def clusters():
  return {"two tiers": load_cluster("dgx_h100"), "torus": load_cluster("tpu_v5p"), "switch": one_switch()}


def one_switch():
  """All devices behind one switch: every two of them are equally far apart."""
  dgx = load_cluster("dgx_h100")
  return dataclasses.replace(dgx, tiers=(dataclasses.replace(dgx.tiers[0], devices=dgx.devices),))


@st.composite
def strategies(draw, sizes=(1, 2, 4, 8)):
  """Legal by themselves."""
  heads_over, experts_over = draw(st.sampled_from(HEADS_OVER)), draw(st.sampled_from(EXPERTS_OVER))
  data = draw(st.sampled_from(sizes))
  return Strategy(
    data=data,
    stage=draw(st.sampled_from((1, 2, 4))),
    expert=draw(st.sampled_from(sizes)),
    tensor=draw(st.sampled_from((1, 2, 4))) if "tensor" in heads_over else 1,
    heads_over=heads_over,
    experts_over=experts_over,
    context=draw(st.sampled_from([n for n in (1, 1, 2, 4) if data % n == 0])),
    sequence_parallel=draw(st.booleans()),
  )


@st.composite
def deployments(draw, kinds=KINDS, transports=TRANSPORTS, clusters_of=("two tiers", "torus"), precisions=PRECISIONS):
  """Any legal one."""
  kind, strategy = draw(st.sampled_from(kinds)), draw(strategies())
  microbatches = draw(st.sampled_from((1, 2, 4, 8)))
  training = {
    "remat": draw(st.sampled_from(REMATS)),
    "zero": draw(st.integers(0, 3)),
    "schedule": draw(st.sampled_from(("gpipe", "1f1b", "zero_bubble"))),
  }
  job = Job(
    kind=kind,
    batch=strategy.batch_shards * microbatches * draw(st.sampled_from((1, 2, 8))),
    sequence_length=draw(st.sampled_from((16, 128, 4096))),
    microbatches=microbatches,
    transport=draw(st.sampled_from(transports)),
    capacity_factor=draw(st.sampled_from((1.0, 1.25, 2.0))),
    precision=draw(st.sampled_from(precisions)),
    **(training if kind == "train" else {}),
  )
  model, cluster = models()[draw(st.sampled_from(sorted(models())))], clusters()[draw(st.sampled_from(clusters_of))]
  return built(model=model, cluster=cluster, strategy=strategy, job=job)


def built(**parts):
  """The deployment, or where it would be illegal another draw."""
  try:
    return Deployment(name="drawn", title="", **parts)
  except UsageError:
    assume(False)


def with_job(d, **changes):
  return dataclasses.replace(d, job=dataclasses.replace(d.job, **changes))


def with_strategy(d, **changes):
  """With these sizes, or where that would be illegal another draw."""
  try:
    return dataclasses.replace(d, strategy=dataclasses.replace(d.strategy, **changes))
  except UsageError:
    assume(False)
