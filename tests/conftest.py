"""Eight fake CPU devices for every test. Set before jax is imported, and without importing it."""

import os

# Tests compile far more than they compute: machine code without LLVM's optimisations halves their time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
