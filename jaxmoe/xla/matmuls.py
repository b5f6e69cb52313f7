"""A program's matmuls one by one, with their names and lines, to tell which one a disagreement is about."""

import dataclasses

from jaxmoe.xla.declared import NOTHING
from jaxmoe.xla.flops import matmul_counter
from jaxmoe.xla.hlo import Module, without_collector
from jaxmoe.xla.walk import walk


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Matmul:
  """One operation.

  Attributes:
    name: of the instruction, or jax's primitive.
    op_name: in full, with the scopes around it; a compiler may have lost it.
    source: `file.py:12` where jax traced it; empty if nobody says.
    flops: of one execution.
    count: executions by one device in one run.
  """

  name: str
  op_name: str
  flops: float
  count: float
  source: str = ""

  @property
  def total(self) -> float:
    return self.flops * self.count


@without_collector()
def matmuls(module: Module) -> list[Matmul]:
  """Every instruction that `jaxmoe.xla.flops` counts, as expected where the routing decides."""
  counter, found = matmul_counter(module, NOTHING), []
  for visit in walk(module, NOTHING, weight=counter.flops):
    flops = counter.flops(visit)
    if flops:
      x = visit.instruction
      found.append(
        Matmul(
          name=x.name, op_name=visit.op_name, flops=flops / visit.count, count=visit.count, source=module.source(x)
        )
      )
  return found
