"""TPU slices that can be had: the shapes of each generation, and which one a number of chips takes.

From Google Cloud's pages TPU v5e, TPU v5p and TPU v6e, and GKE's page on TPU topologies. A v5p pod has 8960 chips, of
which one job takes at most 6144; its shapes beyond a cube of 64 are whole cubes, sides in ascending order. Twisted tori
are the same shapes wired differently, and are left out.
"""

import dataclasses
import itertools
import math

from jaxmoe.meshes.errors import UsageError

Shape = tuple[int, ...]

MOST_SLICES = 64

_FLAT: tuple[Shape, ...] = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BELOW_A_CUBE: tuple[Shape, ...] = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBES = (shape for shape in itertools.combinations_with_replacement(range(4, 28, 4), 3) if shape[1] <= 16)

# Generation -> shapes of one slice, the smallest first, and of equal ones the most cubic.
SHAPES: dict[str, tuple[Shape, ...]] = {
  "v5e": _FLAT,
  "v5p": tuple(sorted((*_BELOW_A_CUBE, *_CUBES), key=lambda shape: (math.prod(shape), sum(shape)))),
  "v6e": _FLAT,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Slices:
  """One slice, or several of one shape joined by the data center's network."""

  generation: str
  shape: Shape
  count: int = 1

  @property
  def topology(self) -> str:
    """Of one slice, as compilers spell it: `v5p:4x4x8`."""
    return f"{self.generation}:{spelled(self.shape)}"

  def __str__(self) -> str:
    return self.topology + (f":{self.count}" if self.count > 1 else "")


def spelled(shape: Shape) -> str:
  """`4x4x8`."""
  return "x".join(map(str, shape))


def given(generation: str, shape: Shape, count: int = 1) -> Slices:
  """The slices that someone names.

  Raises:
    UsageError: there is no such slice; the message names the nearest.
  """
  shapes = _shapes(generation)
  if shape not in shapes:
    raise UsageError(
      f"no TPU {generation} slice is {spelled(shape)}; the nearest real ones are {_nearest(shapes, math.prod(shape))}"
    )
  return Slices(generation, shape, count)


def chosen(generation: str, chips: int) -> Slices:
  """The slice of that many chips, the most cubic one; as few slices as hold them where one is too small.

  The compiler needs every chip of a slice in the mesh.

  Raises:
    UsageError: no slice has that many chips, and no number of equal ones.
  """
  shapes = _shapes(generation)
  sizes = {math.prod(shape): shape for shape in reversed(shapes)}
  if chips in sizes:
    return Slices(generation, sizes[chips])
  counts = (count for count in range(2, MOST_SLICES + 1) if chips % count == 0 and chips // count in sizes)
  if chips < max(sizes) or (count := next(counts, None)) is None:
    raise UsageError(
      f"no TPU {generation} slice has {chips} chips; the nearest real ones are {_nearest(shapes, chips)}"
    )
  return Slices(generation, sizes[chips // count], count)


def _shapes(generation: str) -> tuple[Shape, ...]:
  if generation not in SHAPES:
    raise UsageError(f"TPU generations are {', '.join(SHAPES)}, got {generation}")
  return SHAPES[generation]


def _nearest(shapes: tuple[Shape, ...], chips: int) -> str:
  """The largest that is no larger and the smallest that is no smaller."""
  below = [shape for shape in shapes if math.prod(shape) <= chips][-1:]
  above = [shape for shape in shapes if math.prod(shape) >= chips][:1]
  named = (f"{spelled(shape)} ({math.prod(shape)} chips)" for shape in dict.fromkeys((*below, *above)))
  return " and ".join(named)
