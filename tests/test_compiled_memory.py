"""Memory of one device as the compiler assigns it, against hand arithmetic."""

import re

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import WITH_TPU, mesh
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmoe.xla.memory import compiled_memory
from jaxmoe.xla.partitioned import compile_with_dumps


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


MIB = 2**20


def _keeps_every_turn() -> jax.stages.Lowered:
  """Four products of 512 MiB by 256 MiB, one after another, summed over two devices and all kept."""
  on = mesh("tpu", x=2, y=4)
  x, w = (jax.ShapeDtypeStruct((n, 8192), jnp.float32, sharding=NamedSharding(on, PartitionSpec()))
          for n in (16384, 8192))  # fmt: skip

  def f(x, w):
    def turn(x, _):
      return lax.pcast(lax.psum(x @ w, "x"), "x", to="varying"), x

    last, kept = lax.scan(turn, lax.pcast(x, "x", to="varying"), length=4)
    return lax.psum(kept.sum() + last.sum(), "x")

  everywhere = PartitionSpec()
  return jax.jit(jax.shard_map(f, mesh=on, in_specs=(everywhere, everywhere), out_specs=everywhere)).lower(x, w)


@WITH_TPU
def test_a_tpu_needs_its_heap_once():
  """The compiler's statistic is larger by what a refusal calls a part of the heap; what is assigned has to fit."""
  lowered = _keeps_every_turn()
  compiled, _, assignment = compile_with_dumps(lowered)
  assert assignment is not None
  memory, reported = compiled_memory(compiled, assignment), compiled_memory(compiled)
  twice = reported.temp_bytes - memory.temp_bytes
  assert memory.temp_bytes == assignment.heap_bytes and twice == pytest.approx(512 * MIB, abs=MIB)
  needed = -(-memory.total_bytes // MIB)
  _compile_within(lowered, needed + 32)  # and so much less than `twice`
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as refusal:
    _compile_within(lowered, needed)  # sums over devices take some, too
  heap, part = re.findall(r"HLO temp +([\d.]+)G .*fragmentation \(([\d.]+)M\)", str(refusal.value))[0]
  assert float(heap) == pytest.approx(memory.temp_bytes / 2**30, abs=0.01)
  assert float(part) == pytest.approx(twice / MIB, abs=0.1)


def _compile_within(lowered: jax.stages.Lowered, mebibytes: int) -> None:
  """For a device that has no more."""
  lowered.compile(compiler_options={"xla_tpu_max_hbm_size_mib": mebibytes})
