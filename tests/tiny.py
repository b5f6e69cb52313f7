"""Small deployments that run on eight fake devices."""

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.model import ModelConfig
from jaxmoe.meshes.cluster import Cluster, NetworkTier
from jaxmoe.meshes.strategy import Strategy

CLUSTER = Cluster(
  name="lab",
  devices=64,
  devices_per_host=8,
  peak_flops_per_s={"float32": 1e12, "float64": 1e12, "bfloat16": 2e12},
  matmul_efficiency=0.5,
  memory_bytes=16 * 10**9,
  memory_bandwidth_bytes_per_s=1e12,
  memory_efficiency=0.5,
  tiers=(
    NetworkTier(name="node", devices=8, bandwidth_bytes_per_s=1e11, latency_s=1e-6),
    NetworkTier(name="fabric", devices=64, bandwidth_bytes_per_s=1e10, latency_s=1e-5),
  ),
)


def model(**changes) -> ModelConfig:
  sizes = {
    "num_layers": 4, "d_model": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8,
    "num_experts": 8, "experts_per_token": 2, "d_expert": 64, "vocab_size": 256,
  }  # fmt: skip
  return ModelConfig(name="tiny", **{**sizes, **changes})


def deployment(strategy=None, dtype="float32", sizes=None, **job) -> Deployment:
  """A tiny model; by default a training job of 16 sequences of 16 tokens in 2 microbatches, dropping nothing."""
  defaults = {"kind": "train", "batch": 16, "sequence_length": 16, "microbatches": 2, "capacity_factor": 8.0}
  precision = Precision(weights=dtype, compute=dtype, optimizer=dtype)
  return Deployment(
    name="tiny",
    title="",
    model=model(**(sizes or {})),
    cluster=CLUSTER,
    strategy=strategy or Strategy(),
    job=Job(**{**defaults, "precision": precision, **job}),
  )


def whole_tiles(strategy, dtype="bfloat16", **job) -> Deployment:
  """Wide enough for the tiles of accelerators: rows are whole lanes of a TPU, and the Hopper kernels take them."""
  sizes = {"d_model": 256, "head_dim": 128, "d_expert": 512, "vocab_size": 1024}
  return deployment(strategy, dtype, sizes, **{"sequence_length": 256, "capacity_factor": 1.25, **job})
