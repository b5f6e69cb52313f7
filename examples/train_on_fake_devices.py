"""Train a small MoE sharded over pipeline stages, experts and tensor pairs, on eight fake CPU devices.

Expected output (losses differ in the last digits between machines):

1 data x 2 stage x 2 expert x 2 tensor = 8 devices
step  1: loss 6.2..., ...% of choices dropped
step 10: loss 3.7..., ...% of choices dropped
step 20: loss 2.8..., ...% of choices dropped
the loss fell: True
"""

import os

# Before jax starts: it asks for its devices once, and would take a GPU where there is one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.config.reduced import reduced
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.train.loop import train

document = load_deployment("ep64_tp2_pp4")  # stages, experts and tensor pairs
deployment = reduced(document, devices=8)
assert deployment.strategy == Strategy(stage=2, expert=2, tensor=2)
print(deployment.strategy.product)

history = train(deployment, steps=20, progress=lambda message: None)
for step in (1, 10, 20):
  metrics = history[step - 1]
  print(f"step {step:2}: loss {metrics['loss']:.3f}, {metrics['drop_rate']:.0%} of choices dropped")
print(f"the loss fell: {history[-1]['loss'] < history[0]['loss']}")
