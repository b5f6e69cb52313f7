"""Counts of a compiled step as plain data: reading them takes no jax, whatever the environment tells it."""

import dataclasses

from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.memory import CompiledMemory


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
  """Counts of one device's program, as plain data.

  Attributes:
    platform: what it was compiled for, by jax's name.
    class_bytes, output_class_bytes: bytes of the module's own arguments and results, by class.
    argument_padding_bytes, alias_padding_bytes: what tiles that are not full add to `memory`.
    flops: matmul FLOPs of the optimised module, as expected where the routing decides.
    flops_at_most: the same with the heaviest routing.
    flops_by_part: of the partitioned program, where every operation still bears its scope.
    partitioned, optimised: collectives before and after the backend's passes.
    seconds: of each phase.
  """

  platform: str
  class_bytes: dict[str, int]
  output_class_bytes: dict[str, int]
  memory: CompiledMemory
  argument_padding_bytes: int
  alias_padding_bytes: int
  flops: float
  flops_at_most: float
  flops_by_part: dict[str, float]
  partitioned: list[Collective]
  optimised: list[Collective]
  instructions: int
  seconds: dict[str, float]
  versions: dict[str, str]
