"""Where each expert's rows lie."""

import jax
import jax.numpy as jnp
from jax import lax


def bounds(sizes_E):
  """First row of each expert and the row after its last."""
  end_E = jnp.cumsum(sizes_E)
  return end_E - sizes_E, end_E


def owned(sizes_E, num_rows: int):
  """True for rows of some expert, N1."""
  return jnp.arange(num_rows)[:, None] < jnp.sum(sizes_E)


def zero_unowned(x_ND, sizes_E):
  """`x_ND` with zeros in rows that no expert owns, whatever they hold."""
  return jnp.where(owned(sizes_E, x_ND.shape[0]), x_ND, jnp.zeros((), x_ND.dtype))


def expert_of_row(sizes_E, num_rows: int):
  """Expert of each row, N; the last expert for rows that none owns."""
  expert_N = jnp.searchsorted(jnp.cumsum(sizes_E), jnp.arange(num_rows), side="right")
  return jnp.minimum(expert_N, sizes_E.shape[0] - 1)


def vary_alike(*arrays):
  """All arrays varying over every mesh axis that one of them varies over; `None` passes through.

  Under `shard_map` operands of one loop must agree. Backward of this cast sums the gradient over the axes it added.
  """
  present = [x for x in arrays if x is not None]
  axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in present))
  return tuple(x if x is None else vary(x, axes) for x in arrays)


def vary(x, axes: frozenset):
  """`x` varying also over these mesh axes."""
  missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
  return lax.pcast(x, missing, to="varying") if missing else x


def sum_before(numbers):
  """Of all before each, in their dtype; for few. One small kernel on a GPU, where a cumulative sum is several."""
  place = jnp.arange(numbers.shape[0])
  earlier = place[None, :] < place[:, None]
  return jnp.sum(jnp.where(earlier, numbers[None, :], 0), axis=1, dtype=numbers.dtype)
