"""Memory of one device as the compiler assigns it, against hand arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import mesh
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.xla.memory import compiled_memory


@pytest.mark.parametrize("donated, alias", [((), 0), ((0,), 64 * 64 * 4)])
def test_arguments_outputs_and_donation(donated, alias):
  x = jnp.ones((64, 64))
  memory = compiled_memory(jax.jit(lambda x, y: x @ y + x, donate_argnums=donated).lower(x, x).compile())
  assert (memory.argument_bytes, memory.output_bytes, memory.alias_bytes) == (
    2 * 64 * 64 * 4,
    64 * 64 * 4,
    alias,
  )
  assert memory.total_bytes == 3 * 64 * 64 * 4 + memory.temp_bytes - alias


def test_temporaries_are_in_the_total():
  x = jnp.ones((256, 8))
  memory = compiled_memory(jax.jit(lambda x: jnp.sin(x @ x.T) @ x).lower(x).compile())
  assert memory.temp_bytes >= 256 * 256 * 4  # the square in the middle
  assert memory.total_bytes >= 2 * 256 * 8 * 4 + 256 * 256 * 4


def test_bytes_are_of_one_device():
  x = jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh(x=8), PartitionSpec("x")))
  assert compiled_memory(jax.jit(jnp.sin).lower(x).compile()).argument_bytes == 64 * 64 * 4 // 8
