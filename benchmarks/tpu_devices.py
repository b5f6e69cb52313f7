"""TPUs to compile for without one: libtpu serves one topology a process."""

import os

# Device -> topology to compile for, accelerator type, kind as jax calls it.
DEVICES = {
  "v4": ("v4:2x2x1", "v4-8", "TPU v4"),
  "v5e": ("v5e:2x2", "v5litepod-4", "TPU v5 lite"),
  "v5p": ("v5p:2x2x1", "v5p-8", "TPU v5"),
  "v6e": ("v6e:2x2", "v6e-4", "TPU v6 lite"),
  "tpu7x": ("tpu7x:2x2x1", "tpu7x-8", "TPU7x"),
}


def without_a_tpu(device: str):
  """Sets what libtpu asks of its environment; call it before jax starts."""
  os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE=DEVICES[device][1],
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  )


def mesh_of_one(device: str):
  import jax
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(platform="tpu", topology_name=DEVICES[device][0])
  return jax.sharding.Mesh(topology.devices[:1], "x")
