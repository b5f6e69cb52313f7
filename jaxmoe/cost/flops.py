"""Matmul FLOPs of one device in one step: executed by the program, and useful to the model.

A multiply and an add are two. Executed FLOPs include the pipeline's idle ticks, padding of expert buffers to their
capacity, the masked half of causal attention and what backward recomputes; useful ones do not.
"""

import dataclasses

from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.collectives import ticks
from jaxmoe.cost.support import check_priced
from jaxmoe.cost.token_flops import PartFlops, token_flops
from jaxmoe.kernels import work

# Passes over a matmul: forward, then in training two gradients.
TRAIN_PASSES = 3


def executed_flops(deployment: Deployment, *, heaviest_routing: bool = False, kernel: str | None = None) -> PartFlops:
  """What one device computes: every device the same, or with `gather` as expected, or at most by `heaviest_routing`."""
  d = deployment
  check_priced(d.model)
  rows = expert_rows(d, kernel)
  forward = _layer_forward(d, rows.most if heaviest_routing else rows.expected)
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


def _layer_forward(d: Deployment, rows: float) -> dict[str, float]:
  """One layer, one microbatch, on one device."""
  m, rules = d.model, d.rules
  heads = m.num_heads // rules.shards("attention", "H")
  kv_heads = m.num_kv_heads // rules.shards("attention", "G")
  width = m.d_expert // rules.shards("expert", "F")
  return {
    "projections": 2 * d.microbatch_tokens * m.d_model * m.head_dim * (2 * heads + 2 * kv_heads),
    "scores": 2 * 2 * d.microbatch_tokens * d.job.sequence_length * heads * m.head_dim,
    "router": 2 * d.dispatch_tokens * m.d_model * m.num_experts,
    "experts": 2 * rows * m.expert_matrices * m.d_model * width,
  }


def expert_rows(d: Deployment, kernel: str | None = None) -> work.Trips:
  """Rows that one device's experts multiply for one layer and microbatch: expected and at most.

  Args:
    kernel: what multiplies them, a name in jaxmoe/kernels; None leaves out the padding of its tiles.
  """
  m, rows = d.model, d.model.num_experts
  if d.job.transport == "gather":
    experts = m.num_experts // d.rules.shards("expert", "E")
    with work.expecting(d.dispatch_tokens * m.experts_per_token):
      return work.multiplied_rows(kernel, gathered_rows(d), experts)
  rows *= d.expert_capacity if d.job.transport == "capacity" else d.dispatch_tokens
  return work.Trips(rows, rows)


def gathered_rows(d: Deployment) -> int:
  """Rows that `gather` has room for: each token of the group at all its choices, or at all experts of a device."""
  group = d.rules.shards("expert", "E")
  return group * d.dispatch_tokens * min(d.model.experts_per_token, d.model.num_experts // group)


def _head_forward(d: Deployment) -> float:
  tokens = d.sequences_per_device * (d.job.sequence_length if d.job.kind == "train" else 1)
  return 2 * tokens * d.model.d_model * (d.model.vocab_size // d.rules.shards("vocabulary", "V"))


def useful_flops(deployment: Deployment) -> PartFlops:
  """The model's own FLOPs for the global batch, shared evenly by all devices; causal attention counts the seen half."""
  d = deployment
  train = d.job.kind == "train"
  tokens = d.job.batch * d.job.query_length
  scored = tokens if train else d.job.batch
  share = (TRAIN_PASSES if train else 1) / d.strategy.devices
  each = _token_flops(d)
  return PartFlops(
    attention=share * tokens * each.attention,
    router=share * tokens * each.router,
    experts=share * tokens * each.experts,
    head=share * scored * each.head,
  )


def flops_per_token(deployment: Deployment) -> float:
  """Useful forward FLOPs of one token, head included."""
  return _token_flops(deployment).total


def _token_flops(d: Deployment) -> PartFlops:
  """Forward FLOPs of one token of this job; layers that predict further tokens run in training only."""
  model = d.model if d.job.kind == "train" else dataclasses.replace(d.model, mtp_layers=0)
  return token_flops(model, d.job.sequence_length, seen="decode" if d.job.kind == "decode" else "causal")
