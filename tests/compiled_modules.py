"""Programs for the tests of `jaxmoe.xla`, compiled for fake CPU devices."""

import jax
from jax.sharding import AxisType

from jaxmoe.xla.hlo import Module
from jaxmoe.xla.partitioned import compile_with_partitioned

STAGES = ("partitioned", "optimised")


def modules(function, *arguments, **jit_options) -> dict[str, Module]:
  """The program as partitioned and as optimised, by name."""
  lowered = jax.jit(function, **jit_options).lower(*arguments)
  compiled, partitioned = compile_with_partitioned(lowered)
  return {"partitioned": partitioned, "optimised": Module.from_compiled(compiled)}


def mesh(**sizes: int) -> jax.sharding.Mesh:
  """`mesh(x=2, y=4)`, with Auto axes."""
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
