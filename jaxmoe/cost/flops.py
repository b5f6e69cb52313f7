"""Matmul FLOPs of one device in one step: executed by the program, and useful to the model.

A multiply and an add are two. Executed FLOPs include the pipeline's idle ticks, padding of expert buffers to their
capacity, the masked half of causal attention and what backward recomputes; useful ones do not.
"""

import dataclasses

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.collectives import ticks

# Passes over a matmul: forward, then in training two gradients.
TRAIN_PASSES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class PartFlops:
  """FLOPs by part of the model."""

  attention: float
  router: float
  experts: float
  head: float

  @property
  def total(self) -> float:
    return self.attention + self.router + self.experts + self.head


def executed_flops(deployment: Deployment) -> PartFlops:
  """What one device computes; devices of one deployment all compute the same."""
  d = deployment
  forward = _layer_forward(d)
  runs = ticks(d) * d.layers_per_stage
  passes, score_passes, head_passes = _passes(d)
  return PartFlops(
    attention=runs * (passes * forward["projections"] + score_passes * forward["scores"]),
    router=runs * passes * forward["router"],
    experts=runs * passes * forward["experts"],
    head=head_passes * _head_forward(d),
  )


def _passes(d: Deployment) -> tuple[float, float, float]:
  """Passes over projections and experts, over the two score matmuls, and over the head.

  Backward of attention recomputes the first score matmul (half of the pair) and has four more: 1 + 0.5 + 2 pairs. A
  recomputed layer runs its forward once more.
  """
  if d.job.kind != "train":
    return 1, 1, 1
  again = 1 if d.job.remat == "full" else 0
  return TRAIN_PASSES + again, TRAIN_PASSES + 0.5 + again, TRAIN_PASSES


def _layer_forward(d: Deployment) -> dict[str, float]:
  """One layer, one microbatch, on one device."""
  m, rules = d.model, d.rules
  heads = m.num_heads // rules.shards("attention", "H")
  kv_heads = m.num_kv_heads // rules.shards("attention", "G")
  rows = m.num_experts * d.expert_capacity
  if d.job.transport == "dense":
    rows = m.num_experts * d.dispatch_tokens
  width = m.d_expert // rules.shards("expert", "F")
  return {
    "projections": 2 * d.microbatch_tokens * m.d_model * m.head_dim * (2 * heads + 2 * kv_heads),
    "scores": 2 * 2 * d.microbatch_tokens * d.job.sequence_length * heads * m.head_dim,
    "router": 2 * d.dispatch_tokens * m.d_model * m.num_experts,
    "experts": 2 * rows * m.expert_matrices * m.d_model * width,
  }


def _head_forward(d: Deployment) -> float:
  tokens = d.sequences_per_device * (d.job.sequence_length if d.job.kind == "train" else 1)
  return 2 * tokens * d.model.d_model * (d.model.vocab_size // d.rules.shards("vocabulary", "V"))


def useful_flops(deployment: Deployment) -> PartFlops:
  """The model's own FLOPs for the global batch, shared evenly by all devices; causal attention counts the seen half."""
  d, m = deployment, deployment.model
  passes = TRAIN_PASSES if d.job.kind == "train" else 1
  tokens = d.job.batch * d.job.query_length
  scored = tokens if d.job.kind == "train" else d.job.batch
  share = passes / d.strategy.devices
  projections = 2 * m.d_model * m.head_dim * (2 * m.num_heads + 2 * m.num_kv_heads)
  return PartFlops(
    attention=share * tokens * m.num_layers * (projections + 4 * mean_keys(d) * m.num_heads * m.head_dim),
    router=share * tokens * m.num_layers * 2 * m.d_model * m.num_experts,
    experts=share * tokens * m.num_layers * 2 * m.experts_per_token * m.expert_matrices * m.d_model * m.d_expert,
    head=share * scored * 2 * m.d_model * m.vocab_size,
  )


def mean_keys(deployment: Deployment) -> float:
  """Keys that a query sees, averaged over queries: all of the cache in decode, (S + 1) / 2 otherwise."""
  job = deployment.job
  return job.sequence_length if job.kind == "decode" else (job.sequence_length + 1) / 2


def flops_per_token(deployment: Deployment) -> float:
  """Useful forward FLOPs of one token, head included."""
  job = dataclasses.replace(deployment.job, kind="decode" if deployment.job.kind == "decode" else "train")
  d = dataclasses.replace(deployment, job=job)
  passes = TRAIN_PASSES if job.kind == "train" else 1
  return useful_flops(d).total * d.strategy.devices / passes / (job.batch * job.query_length)
