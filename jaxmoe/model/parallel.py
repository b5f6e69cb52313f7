"""Collectives of one device's program, as pairs that are each other's transpose.

Inside `shard_map` an array is *varying* over the axes where devices hold different values. Between layers the tokens of
a device are its share of the batch, and with folded experts its slice of those (`Strategy.slice_axes`). A region whose
weights are split (heads, vocabulary) is entered by `gather_tokens` and left by `sum_tokens`.
"""

import jax
from jax import lax


def vary(tree, axes):
  """Marks every array as varying over `axes`; backward sums its gradient over the axes that were added."""
  return jax.tree.map(lambda x: _vary(x, axes), tree)


def gather_tokens(x_TD, slice_axes: tuple[str, ...], region_axes: tuple[str, ...]):
  """All tokens that `region_axes` work on together: slices gathered over `slice_axes`, the rest marked varying.

  Args:
    x_TD: tokens in the last dimension but one; further leading dimensions are kept.

  Returns:
    x_TD with T times the slices. Backward: reduce-scatter over `slice_axes`, all-reduce over the other axes.
  """
  x_TD = vary(x_TD, region_axes)
  return lax.all_gather(x_TD, slice_axes, axis=x_TD.ndim - 2, tiled=True) if slice_axes else x_TD


def sum_tokens(partial_TD, slice_axes: tuple[str, ...], region_axes: tuple[str, ...]):
  """The sum of all devices' parts over `region_axes`, each device keeping its token slice.

  Returns:
    x_TD with the tokens of one slice. Backward: all-gather over `slice_axes`.
  """
  kept = tuple(axis for axis in region_axes if axis not in slice_axes)
  if slice_axes:
    partial_TD = lax.psum_scatter(partial_TD, slice_axes, scatter_dimension=partial_TD.ndim - 2, tiled=True)
  return lax.psum(partial_TD, kept) if kept else partial_TD


def _vary(x, axes):
  missing = tuple(axis for axis in axes if axis not in varying_axes(x))
  return lax.pcast(x, missing, to="varying") if missing else x


def varying_axes(x) -> frozenset[str]:
  """Mesh axes that `x` varies over, by its type."""
  return frozenset(jax.typeof(x).manual_axis_type.varying)
