"""One device's share of a deployment as a deployment of its own: what a single accelerator can measure of a plan."""

import dataclasses

from jaxmoe.config.arrays import ceil_div
from jaxmoe.config.assumptions import NOTHING_HIDDEN
from jaxmoe.config.deployment import Deployment
from jaxmoe.cost.flops import balanced_rows
from jaxmoe.meshes.strategy import Strategy


def one_rank(d: Deployment) -> Deployment:
  """The work that one rank does by itself: its layers, heads, width, columns, sequences and expert rows.

  Rows come in buffers of as many as the rank's experts read. An expert takes at most one row of each token, so a rank
  whose few experts read the rows of many devices gets more experts, by its rows over its tokens. No collective is left,
  and no idle tick.
  """
  m, rules, rows, tokens = d.model, d.rules, balanced_rows(d), d.microbatch_tokens
  experts = max(m.num_experts // rules.shards("expert", "E"), ceil_div(rows, tokens))
  visits = min(m.experts_per_token, experts)
  model = dataclasses.replace(
    m,
    name=f"{m.name}-rank",
    num_layers=d.layers_per_stage,
    num_heads=m.num_heads // rules.shards("attention", "H"),
    num_kv_heads=m.num_kv_heads // rules.shards("attention", "G"),
    num_experts=experts,
    experts_per_token=visits,
    d_expert=m.d_expert // rules.shards("expert", "F"),
    vocab_size=m.vocab_size // rules.shards("vocabulary", "V"),
  )
  job = dataclasses.replace(
    d.job, batch=d.sequences_per_device, transport="capacity", capacity_factor=rows / (tokens * visits)
  )
  named = {"name": f"{d.name} (one rank)", "document": None, "claims": (), "readings": ()}
  return dataclasses.replace(d, model=model, strategy=Strategy(), job=job, assumptions=NOTHING_HIDDEN, **named)
