"""Mistakes that planners of such deployments make, each planted in the true formulas; some stand in real documents.

A mistake replaces one function, property or rule while a test runs; the formulas have no switch for it.
"""

import copy
import dataclasses
import sys

from drawn_deployments import with_job

from jaxmoe.config import deployment, shares
from jaxmoe.config.job import Job
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.parts import Routing
from jaxmoe.cost import (
  collectives,
  flops,
  holdings,
  layer,
  memory,
  network,
  parameters,
  passes,
  stage,
  time,
  token_flops,
)
from jaxmoe.meshes.cluster import NetworkTier
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Folding
from jaxmoe.pipeline import schedule_facts


def everywhere(patch, true, wrong):
  """Puts `wrong` in place of the function `true` in every module that imports it."""
  ours = [module for name, module in list(sys.modules.items()) if name.startswith("jaxmoe.")]
  for module in ours:
    for name in [name for name, value in vars(module).items() if value is true]:
      patch.setattr(module, name, wrong)


def wrong_tensors(patch, change):
  """`change` makes of each true tensor those that take its place."""
  true = parameters.parameter_tensors
  everywhere(patch, true, lambda model: tuple(new for tensor in true(model) for new in change(model, tensor)))


def wrong_axes(patch, change):
  """`change(strategy, role, letter, axes)` gives the axes that split a dimension."""
  true = PartitionRules.axes

  def axes(self, role, letter):
    return change(self.strategy, role, letter, true(self, role, letter))

  patch.setattr(PartitionRules, "axes", axes)


def wrong_operations(patch, **changes):
  """Parts of an expert layer with other passes."""
  true = layer.expert_operations
  everywhere(patch, true, lambda d, rows: [dataclasses.replace(op, **changes) for op in true(d, rows)])


def with_model(d, **changes):
  return dataclasses.replace(d, model=dataclasses.replace(d.model, **changes))


# Parameters


def router_is_left_out(patch):
  wrong_tensors(patch, lambda model, t: () if t.role == "router" else (t,))


def shared_expert_counts_as_routed(patch):
  wrong_tensors(patch, lambda m, t: (dataclasses.replace(t, role="expert") if "shared" in t.name else t,))


def tied_embeddings_count_twice(patch):
  def change(model, t):
    again = (dataclasses.replace(t, name="head"),) if model.tied_embeddings and t.name == "embedding" else ()
    return (t, *again)

  wrong_tensors(patch, change)


def dense_layers_count_as_expert_layers(patch):
  def change(model, t):
    if t.stack == "expert":
      return (dataclasses.replace(t, shape=(model.num_layers, *t.shape[1:])),)
    return () if t.stack == "dense" else (t,)

  wrong_tensors(patch, change)


def all_experts_are_active(patch):
  true = parameters.active_parameters
  everywhere(patch, true, lambda model: true(dataclasses.replace(model, experts_per_token=model.num_experts)))


# What is split over what


def expert_width_is_whole_on_each_tensor_device(patch):
  wrong_axes(patch, lambda s, role, letter, axes: () if (role, letter) == ("expert", "F") else axes)


def experts_multiply_devices_for_free(patch):
  """Expert parallelism drawn as if it cost no devices: data x stage x tensor of them."""
  patch.setattr(Folding, "devices", property(lambda s: s.data * s.stage * s.tensor))


def experts_are_split_over_data_too(patch):
  wrong_axes(patch, lambda s, role, letter, axes: ("data", *axes) if (role, letter) == ("expert", "E") else axes)


def layers_are_whole_on_every_stage(patch):
  true = stage.stage_layers
  everywhere(patch, true, lambda d: true(dataclasses.replace(d, strategy=dataclasses.replace(d.strategy, stage=1))))


def key_value_heads_split_without_end(patch):
  """With more tensor devices than key-value heads, each would keep part of a head."""
  patch.setattr(memory, "ceil_div", lambda number, parts: number / parts)


def nobody_asks_whether_key_value_heads_divide(patch):
  patch.setattr(deployment, "check", lambda d: None)


# FLOPs


def causal_half_is_forgotten(patch):
  true = token_flops.mean_keys
  everywhere(patch, true, lambda m, layer, length, seen: true(m, layer, length, "full" if seen == "causal" else seen))


def every_expert_is_read(patch):
  """Of a decoded token too, which visits few."""
  everywhere(patch, layer._visited, lambda d, rows: 1)


def backward_is_one_pass_of_useful_flops(patch):
  patch.setattr(flops, "TRAIN_PASSES", 2)


def backward_is_one_pass_of_time(patch):
  wrong_operations(patch, backward=1)


def capacity_padding_is_forgotten(patch):
  everywhere(patch, shares.expert_capacity, lambda tokens, m, _: tokens * m.experts_per_token // m.num_experts)


def token_visits_one_expert(patch):
  everywhere(patch, flops.balanced_rows, lambda d: d.dispatch_tokens)


def recomputation_is_forgotten(patch):
  patch.setattr(deployment.Deployment, "recomputed", 0)


def idle_ticks_compute_nothing(patch):
  patch.setattr(shares.Shares, "ticks", property(lambda d: d.microbatches))


def prediction_head_is_forgotten(patch):
  true = flops.head_forward
  everywhere(patch, true, lambda d: true(with_model(d, mtp_layers=0)))


def decode_computes_the_whole_sequence(patch):
  patch.setattr(Job, "query_length", property(lambda job: job.sequence_length))


# Pipeline


def pipeline_never_idles(patch):
  everywhere(patch, schedule_facts.idle_s, lambda schedule, chunks, S, M, *passes: 0.0)


def serving_fills_its_pipeline_for_free(patch):
  """As if the first microbatch were in all stages at once."""
  true = time._bubble_s
  everywhere(patch, true, lambda d, *rest: true(d, *rest) if d.train else 0.0)


def bubble_is_stages_less_one_over_microbatches(patch):
  """Of the whole step, as is often said; it is that of the busy time."""

  def idle_s(schedule, chunks, S, M, *passes):
    share = (S - 1) / M
    return M * sum(passes) * share / (1 - share)

  everywhere(patch, schedule_facts.idle_s, idle_s)


def chunks_are_handed_on_once(patch):
  patch.setattr(shares.OneJob, "chunks", 1)


def sequence_parallel_devices_send_all_tokens(patch):
  patch.setattr(Folding, "sequence_axes", ())


def every_microbatch_is_in_flight(patch):
  everywhere(patch, schedule_facts.in_flight, lambda schedule, chunks, S, M: M)


# Memory


def adam_keeps_one_moment(patch):
  true = holdings.optimizer_bytes
  everywhere(patch, true, lambda *args: (true(*args) - 4) // 2 + 4)


def zero_1_splits_weights(patch):
  true = holdings.weight_bytes
  everywhere(patch, true, lambda d, *rest: true(with_job(d, zero=3 if d.zero else 0), *rest))


def cache_of_one_sequence(patch):
  """As a document does that forgets the batch."""
  true = memory.cache_bytes
  everywhere(patch, true, lambda d: true(d) // d.sequences_per_device)


def latent_cache_is_whole_keys_and_values(patch):
  patch.setattr(ModelConfig, "cache_width", property(lambda m: 2 * m.num_kv_heads * m.head_dim))


def latent_cache_is_split_over_tensor_devices(patch):
  """As keys and values are, of which each device needs its heads' alone."""
  true = memory.cache_bytes
  everywhere(patch, true, lambda d: true(d) // d.strategy.tensor)


def uneven_stages_hold_as_few_layers_as_any(patch):
  patch.setattr(shares.Shares, "layers_per_stage", property(lambda d: d.model.num_layers // d.strategy.stage))


def windows_keep_the_whole_sequence(patch):
  true = memory.cache_bytes
  everywhere(patch, true, lambda d: true(with_model(d, local=None)))


# Network


def expert_gradients_are_summed_over_experts(patch):
  """All gradients summed over all devices with other tokens, as if experts were replicas too."""
  patch.setattr(parameters.ParameterTensor, "replica_axes", lambda t, s: (*s.batch_axes, *s.slice_axes))


def all_to_all_is_an_all_gather(patch):
  patch.setattr(network.Group, "all_to_all_s", lambda self, payload, _: self.gather_s(payload * self.n))


def what_stays_is_sent_too(patch):
  patch.setattr(network.Switch, "exchange_s_per_byte", lambda self: 1 / self.bandwidth_bytes_per_s)


def all_reduce_is_one_pass(patch):
  patch.setattr(network.Group, "all_reduce_s", network.Group.gather_s)


def both_directions_add_up(patch):
  patch.setattr(NetworkTier, "reached_bytes_per_s", property(lambda tier: 2 * tier.bandwidth_bytes_per_s))


def all_links_are_those_of_the_node(patch):
  true = network.Group.__init__

  def wrong(self, strategy, axes, cluster):
    first = cluster.tiers[0]
    flat = dataclasses.replace(cluster, tiers=(dataclasses.replace(first, devices=cluster.devices),))
    true(self, strategy, axes, flat)

  patch.setattr(network.Group, "__init__", wrong)


def keys_of_shared_sequences_stay(patch):
  """As if each device attended to its own part of a sequence."""
  true = collectives.attention
  everywhere(patch, true, lambda z: (c for c in true(z) if c.axes != ("context",)))


def gradients_hide_behind_nothing(patch):
  """As much as is assumed, however short the backward pass."""
  patch.setattr(time, "least", lambda hidden, matmuls: hidden)


def exchange_hides_behind_nothing(patch):
  patch.setattr(passes, "least", lambda hidden, matmuls: hidden)


def split_weights_are_gathered_once(patch):
  """Zero 3 as if a device could keep what the next microbatch needs again."""
  true = time._gradients_s
  everywhere(patch, true, lambda d, *rest: true(with_job(d, microbatches=1), *rest))


def groups_of_experts_are_ignored(patch):
  """A token's experts are taken to lie anywhere."""
  true = collectives.ragged_dispatch

  def wrong(z):
    z = copy.copy(z)
    z.model = dataclasses.replace(z.model, routing=Routing())
    return true(z)

  everywhere(patch, true, wrong)


def a_group_of_experts_is_one_node(patch):
  """However many nodes its experts lie on."""
  true = collectives.ragged_dispatch

  def wrong(z):
    for c in true(z):
      most = z.d.dispatch_tokens * z.model.d_model * z.item * z.model.routing.groups_per_token
      yield dataclasses.replace(c, outer_bytes=min(c.outer_bytes, most))

  everywhere(patch, true, wrong)
