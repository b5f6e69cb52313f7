"""The compiled decode step reads the cache where it lies and writes one token a sequence in place; prefill fills it."""

import pytest
import tiny
from compiled_modules import TARGETS, devices, largest_write

from jaxmoe.cost.memory import cache_bytes
from jaxmoe.meshes.build import build_mesh
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.memory import compiled_memory
from jaxmoe.xla.program import build_program
from jaxmoe.xla.traffic import memory_traffic

CASES = {
  "one layer a stage": (Strategy(stage=4, expert=2), 4),
  "layers and microbatches": (Strategy(stage=2, expert=2, tensor=2), 2),
  "no pipeline": (Strategy(data=2, expert=4), 1),
}


def deployment(name, sizes=None, **job):
  """Grouped queries, heads narrower than a TPU's lanes, and more cache than its memory on the chip holds."""
  strategy, microbatches = CASES[name]
  sizes = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 32, **(sizes or {})}
  job = {"microbatches": microbatches, "expert_kernel": "einsum", **job}
  return tiny.deployment(strategy, "bfloat16", sizes, **job)


def compiled(d, target):
  return build_program(d, build_mesh(d.strategy, devices(target))).lower().compile()


def attended_bytes(d) -> float:
  """Keys of one layer and microbatch, or its values."""
  return cache_bytes(d) / 2 / d.layers_per_stage / d.microbatches


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_decode_copies_no_cache(name, target):
  """TPUs multiply slices where they lie; CPU and NVIDIA's compiler first copy what one layer attends to, no more."""
  d = deployment(name, kind="decode", sequence_length=65536)
  program = compiled(d, target)
  module, share = Module.from_compiled(program), attended_bytes(d)
  copies = 0 if target == "tpu" else 1  # of keys and of values
  assert largest_write(module) <= (2 * copies + 1 / 8) * share
  assert compiled_memory(program).temp_bytes < (2 * copies + 1 / 4) * share
  read = 2 * share * d.layers_per_stage * d.ticks
  assert memory_traffic(module).total < 1.25 * (1 + 2 * copies) * read


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_prefill_copies_no_cache(name, target):
  """Many microbatches: what one computes takes half of the keys of all, and no keys or values may be held twice."""
  sizes = {"d_model": 256, "num_heads": 4, "head_dim": 128, "num_layers": 16}
  d = deployment(name, sizes, kind="prefill", batch=128, sequence_length=1024, microbatches=16)
  keys = cache_bytes(d) / 2
  assert compiled_memory(compiled(d, target)).temp_bytes < 3 / 4 * keys
