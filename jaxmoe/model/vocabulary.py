"""Embedding, head and loss with the vocabulary split over every axis that sees the same tokens."""

import jax.numpy as jnp
from jax import lax

from jaxmoe.kernels.dtypes import accumulator
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.model.parallel import sum_tokens


def embed(table_VD, tokens_T, rules: PartitionRules, dtype):
  """Rows of the table for this device's tokens, or its slice of them: x_TD in `dtype`; leading dimensions are kept."""
  row_T, inside_T = _local_rows(tokens_T, table_VD.shape[0], rules)
  # Rows of other devices lie out of range, which gives zeros: a mask of x_TD would be kept for backward.
  here_T = jnp.where(inside_T, row_T, table_VD.shape[0])
  partial_TD = table_VD.at[here_T].get(mode="fill", fill_value=0).astype(dtype)
  return sum_tokens(partial_TD, rules.strategy.slice_axes, rules.strategy.vocabulary_axes)


def logits(head_DV, x_TD):
  """This device's columns of the logits, in at least float32."""
  return jnp.einsum("td,dv->tv", x_TD, head_DV.astype(x_TD.dtype), preferred_element_type=accumulator(x_TD.dtype))


def cross_entropy(logits_TV, targets_T, rules: PartitionRules):
  """-log softmax at the targets, (T,); each device holds its columns of the logits."""
  axes = rules.strategy.vocabulary_axes
  largest_T = lax.pmax(lax.stop_gradient(logits_TV).max(axis=-1), axes)
  row_T, inside_T = _local_rows(targets_T, logits_TV.shape[1], rules)
  shifted_TV = logits_TV - largest_T[:, None]
  at_target_T = jnp.where(inside_T, jnp.take_along_axis(shifted_TV, row_T[:, None], axis=1)[:, 0], 0)
  normaliser_T, target_T = lax.psum(jnp.stack([jnp.exp(shifted_TV).sum(axis=-1), at_target_T]), axes)
  return jnp.log(normaliser_T) - target_T


def _local_rows(ids_T, rows: int, rules: PartitionRules):
  """Index of each id among this device's `rows`, and whether it lies there."""
  axes = rules.strategy.vocabulary_axes
  local_T = ids_T - lax.axis_index(axes) * rows
  inside_T = (local_T >= 0) & (local_T < rows)
  return jnp.where(inside_T, local_T, 0), inside_T
