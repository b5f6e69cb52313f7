"""The one table from (role, dimension letter) to mesh axes; everything that is sharded asks here."""

import dataclasses

from jaxmoe.meshes.axes import STAGE
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Folding

ROLES = ("attention", "expert", "dense", "router", "norm", "head norm", "vocabulary", "activation")


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionRules:
  """Mesh axes of every dimension under one strategy.

  Letters: B batch, S sequence, L layers, D model width, H heads, G key-value heads, K head width, E experts,
  F expert width, V vocabulary; of some models also I dense width, J shared experts' width, Y prediction layers, and of
  latent attention Q the queries' latent width, Z that of keys and values, U and P the plain and the rotary part of a
  head, W its value. A letter that a role does not list stays whole.
  """

  strategy: Folding

  def axes(self, role: str, letter: str) -> tuple[str, ...]:
    """Mesh axes that split this dimension, `()` if it is whole."""
    return self._table(role).get(letter, ())

  def shards(self, role: str, letter: str) -> int:
    """Parts that this dimension is split into."""
    return self.strategy.size(*self.axes(role, letter))

  def partition(self, role: str, letters: str) -> tuple[tuple[str, ...], ...]:
    """One axis tuple a dimension, `partition("expert", "LEDF") -> (("stage",), ("expert",), (), ("tensor",))`.

    Raises:
      UsageError: two dimensions of one array would be split over the same axis.
    """
    entries = tuple(self.axes(role, letter) for letter in letters)
    used = [axis for entry in entries for axis in entry]
    for axis in used:
      if used.count(axis) > 1:
        raise UsageError(f"dimensions {letters} of role {role} use mesh axis {axis} twice: {entries}")
    return entries

  def seen_over(self, role: str) -> tuple[str, ...]:
    """Axes whose devices use weights of this role on different numbers: tokens, and one norm of all heads on heads."""
    heads = self.strategy.heads_over if role == "head norm" else ()
    return tuple(dict.fromkeys((*self.strategy.token_axes, *heads)))

  def local_shape(self, role: str, letters: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that one device holds.

    Raises:
      UsageError: a dimension that its axes do not divide.
    """
    self.partition(role, letters)
    return tuple(self._local(role, letter, size) for letter, size in zip(letters, shape, strict=True))

  def _local(self, role: str, letter: str, size: int) -> int:
    parts = self.shards(role, letter)
    if size % parts:
      axes = " x ".join(self.axes(role, letter))
      raise UsageError(f"dimension {letter}={size} of role {role} does not divide over {axes} = {parts} devices")
    return size // parts

  def _table(self, role: str) -> dict[str, tuple[str, ...]]:
    s = self.strategy
    match role:
      case "attention":
        return {"L": (STAGE,), "H": s.heads_over, "G": s.heads_over}
      case "expert":
        return {"L": (STAGE,), "E": s.experts_over, "F": s.width_axes}
      case "dense":
        return {"L": (STAGE,), "I": s.heads_over, "J": s.heads_over}
      case "router" | "norm" | "head norm":
        return {"L": (STAGE,)}
      case "vocabulary":
        return {"V": s.vocabulary_axes}
      case "activation":
        return {"L": (STAGE,), "B": s.batch_axes, "H": s.heads_over, "G": s.heads_over}
      case _:
        raise UsageError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
