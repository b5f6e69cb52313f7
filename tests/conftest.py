"""Eight fake CPU devices for every test. Set before jax is imported, and without importing it."""

import os

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
