"""Token transports: how tokens reach the devices of their experts and come back.

Every transport has one contract: given a device's tokens x_TD, their routing and the device's experts, return the
device's part of the combined output y_TD (to be summed over the axes of expert width) and which choices were kept,
kept_TX. A choice of E, which is no expert, takes no row and adds nothing.
"""

import jax.numpy as jnp
from jax import lax

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.shares import expert_capacity
from jaxmoe.model.router import Routing


def dispatch(deployment: Deployment, experts, x_TD, routing: Routing):
  """The transport that the job names."""
  transports = {"capacity": capacity_all_to_all, "dense": dense_all_gather, "gather": dropless_all_gather}
  return transports[deployment.job.transport](deployment, experts, x_TD, routing)


def capacity_all_to_all(deployment: Deployment, experts, x_TD, routing: Routing):
  """Fixed buffers of C rows from every device to every expert; choices beyond C are dropped, first choices last."""
  (T, D), E = x_TD.shape, deployment.model.num_experts
  C = expert_capacity(T, deployment.model, deployment.job.capacity_factor)
  axes = deployment.strategy.experts_over
  slot_TX, kept_TX = assign_slots(routing.choices_TX, E, C)
  source_R = jnp.full(E * C, T).at[slot_TX].set(jnp.arange(T)[:, None], mode="drop")
  sent_ECD = _rows(x_TD, source_R, source_R < T).reshape(E, C, D)
  held_ERD = lax.all_to_all(sent_ECD, axes, split_axis=0, concat_axis=1, tiled=True)
  done_ERD = experts(held_ERD)
  back_ECD = lax.all_to_all(done_ERD, axes, split_axis=1, concat_axis=0, tiled=True)
  y_TXD = _rows(back_ECD.reshape(E * C, D), slot_TX, kept_TX)
  return _weighted_sum(routing.gates_TX, y_TXD), kept_TX


def dense_all_gather(deployment: Deployment, experts, x_TD, routing: Routing):
  """Every device applies its experts to all tokens of its group: exact, nothing dropped, E / X times the work."""
  T, E = x_TD.shape[0], deployment.model.num_experts
  axes = deployment.strategy.experts_over
  gate_TE = (
    jnp.zeros((T, E), x_TD.dtype)
    .at[jnp.arange(T)[:, None], routing.choices_TX]
    .set(routing.gates_TX.astype(x_TD.dtype))
  )
  all_TD = lax.all_gather(x_TD, axes, axis=0, tiled=True)
  local_gate_TE = lax.all_to_all(gate_TE, axes, split_axis=1, concat_axis=0, tiled=True)
  x_ETD = jnp.broadcast_to(all_TD[None], (local_gate_TE.shape[1], *all_TD.shape))
  y_ETD, gate_ET1 = experts(x_ETD), local_gate_TE.T[:, :, None]
  if y_ETD.dtype == jnp.float16:  # an expert that was not chosen may exceed it, and zero times infinity is NaN
    y_ETD = jnp.where(gate_ET1 == 0, 0, y_ETD)
  y_TD = jnp.sum(y_ETD * gate_ET1, axis=0)
  kept_TX = jnp.ones_like(routing.choices_TX, dtype=bool)
  return lax.psum_scatter(y_TD, axes, scatter_dimension=0, tiled=True), kept_TX


def dropless_all_gather(deployment: Deployment, experts, x_TD, routing: Routing):
  """Every device takes from all tokens of its group the rows of its experts: exact, nothing dropped, no row twice."""
  T, X = routing.choices_TX.shape
  axes, E = deployment.strategy.experts_over, experts.count
  all_TD, gates_TX, choices_TX = (
    lax.all_gather(part, axes, axis=0, tiled=True) for part in (x_TD, routing.gates_TX, routing.choices_TX)
  )
  expert_N = choices_TX.reshape(-1) - lax.axis_index(axes) * E
  expert_N = jnp.where((expert_N >= 0) & (expert_N < E), expert_N, E)
  # A token has at most one row at each expert, so its rows here are at most as many as its choices or our experts.
  order_N = jnp.argsort(expert_N, stable=True)[: all_TD.shape[0] * min(X, E)]
  sizes_E = jnp.zeros(E, jnp.int32).at[expert_N].add(1, mode="drop")
  y_ND = experts.rows(all_TD[order_N // X], sizes_E, expected_rows=T * X)  # our share of the group's choices
  weighted_ND = gates_TX.reshape(-1)[order_N].astype(y_ND.dtype)[:, None] * y_ND
  y_TD = jnp.zeros_like(all_TD).at[order_N // X].add(weighted_ND)
  kept_TX = jnp.ones_like(routing.choices_TX, dtype=bool)
  return lax.psum_scatter(y_TD, axes, scatter_dimension=0, tiled=True), kept_TX


def assign_slots(choices_TX, num_experts: int, capacity: int):
  """A row for every choice in its expert's buffer, all first choices before any second ones.

  Returns:
    slot_TX: expert * C + position, or E * C (out of range) where the buffer is full; kept_TX: whether it fitted.
  """
  T, X = choices_TX.shape
  choice_N = choices_TX.T.reshape(-1)
  chosen_NE = (choice_N[:, None] == jnp.arange(num_experts)[None, :]).astype(jnp.int32)
  position_N = jnp.sum((jnp.cumsum(chosen_NE, axis=0) - 1) * chosen_NE, axis=1)
  kept_N = (position_N < capacity) & (choice_N < num_experts)
  slot_N = jnp.where(kept_N, choice_N * capacity + position_N, num_experts * capacity)
  return slot_N.reshape(X, T).T, kept_N.reshape(X, T).T


def _rows(x_RD, index, valid):
  """Rows of `x_RD` at `index`, zero where not `valid`."""
  rows = x_RD[jnp.where(valid, index, 0)]
  return jnp.where(valid[..., None], rows, 0)


def _weighted_sum(gates_TX, y_TXD):
  # A product and a sum, not an einsum: no matmul hides in the combine.
  return jnp.sum(gates_TX.astype(y_TXD.dtype)[..., None] * y_TXD, axis=1)
