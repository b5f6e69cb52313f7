"""The TPU kernel in the interpreter against the float64 loop, lowered for TPU, and compiled for TPUs without one."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmoe.kernels import tpu
from jaxmoe.kernels.expert_ffn import expert_ffn

D, F = 128, 256
MIXED = "empty, one row, odd sizes, sum below N"
TOPOLOGIES = {"v5e:2x2": "v5litepod-4", "v5p:2x2x1": "v5p-8", "v6e:2x2": "v6e-4"}


def operands(pattern, dtype="bfloat16"):
  """x_ND, gate_EDF, up_EDF, down_EFD, sizes, dy_NF, with NaN in rows that no expert owns."""
  N, sizes = oracle.PATTERNS[pattern]
  E = len(sizes)
  x_ND, *weights, dy_NF = oracle.draw(0, dtype, (N, D), (E, D, F), (E, D, F), (E, F, D), (N, F))
  owned = jnp.arange(N)[:, None] < sum(sizes)
  return jnp.where(owned, x_ND, jnp.nan), *weights, jnp.array(sizes), jnp.where(owned, dy_NF, jnp.nan)


@pytest.mark.parametrize("pattern", [MIXED, "nothing", "one row", "several tiles", "more experts than rows"])
def test_own_legs(pattern):
  x_ND, gate_EDF, up_EDF, _, sizes_E, dy_NF = operands(pattern)
  with pltpu.force_tpu_interpret_mode():
    hidden_NF, *pre = tpu.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, "silu")
    one_ND = tpu.matmul_transposed(dy_NF, gate_EDF, sizes_E)
    both_ND = tpu.matmuls_transposed([dy_NF, dy_NF], [gate_EDF, up_EDF], sizes_E)
  sizes, total = sizes_E.tolist(), int(sizes_E.sum())
  wanted = [oracle.grouped_matmul(x_ND, w, sizes) for w in (gate_EDF, up_EDF)]
  parts = [oracle.grouped_matmul_gradients(x_ND, w, sizes, dy_NF)[0] for w in (gate_EDF, up_EDF)]
  for got, want in zip(
    (hidden_NF, *pre, one_ND, both_ND), (oracle.hidden("silu", *wanted), *wanted, parts[0], sum(parts)), strict=True
  ):
    oracle.assert_close(got, want, "bfloat16")
    assert not np.any(got[total:])


def test_feed_forward_and_gradients():
  x_ND, *weights, sizes_E, _ = operands(MIXED)
  dy_ND = oracle.draw(1, "bfloat16", x_ND.shape)[0]
  run = lambda *arrays: expert_ffn(*arrays, sizes_E, activation="silu", implementation="tpu")  # noqa: E731
  with pltpu.force_tpu_interpret_mode():
    y_ND, pull = jax.vjp(run, x_ND, *weights)
    gradients = pull(dy_ND)
  arguments = x_ND, *weights, sizes_E.tolist(), "silu"
  oracle.assert_close(y_ND, oracle.expert_ffn(*arguments), "bfloat16", factor=3)
  for got, want in zip(gradients, oracle.expert_ffn_gradients(*arguments, dy_ND), strict=True):
    oracle.assert_close(
      got, want, "bfloat16", factor=5
    )  # hidden rows, pre-activations and their gradients are rounded too


def test_devices_with_their_own_groups_and_shared_weights():
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  x_ND, w_EDF, dy_NF = oracle.draw(3, "bfloat16", (2 * 16, D), (2, D, F), (2 * 16, F))
  sizes_dE = [[5, 9], [0, 16]]

  local = lambda dy_NF, w_EDF, sizes_dE: tpu.matmul_transposed(  # noqa: E731
    dy_NF, jax.lax.pcast(w_EDF, "rows", to="varying"), sizes_dE[0]
  )
  sharded = jax.shard_map(local, mesh=mesh, in_specs=(P("rows"), P(), P("rows")), out_specs=P("rows"))
  with pltpu.force_tpu_interpret_mode():
    got = sharded(dy_NF, w_EDF, jnp.array(sizes_dE, jnp.int32))
  for d, sizes in enumerate(sizes_dE):
    mine = slice(16 * d, 16 * d + 16)
    want = oracle.grouped_matmul_gradients(x_ND[mine], w_EDF, sizes, dy_NF[mine])[0]
    oracle.assert_close(got[mine], want, "bfloat16")


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(implementation, x_ND, weights, sizes_E, dy_ND):
  run = functools.partial(expert_ffn, activation="silu", implementation=implementation)
  y_ND, pull = jax.vjp(lambda x_ND, weights: run(x_ND, *weights, sizes_E), x_ND, weights)
  return y_ND, pull(dy_ND)


@pytest.mark.parametrize("dtype,own", [("bfloat16", 3), ("float32", 0)])
def test_lowering(dtype, own):
  """In bfloat16 the own kernel serves the fused up leg and two input gradients; elsewhere the compiler serves all."""
  x_ND, *weights, sizes_E, _ = operands(MIXED, dtype)
  text = with_gradients.trace("tpu", x_ND, weights, sizes_E, x_ND).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("@tpu_custom_call") == own
  assert text.count('"chlo.ragged_dot"(') == (4 if own else 9)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra jaxmoe[tpu] is not installed")
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_compiled_for_a_tpu(topology):
  """FLOPs within 1.05 of the ideal, and fewer bytes and less memory than the compiler's own kernels need."""
  done = subprocess.run([sys.executable, __file__, topology], capture_output=True, text=True, check=True)
  own, ragged = json.loads(done.stdout.splitlines()[-1])
  assert own["flops"] <= 1.05 * 9 * 2 * 4096 * 1024 * 2048
  assert own["bytes"] < 0.7 * ragged["bytes"] and own["temporary"] < ragged["temporary"]


def compiled_figures(topology):
  """FLOPs, bytes and temporary memory of one feed-forward with gradients, by the own kernels and by the compiler's."""
  from jax.experimental import topologies

  device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  shape = lambda dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)  # noqa: E731
  N, D, F, E = 4096, 1024, 2048, 64
  weights = shape((E, D, F)), shape((E, D, F)), shape((E, F, D))
  figures = []
  for implementation in ("tpu", "ragged"):
    arguments = shape((N, D)), weights, shape((E,), jnp.int32), shape((N, D))
    compiled = with_gradients.lower(implementation, *arguments).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    figures.append({"flops": cost["flops"], "bytes": cost["bytes accessed"], "temporary": memory.temp_size_in_bytes})
  return figures


if __name__ == "__main__":
  import os

  os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE=TOPOLOGIES[sys.argv[1]],
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  )
  print(json.dumps(compiled_figures(sys.argv[1])))
