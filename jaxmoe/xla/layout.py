"""Padding of a module's arguments: a TPU stores arrays in tiles, and a tile that is not full takes its whole room."""

import math
import re

from jaxmoe.xla.hlo import item_bytes

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]*)\))?[^}]*\})?")
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{")


def argument_padding(header: str) -> tuple[int, ...]:
  """Bytes of each argument beyond its elements, from a module's header; zeros where arrays are not tiled."""
  layout = header.partition("entry_computation_layout={(")[2]
  return tuple(int(_padding(*array.groups())) for array in _ARRAY.finditer(layout[: layout.index(")->")]))


def aliased_arguments(header: str) -> tuple[int, ...]:
  """Numbers of the arguments whose buffers results reuse."""
  aliases = header.partition("input_output_alias={ ")[2].partition(" }, ")[0]
  return tuple(int(number) for number in _ALIAS.findall(aliases))


def _padding(dtype: str, dims: str, minor_to_major: str | None, tile: str | None) -> float:
  """The first tile pads the minor dimensions; tiles within it only reorder."""
  sizes = _numbers(dims)
  tiles = _numbers(tile)
  stored = [sizes[dim] for dim in reversed(_numbers(minor_to_major))]
  stored = [1] * (len(tiles) - len(stored)) + stored
  for back in range(1, len(tiles) + 1):
    stored[-back] = math.ceil(stored[-back] / tiles[-back]) * tiles[-back]
  return (math.prod(stored) - math.prod(sizes)) * item_bytes(dtype) if tiles else 0


def _numbers(text: str | None) -> list[int]:
  return [int(number) for number in (text or "").split(",") if number]
