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
    traffic_bytes: read from and written to main memory, as expected where the routing decides.
    traffic_by_part: of the optimised module, which on CPU has lost the names of many operations: those are `other`.
    class_read_bytes: of the traffic, reads of arguments and of their copies, by class.
    elementwise_flops, transcendentals: beside the matmuls.
    partitioned, optimised: collectives before and after the backend's passes; None where those are not read.
    seconds: of each phase, and in all.
    settings: what else decides the result: partitioner, flags, what multiplies rows by experts.
    notes: what a reader of the result must know.
    peak_bytes: of the process that compiled; None where the system does not say.
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
  traffic_bytes: float
  traffic_by_part: dict[str, float]
  class_read_bytes: dict[str, float]
  elementwise_flops: float
  transcendentals: float
  partitioned: list[Collective]
  optimised: list[Collective] | None
  instructions: int
  seconds: dict[str, float]
  versions: dict[str, str]
  settings: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  peak_bytes: int | None = None
