"""Time of one step by roofline: matmuls or memory, whichever is slower, plus every collective, nothing overlapped."""

import dataclasses

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.job import ITEM_BYTES
from jaxmoe.cost.collectives import collectives, ticks
from jaxmoe.cost.flops import executed_flops, expert_rows
from jaxmoe.cost.memory import cache_bytes, optimizer_bytes
from jaxmoe.cost.network import collective_s
from jaxmoe.cost.parameters import local_parameter_bytes, parameter_tensors
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
  """Seconds of one step on one device; the pipeline's idle ticks are part of both terms."""

  matmul_s: float
  memory_s: float
  network_s: float

  @property
  def total_s(self) -> float:
    return max(self.matmul_s, self.memory_s) + self.network_s

  @property
  def bottleneck(self) -> str:
    local = "matmul" if self.matmul_s >= self.memory_s else "memory"
    return "network" if self.network_s > max(self.matmul_s, self.memory_s) else local


def step_time(deployment: Deployment) -> StepTime:
  """Roofline time under the cluster's stated efficiencies."""
  d, cluster = deployment, deployment.cluster
  bandwidth = cluster.memory_bandwidth_bytes_per_s * cluster.memory_efficiency
  return StepTime(
    matmul_s=executed_flops(d).total / (peak_flops_per_s(cluster, d.job.precision.compute) * cluster.matmul_efficiency),
    memory_s=memory_traffic_bytes(d) / bandwidth,
    network_s=sum(collective_s(c, d.strategy, cluster) for c in collectives(d)),
  )


def peak_flops_per_s(cluster: Cluster, dtype: str) -> float:
  """The cluster's matmul peak in this dtype.

  Raises:
    UsageError: the cluster states none.
  """
  if dtype not in cluster.peak_flops_per_s:
    raise UsageError(
      f"cluster {cluster.name} states no matmul peak for precision.compute={dtype}; it has"
      f" {', '.join(cluster.peak_flops_per_s)}: add peak_flops_per_s.{dtype} to the cluster, or compute in one of these"
    )
  return cluster.peak_flops_per_s[dtype]


def memory_traffic_bytes(deployment: Deployment) -> float:
  """Weights read once a tick and pass, the cache once, the optimizer's state and weights read and written, activations.

  Activations count each matmul's input and output once a pass; what stays on chip between operations is not deducted.
  """
  d, train = deployment, deployment.job.kind == "train"
  weights = local_parameter_bytes(d.model, d.rules, d.job.precision)
  passes = 3 + (d.job.remat == "full") if train else 1
  traffic = passes * (ticks(d) * _layer_weight_bytes(d) + weights - _layer_weight_bytes(d))
  traffic += passes * ticks(d) * d.layers_per_stage * _activation_traffic_bytes(d)
  if train:
    return traffic + 2 * (optimizer_bytes(d) + weights)
  return traffic + cache_bytes(d)


def _layer_weight_bytes(d: Deployment) -> int:
  tensors = parameter_tensors(d.model)
  return sum(t.local_bytes(d.rules, d.job.precision) for t in tensors if t.name.startswith("layers/"))


def _activation_traffic_bytes(d: Deployment) -> float:
  m, item = d.model, ITEM_BYTES[d.job.precision.compute]
  heads = (m.num_heads + m.num_kv_heads) // d.rules.shards("attention", "H")
  rows = expert_rows(d).expected
  width = m.d_expert // d.rules.shards("expert", "F")
  attention = d.microbatch_tokens * (2 * m.d_model + 2 * heads * m.head_dim)
  return item * (attention + rows * (2 * m.d_model + m.expert_matrices * width))
