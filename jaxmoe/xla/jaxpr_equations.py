"""What one equation of a jaxpr does: the FLOPs of a matmul, the payload and mesh axes of a collective."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.extend import source_info_util

from jaxmoe.xla.groups import UNMAPPED, pair_axes
from jaxmoe.xla.hlo import ROOT

# jax's primitive -> HLO's name of what it becomes.
COLLECTIVES = {
  "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce", "pmin": "all-reduce",
  "all_gather": "all-gather", "all_gather_invariant": "all-gather", "reduce_scatter": "reduce-scatter",
  "all_to_all": "all-to-all", "ragged_all_to_all": "ragged-all-to-all", "ppermute": "collective-permute",
}  # fmt: skip
# They name mesh axes and move nothing: the types of arrays, and a device's own coordinate.
FREE = frozenset({"axis_index", "pvary", "pcast", "pbroadcast"})


def _dot(eqn: Any) -> float:
  (left, _), _ = eqn.params["dimension_numbers"]
  return 2 * _elements(eqn.outvars[0]) * _extent(eqn.invars[0], left)


def _ragged_dot(eqn: Any) -> float:
  """Each element of the left operand meets the columns of one group's matrix, or of the row beside it."""
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (_, right), (_, batch) = numbers.dot_dimension_numbers
  used = _extent(eqn.invars[1], (*right, *batch, *numbers.rhs_group_dimensions))
  return 2 * _elements(eqn.invars[0]) * _elements(eqn.invars[1]) / used


MATMULS: Mapping[str, Callable[[Any], float]] = {
  "dot_general": _dot, "ragged_dot_general": _ragged_dot, "ragged_dot": _ragged_dot,
}  # fmt: skip


def estimated_flops(eqn: Any) -> float | None:
  """What a Pallas kernel says of itself."""
  estimate = eqn.params.get("cost_estimate")
  return None if estimate is None else float(estimate.flops)


def payload(eqn: Any) -> tuple[float, int, str]:
  """Bytes, elements and dtypes of the full-side buffer: the operands, or an all-gather's results."""
  gathers, ragged = COLLECTIVES[eqn.primitive.name] == "all-gather", eqn.primitive.name == "ragged_all_to_all"
  buffers = eqn.outvars if gathers else eqn.invars[:1] if ragged else eqn.invars
  bytes_ = sum(_elements(x) * x.aval.dtype.itemsize for x in buffers)
  return bytes_, sum(map(_elements, buffers)), "+".join(sorted({x.aval.dtype.name for x in buffers}))


def axes_named(eqn: Any) -> tuple[str, ...]:
  """Mesh axes among an equation's parameters."""
  named = eqn.params.get("axis_name", eqn.params.get("axes", ()))
  named = named if isinstance(named, (tuple, list, frozenset, set)) else (named,)
  return tuple(axis for axis in named if isinstance(axis, str))


def axes_crossed(eqn: Any, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Axes that a collective moves data over, in mesh order; of a permutation, those whose coordinate changes."""
  named = axes_named(eqn)
  if "perm" in eqn.params:
    return pair_axes(np.array(eqn.params["perm"], dtype=int).reshape(-1, 2), {axis: mesh[axis] for axis in named})
  if eqn.params.get("axis_index_groups") is not None:
    return (UNMAPPED,)
  return tuple(axis for axis, size in mesh.items() if axis in named and size > 1)


def group_size(eqn: Any, mesh: Mapping[str, int]) -> int:
  """Devices of one group; 2 for a permutation."""
  return 2 if "perm" in eqn.params else math.prod(mesh[axis] for axis in axes_named(eqn))


def line(eqn: Any) -> str:
  """`file.py:12` of the user's call that jax made it of; empty if unknown."""
  summary = source_info_util.summarize(eqn.source_info)
  return ":".join(summary.partition(" (")[0].split(":")[:2]).removeprefix(ROOT)


def _elements(x: Any) -> int:
  return math.prod(x.aval.shape)


def _extent(x: Any, dims: Any) -> int:
  return math.prod(x.aval.shape[dim] for dim in dims)
