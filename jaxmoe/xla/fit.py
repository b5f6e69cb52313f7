"""Whether one device has room for what the compiler made, judged by bytes that it must hold on any backend."""

import dataclasses

from jaxmoe.config.catalogue import load_cluster
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.xla.compiled_step import CompiledStep
from jaxmoe.xla.failed import TEMPORARIES

HELD = "argument + output - alias"
TOTAL = "argument + output + temp - alias"
# Cluster of the catalogue whose device a target of another name is.
_CLUSTERS = {
  "v5e": "tpu_v5e", "v5p": "tpu_v5p", "v6e": "tpu_v6e", "h100": "dgx_h100", "h200": "dgx_h200", "b200": "gb200_nvl72",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
  """One device's room, and at least how much of it the program takes.

  Attributes:
    device: cluster whose devices have `capacity_bytes`.
    counted: what `needed_bytes` adds up, `HELD` or `TOTAL`.
    class_bytes: of arguments and results by class; one that is updated in place counts once. Where temporaries count,
      theirs too, when most of them are needed.
  """

  device: str
  capacity_bytes: int
  needed_bytes: int
  counted: str
  class_bytes: dict[str, int]

  @property
  def ok(self) -> bool:
    return self.needed_bytes <= self.capacity_bytes

  @property
  def excess_bytes(self) -> int:
    """What does not fit; negative where there is room."""
    return self.needed_bytes - self.capacity_bytes

  @property
  def largest(self) -> str:
    """The class that takes most."""
    return max(self.class_bytes, key=lambda name: self.class_bytes[name])


def smallest(cluster: Cluster, generation: str) -> Cluster:
  """The plan's cluster, or that of a target's generation if its devices have less memory; empty: `cpu` or `local`."""
  target = load_cluster(_CLUSTERS[generation]) if generation else cluster
  return target if target.memory_bytes < cluster.memory_bytes else cluster


def fit(cluster: Cluster, compiled: CompiledStep) -> Fit:
  """In one device of `cluster`.

  Temporaries count where the backend stores them as the target would: the CPU's widens 8 and 16 bits to 32.
  """
  memory, exact = compiled.memory, compiled.platform != "cpu"
  names = compiled.class_bytes.keys() | compiled.output_class_bytes.keys()
  classes = {name: max(compiled.class_bytes.get(name, 0), compiled.output_class_bytes.get(name, 0)) for name in names}
  return Fit(
    device=cluster.name,
    capacity_bytes=cluster.memory_bytes,
    needed_bytes=memory.total_bytes if exact else memory.held_bytes,
    counted=TOTAL if exact else HELD,
    class_bytes={**classes, **_temporaries(compiled)} if exact else classes,
  )


def _temporaries(compiled: CompiledStep) -> dict[str, int]:
  """By class where the compiler shows its buffers."""
  if compiled.temporaries is None:
    return {TEMPORARIES: compiled.memory.temp_bytes}
  return {f"{TEMPORARIES}: {name}": size for name, size in compiled.temporaries.class_bytes.items()}
