"""Predict one deployment without a device and without jax: does it fit, what bounds it, who holds what.

Expected output:

ep64_tp2: 1 data x 1 stage x 64 expert x 2 tensor = 128 devices
parameters: 4,430,267,392 total, 269,517,824 active
memory of one device: 251 MiB of 59.6 GiB
  parameters   98.1 MiB
  cache        64.0 MiB
  dispatch     40.0 MiB
step: 10.6 ms, bound by exchange; 12.3 M tokens/s
rank 127 holds layers 0-15, expert 63, width part 1
"""

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.placement import place
from jaxmoe.report import units

deployment = load_deployment("ep64_tp2")
prediction = estimate(deployment)
memory, time = prediction.memory, prediction.time

print(f"{deployment.name}: {deployment.strategy.product}")
print(f"parameters: {prediction.parameters['total']:,} total, {prediction.parameters['active']:,} active")
print(f"memory of one device: {units.bytes_(memory.total)} of {units.bytes_(deployment.cluster.memory_bytes)}")
for name in ("parameters", "cache", "dispatch"):
  print(f"  {name:<12} {units.bytes_(getattr(memory, name))}")
rate = units.rate(prediction.tokens_per_s, "tokens/s")
print(f"step: {units.seconds(time.total_s)}, bound by {time.bottleneck}; {rate}")

model = deployment.model
last = place(deployment.strategy, model.num_layers, model.num_experts)[-1]
print(f"rank {last.rank} holds layers {last.layers[0]}-{last.layers[-1]}, expert {last.experts[0]},", end=" ")
print(f"width part {last.width_part}")
