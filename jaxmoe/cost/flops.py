"""Matmul FLOPs of one device in one step: executed by the program, and useful to the model.

A multiply and an add are two. Executed FLOPs include the pipeline's idle ticks, padding of expert buffers to their
capacity, the masked half of causal attention and what backward recomputes; useful ones do not.
"""

import dataclasses
from typing import Any

from jaxmoe.config.arrays import ceil_div, least
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.shares import Shares
from jaxmoe.cost.constants import TRAIN_PASSES
from jaxmoe.cost.layer import Operation, attention_operations, dense_operations, expert_operations
from jaxmoe.cost.stage import stage_layers
from jaxmoe.cost.token_flops import PartFlops, token_flops
from jaxmoe.kernels import work


def executed_flops(deployment: Deployment, *, heaviest_routing: bool = False, kernel: str | None = None) -> PartFlops:
  """What one device computes: every device the same, or with `gather` as expected, or at most by `heaviest_routing`.

  Args:
    kernel: what multiplies the experts' rows, a name in jaxmoe/kernels; None leaves out what only some kernels add.
  """
  d = deployment
  rows, products = expert_rows(d, kernel), work.products(kernel, d.job.precision.compute)
  stage = stage_layers(d)[0]
  layers = (
    (attention_operations(d), stage.all),
    (expert_operations(d, rows.most if heaviest_routing else rows.expected), stage.routed),
    (dense_operations(d), stage.dense),
  )
  parts: dict[str, float] = {"attention": 0.0, "router": 0.0, "experts": 0.0}
  for operations, count in layers:
    for op in operations:
      times = products if op.part == "experts" else 1
      parts[_PART[op.part]] += d.ticks * count * passes(d, op) * times * op.flops
  return PartFlops(**parts, head=(TRAIN_PASSES if d.train else 1) * head_forward(d))


_PART = {
  "projections": "attention", "scores": "attention", "elementwise": "attention",
  "router": "router", "experts": "experts", "shared": "experts", "dense": "experts",
}  # fmt: skip


def passes(d: Shares, operation: Operation) -> Any:
  """Times that a step runs a part, in units of its forward: itself, its backward and what is computed again."""
  if not d.train:
    return 1
  return (
    1
    + operation.backward
    + d.recomputed
    + (d.hidden_recomputed * hidden_share(d) if operation.part == "experts" else 0)
  )


def hidden_share(d: Shares) -> float:
  """Share of an expert's matmuls that make its hidden rows: all but the last."""
  return (d.model.expert_matrices - 1) / d.model.expert_matrices


def expert_rows(d: Deployment, kernel: str | None = None) -> work.Trips:
  """Rows that one device's experts multiply for one layer and microbatch: expected and at most.

  Args:
    kernel: what multiplies them, a name in jaxmoe/kernels; None leaves out the padding of its tiles.
  """
  rows, experts = balanced_rows(d), d.model.num_experts // d.rules.shards("expert", "E")
  if d.job.transport != "gather":
    with work.expecting(rows, even=True):
      return work.multiplied_rows(kernel, rows, experts)
  with work.expecting(rows):
    return work.multiplied_rows(kernel, gathered_rows(d), experts)


def balanced_rows(d: Shares) -> Any:
  """Rows that one device's experts multiply if tokens spread evenly: buffers of fixed size, or the chosen rows."""
  if d.job.transport == "capacity":
    return d.model.num_experts * d.expert_capacity
  return d.dispatch_tokens * (d.model.num_experts if d.job.transport == "dense" else d.model.experts_per_token)


def busiest_rows(d: Shares, load: Any) -> Any:
  """Rows of the device whose experts are chosen most, `load` times the mean; fixed buffers are the same everywhere."""
  return balanced_rows(d) * (load if d.job.transport in ("gather", "ragged") else 1)


def gathered_rows(d: Shares) -> Any:
  """Rows that `gather` has room for: each token of the group at all its choices, or at all experts of a device."""
  group = d.rules.shards("expert", "E")
  return group * d.dispatch_tokens * least(d.model.experts_per_token, d.model.num_experts // group)


def head_forward(d: Shares) -> Any:
  """The head over every token that has a target, or in serving over each sequence's last.

  Once more for each layer that predicts a further token, and the projection of 2D to D that it starts with.
  """
  m, predicted = d.model, d.model.mtp_layers if d.train else 0
  tokens = d.sequences_per_device * (d.job.sequence_length if d.train else 1) / d.strategy.context
  columns = ceil_div(m.vocab_size, d.rules.shards("vocabulary", "V"))
  projected = predicted * d.microbatches * d.dispatch_tokens * 2 * m.d_model
  return 2 * m.d_model * (tokens * columns * (1 + predicted) + projected)


def useful_flops(deployment: Deployment) -> PartFlops:
  """The model's own FLOPs for the global batch, shared evenly by all devices; causal attention counts the seen half.

  Of experts no more than their buffers hold: what is dropped is not computed.
  """
  d = deployment
  train = d.job.kind == "train"
  tokens = d.batch * d.job.query_length
  scored = tokens if train else d.batch
  share = (TRAIN_PASSES if train else 1) / d.strategy.devices
  each = _token_flops(d)
  return PartFlops(
    attention=share * tokens * each.attention,
    router=share * tokens * each.router,
    experts=share * tokens * each.experts * _most_kept(d),
    head=share * scored * each.head,
  )


def _most_kept(d: Deployment) -> float:
  """Share of choices that have room if tokens spread evenly."""
  if d.job.transport != "capacity":
    return 1.0
  room, chosen = d.model.num_experts * d.expert_capacity, d.dispatch_tokens * d.model.experts_per_token
  return 1.0 if room >= chosen else room / chosen


def flops_per_token(deployment: Deployment) -> float:
  """Useful forward FLOPs of one token, head included."""
  return _token_flops(deployment).total


def _token_flops(d: Deployment) -> PartFlops:
  """Forward FLOPs of one token of this job; layers that predict further tokens run in training only."""
  model = d.model if d.job.kind == "train" else dataclasses.replace(d.model, mtp_layers=0)
  return token_flops(model, d.job.sequence_length, seen="decode" if d.job.kind == "decode" else "causal")
