"""Counts of a compiled step as plain data: reading them takes no jax, whatever the environment tells it."""

import dataclasses

from jaxmoe.xla.between_slices import Slices
from jaxmoe.xla.collectives import Collective
from jaxmoe.xla.matmuls import Matmul
from jaxmoe.xla.memory import CompiledMemory
from jaxmoe.xla.temporaries import Temporaries

PARTS = ("attention", "router", "experts", "head")  # scopes that matmuls are told apart by


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedStep:
  """One device's share of the traced program, as plain data; names are those of `CompiledStep`.

  Attributes:
    class_bytes, output_class_bytes: by the shapes, dtypes and shardings of arguments and results.
    donated_bytes: of the arguments that results may overwrite.
    flops, flops_at_most: of matmuls, as expected where the routing decides, and with the heaviest.
  """

  class_bytes: dict[str, int]
  output_class_bytes: dict[str, int]
  donated_bytes: int
  flops: float
  flops_at_most: float
  flops_by_part: dict[str, float]
  matmuls: list[Matmul]
  collectives: list[Collective]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
  """Counts of one device's program, as plain data.

  Attributes:
    traced: the same counts of the program as jax traced it.
    platform: what it was compiled for, by jax's name.
    class_bytes, output_class_bytes: bytes of the module's own arguments and results, by class.
    temporaries: `memory.temp_bytes`, buffer by buffer; None where the compiler does not show them.
    argument_padding_bytes, alias_padding_bytes: what tiles that are not full add to `memory`.
    flops: matmul FLOPs of the optimised module, as expected where the routing decides, each operation once.
    flops_at_most: the same with the heaviest routing.
    recomputed_flops: of the copies that the compiler adds to `flops` where a result takes too much memory to keep.
    flops_by_part: of the partitioned program, where every operation still bears its scope.
    matmuls, partitioned_matmuls: what `flops` and `flops_by_part` are the sums of.
    optimal_s: the compiler's own estimate of a step's seconds, which counts what is in a loop once; None without one.
    traffic_bytes: read from and written to main memory, as expected where the routing decides.
    traffic_by_part: of the optimised module, which on CPU has lost the names of many operations: those are `other`.
    class_read_bytes: of the traffic, reads of arguments and of their copies, by class.
    elementwise_flops, transcendentals: beside the matmuls.
    partitioned, optimised: collectives before and after the backend's passes.
    slices: where the ranks lie, if in several TPU slices.
    seconds: of each phase, and in all.
    settings: what else decides the result: partitioner, flags, what multiplies rows by experts.
    notes: what a reader of the result must know.
    peak_bytes: of the process that compiled; None where the system does not say.
  """

  traced: TracedStep
  platform: str
  class_bytes: dict[str, int]
  output_class_bytes: dict[str, int]
  memory: CompiledMemory
  argument_padding_bytes: int
  alias_padding_bytes: int
  flops: float
  flops_at_most: float
  flops_by_part: dict[str, float]
  matmuls: list[Matmul]
  partitioned_matmuls: list[Matmul]
  traffic_bytes: float
  traffic_by_part: dict[str, float]
  class_read_bytes: dict[str, float]
  elementwise_flops: float
  transcendentals: float
  partitioned: list[Collective]
  optimised: list[Collective]
  instructions: int
  seconds: dict[str, float]
  versions: dict[str, str]
  settings: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  slices: Slices | None = None
  peak_bytes: int | None = None
  temporaries: Temporaries | None = None
  optimal_s: float | None = None
  recomputed_flops: float = 0.0

  @property
  def executed_flops(self) -> float:
    """With what is computed again."""
    return self.flops + self.recomputed_flops
