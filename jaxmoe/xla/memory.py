"""Memory of one device as the compiler assigns it."""

import dataclasses

from jaxmoe.xla.assignment import Assignment


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CompiledMemory:
  """Bytes of one device.

  Attributes:
    argument: buffers that come in.
    output: buffers that go out.
    alias: outputs that reuse an argument's buffer (donation), counted in both of the above.
    temp: buffers that live only inside the program, gaps between them included.
    code: the program itself.
  """

  argument_bytes: int
  output_bytes: int
  alias_bytes: int
  temp_bytes: int
  code_bytes: int

  @property
  def held_bytes(self) -> int:
    """argument + output - alias: what there must be room for whatever the backend does in between."""
    return self.argument_bytes + self.output_bytes - self.alias_bytes

  @property
  def total_bytes(self) -> int:
    """argument + output + temp - alias; the code is apart."""
    return self.held_bytes + self.temp_bytes


def compiled_memory(compiled, assignment: Assignment | None = None) -> CompiledMemory:
  """From a `jax.stages.Compiled`.

  Args:
    assignment: what its temporaries are counted by, in place of the compiler's statistic. TPU's adds what it calls
      fragmentation to a heap that has it already, so that it is more than the program takes.

  Raises:
    NotImplementedError: the backend gives no memory analysis.
  """
  stats = compiled.memory_analysis()
  if stats is None:
    raise NotImplementedError("this backend gives no memory analysis")
  return CompiledMemory(
    argument_bytes=stats.argument_size_in_bytes,
    output_bytes=stats.output_size_in_bytes,
    alias_bytes=stats.alias_size_in_bytes,
    temp_bytes=stats.temp_size_in_bytes if assignment is None else assignment.heap_bytes,
    code_bytes=stats.generated_code_size_in_bytes,
  )
