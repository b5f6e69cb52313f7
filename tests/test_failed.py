"""A compiler that refuses a program for want of memory: which class is too large, by how much, and what would fit."""

import json
import pickle

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import WITH_TPU, devices
from jax.sharding import SingleDeviceSharding
from plans import edited

from jaxmoe.cli import verify
from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_deployment
from jaxmoe.cost.memory import memory
from jaxmoe.xla.attribution import CACHE, DISPATCH, Sizes
from jaxmoe.xla.failed import OTHERS, SCRATCH, TEMPORARIES, CompileFailed, refused

SIZES = Sizes(
  train=False, decode=False, weights=((16, 1024, 2048),), d_model=1024, experts=64, hidden=2048, vocabulary=16384,
  heads=8, kv_heads=8, cached=64, keys=512, tokens=2048,
)  # fmt: skip
# In the form of TPU's compiler.
LATE = """\
RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.00G of 16.00G hbm. Exceeded hbm capacity by 2.00G.

Total hbm usage >= 18.00G:
    reserved        256.00M
    program           9.75G
    arguments         1.00G

Program hbm requirement 9.75G:
    scoped            2.00G
    HLO temp          7.75G (100.0% utilization: Unpadded (6.75G) Padded (6.75G), 12.9% fragmentation (1.00G))

  Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(step)/shard_map/broadcast.8"
     Shape: bf16[16,256,512,8,64]{2,4,3,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G
     XLA label: broadcast.370 = broadcast(constant.265), dimensions={}
     Allocation type: HLO temp
     ==========================

  2. Size: 2.00G
     Operator: op_name="jit(step)/while/body/experts/all_to_all"
     Shape: u8[2147483648]{0}
     Tag: scoped memory for all_to_all.28
     Allocation type: scoped
     ==========================

  3. Size: 1.50G
     Operator: op_name="jit(step)/while/body/experts/all_to_all"
     Shape: bf16[64,12288,1024]{2,1,0:T(8,128)(2,1)}
     Allocation type: HLO temp
     ==========================

  4. Size: 8.0K
     Shape: s32[2048]{0:T(1024)}
     XLA label: <barrier-info-table>
     Allocation type: global
     ==========================
"""
EARLY = "RESOURCE_EXHAUSTED: total memory required for HLO temporaries (20.00G) exceeds available HBM (15.75G)."
G = 2**30


def test_what_the_compiler_lists_is_added_up_by_class():
  """7.75 GiB of heap: 4 of a cache, 1.5 sent to experts, so 2.25 are not listed; scratch is beside it."""
  error = refused(LATE, {"parameters": G}, SIZES)
  cache, sent = f"{TEMPORARIES}: {CACHE}", f"{TEMPORARIES}: {DISPATCH}"
  expected = {cache: 4 * G, sent: 1.5 * G, OTHERS: 2.25 * G, SCRATCH: 2 * G}
  assert error.class_bytes == {"parameters": G, **expected}
  assert (error.out_of_memory, error.largest, error.excess_bytes) == (True, cache, 2 * G)
  assert [one.bytes for one in error.said.largest] == [4 * G, 2 * G, 1.5 * G]
  assert str(error).startswith("RESOURCE_EXHAUSTED: Ran out of memory") and "Operator" not in str(error)


def test_an_early_refusal_counts_arguments_and_results_too():
  error = refused(EARLY, {"parameters": 12 * G, "cache": 2 * G}, SIZES)
  assert error.class_bytes == {"parameters": 12 * G, "cache": 2 * G, TEMPORARIES: 6 * G}
  assert (error.largest, error.excess_bytes) == ("parameters", 4.25 * G)


def test_a_refusal_for_another_reason_says_nothing_of_memory():
  error = refused("INVALID_ARGUMENT: no", {"parameters": 1}, SIZES)
  assert (error.out_of_memory, error.excess_bytes, error.class_bytes) == (False, None, {"parameters": 1})


def test_a_refusal_comes_whole_out_of_the_process_that_compiles():
  error = pickle.loads(pickle.dumps(refused(LATE, {"parameters": G}, SIZES)))
  assert isinstance(error, CompileFailed)
  assert error.said == refused(LATE, {"parameters": G}, SIZES).said


@WITH_TPU
def test_the_early_message_is_read_as_the_compiler_means_it():
  """An argument of 16 GiB that is returned changed: arguments and results of 32 GiB, and next to no temporaries."""
  one = SingleDeviceSharding(devices("tpu")[0])
  x = jax.ShapeDtypeStruct((16, G // 4), jnp.float32, sharding=one)
  with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
    jax.jit(lambda x: x + 1).lower(x).compile()
  error = refused(str(refusal.value), {"inputs": 16 * G, "results": 16 * G}, SIZES)
  assert error.out_of_memory and error.said.needed_bytes == pytest.approx(32 * G, rel=0.02)
  assert error.class_bytes.get(TEMPORARIES, 0) < G
  assert error.largest in ("inputs", "results") and error.excess_bytes == pytest.approx(16.25 * G, rel=0.02)


@pytest.mark.parametrize("beyond", [0, 3 * G, None])
def test_the_nearest_plan_keeps_free_what_the_compiler_needs_beyond_the_formula(beyond):
  """So it is never the plan that did not fit; where the compiler says no number, it is a smaller one."""
  d = load_deployment("qwen3-30b-a3b-train")
  formula_bytes = memory(d).total
  capacity = formula_bytes + G
  nearest = verify._nearest(d, capacity, None if beyond is None else formula_bytes + beyond)
  assert nearest is not None
  assert nearest.memory.total <= (formula_bytes - 1 if beyond is None else capacity - beyond)


@WITH_TPU
@pytest.mark.slow
def test_a_plan_that_runs_out_of_device_memory_is_exit_code_4(tmp_path, capsys):
  """65,536 experts of 3 MiB a layer; a device has half of each of a quarter, 24 GiB a layer."""
  text = edited(
    ("d_model: 64", "d_model: 1024"),
    ("d_expert: 128", "d_expert: 512"),
    ("num_experts: 8", "num_experts: 65536"),
    ("kind: train", "kind: decode"),
    ("microbatches: 2}", "microbatches: 2, precision: {weights: bfloat16, compute: bfloat16}}"),
  )
  (tmp_path / "plan.yaml").write_text(text)
  assert main(["verify", str(tmp_path / "plan.yaml"), "--target", "tpu:v5e", "--json"]) == ExitCode.DISAGREES
  document = json.loads(capsys.readouterr().out)
  assert document["out_of_memory"] and "hbm" in document["refused"].lower()
  assert document["largest_class"] == "parameters" and document["excess_bytes"] > 0
  assert document["needed_bytes"] - document["available_bytes"] == document["excess_bytes"]
  assert document["class_bytes"]["parameters"] > document["available_bytes"] / 2
  nearest = document["nearest_plan"]
  assert nearest is None or nearest["memory_bytes"] <= 16 * 10**9
