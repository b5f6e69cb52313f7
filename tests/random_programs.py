"""Random programs whose counts are known by construction: blocks that map an array of rows to one of the same shape."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from hypothesis import strategies as st
from jax import lax

ITEM_BYTES = 4
AXES = {"a": 2, "b": 4}
REMAT = "remat"  # blocks that hold others: this, "call", "either" or ("scan", trips)


@dataclasses.dataclass(frozen=True)
class Block:
  """`what`: "dots", a collective or a way to run `inner`; `size`: middle width, or trips; `axis`: of a collective."""

  what: str
  size: int = 1
  axis: str = ""
  inner: "tuple[Block, ...]" = ()


@dataclasses.dataclass
class Counts:
  """Of one device: matmul FLOPs, transcendentals, and bytes by (kind, axis) of collectives."""

  flops: float = 0
  transcendentals: float = 0
  payload: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def add(self, other: "Counts", times: int = 1) -> None:
    self.flops += times * other.flops
    self.transcendentals += times * other.transcendentals
    for key, size in other.payload.items():
      self.payload[key] += times * size


def blocks(*, collectives: bool, depth: int = 3):
  """Strategy for programs: lists of blocks, nested up to `depth`; remat never inside remat."""
  leaf = st.builds(Block, st.just("dots"), st.integers(1, 9))
  if collectives:
    kinds = st.sampled_from(["psum", "gather and scatter", "all to all", "permute"])
    leaf |= st.builds(Block, kinds, axis=st.sampled_from(sorted(AXES)))

  def level(depth: int, remat: bool):
    if depth == 0:
      return leaf
    kinds = ["scan", "call", "either", *([REMAT] if remat else [])]
    return leaf | st.sampled_from(kinds).flatmap(lambda what: holder(what, depth - 1, remat and what != REMAT))

  def holder(what: str, depth: int, remat: bool):
    inner = st.lists(level(depth, remat), min_size=1, max_size=2).map(tuple)
    return st.builds(Block, st.just(what), st.integers(2, 5), inner=inner)

  return st.lists(level(depth, True), min_size=1, max_size=3).map(tuple)


def weights(program: tuple[Block, ...], width: int) -> list[Any]:
  """One pair of matrices for each `dots`, in the order that `run` meets them."""
  found = []
  for block in program:
    if block.what == "dots":
      found += [jnp.full((width, block.size), 0.5), jnp.full((block.size, width), 0.25)]
    found += weights(block.inner, width)
  return found


def run(program: tuple[Block, ...], x, stack: list[Any], flag):
  """The program on `x`, taking its matrices off `stack`."""
  for block in program:
    if block.what == "dots":
      x = jnp.sin(jnp.sin(x @ stack.pop(0)) @ stack.pop(0))
    elif block.what in _COLLECTIVES:
      x = _COLLECTIVES[block.what](x, block.axis)
    else:
      mine = [stack.pop(0) for _ in weights(block.inner, 1)]
      x = _HOLDERS[block.what](lambda x, w, block=block: run(block.inner, x, list(w), flag), x, mine, block.size, flag)
  return x


_COLLECTIVES = {
  "psum": lax.psum,
  "gather and scatter": lambda x, axis: lax.psum_scatter(lax.all_gather(x, axis, tiled=True), axis, tiled=True),
  "all to all": lambda x, axis: lax.all_to_all(x, axis, 0, 0, tiled=True),
  "permute": lambda x, axis: lax.ppermute(x, axis, [(i, (i + 1) % AXES[axis]) for i in range(AXES[axis])]),
}
_HOLDERS = {
  "scan": lambda body, x, w, trips, flag: lax.scan(lambda x, _: (body(x, w), None), x, None, length=trips)[0],
  "call": lambda body, x, w, trips, flag: jax.jit(body)(x, w),
  "either": lambda body, x, w, trips, flag: lax.cond(flag > 0, body, lambda x, w: x, x, w),
  REMAT: lambda body, x, w, trips, flag: jax.checkpoint(body)(x, w),
}


def counts(program: tuple[Block, ...], rows: int, width: int, *, gradient: bool = False, again: int = 0) -> Counts:
  """What one device does; of a gradient the matmuls: forward, two gradients, and `again` what remat computes anew."""
  found = Counts()
  for block in program:
    if block.what == "dots":
      passes = 3 + again if gradient else 1
      found.flops += passes * 2 * (2 * rows * width * block.size)
      found.transcendentals += rows * (width + block.size)
    elif block.what in _COLLECTIVES:
      _count_collective(found.payload, block, rows * width * ITEM_BYTES)
    else:
      inner = counts(block.inner, rows, width, gradient=gradient, again=1 if block.what == REMAT else again)
      found.add(inner, block.size if block.what == "scan" else 1)
  return found


def _count_collective(payload: collections.Counter, block: Block, own_bytes: int) -> None:
  """The full-side buffer: operand, or an all-gather's result."""
  if block.what == "gather and scatter":
    whole = AXES[block.axis] * own_bytes
    payload["all-gather", block.axis] += whole
    payload["reduce-scatter", block.axis] += whole
  else:
    kind = {"psum": "all-reduce", "all to all": "all-to-all", "permute": "collective-permute"}[block.what]
    payload[kind, block.axis] += own_bytes
