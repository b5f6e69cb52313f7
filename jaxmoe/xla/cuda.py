"""NVIDIA GPUs as targets to compile for without one: which there are, and what the compiler needs."""

import importlib.metadata
import importlib.util
import pathlib

from jaxmoe.meshes.errors import MissingError, UsageError

# Each is described in meshes/cuda_targets.
GENERATIONS = ("h100", "h200", "b200")

INSTALL = 'pip install "jaxmoe[cuda-compile]"'
TOOLKIT = "nvidia/cu13"  # in site-packages
# Said of every result: without a GPU, nothing is timed.
NOT_AUTOTUNED = "compiled without a GPU: nothing was autotuned, and no library's matmul was chosen"


def check(generation: str) -> None:
  """Raises UsageError if nobody has described such a GPU."""
  if generation not in GENERATIONS:
    raise UsageError(f"--target cuda knows {', '.join(GENERATIONS)}, got {generation}")


def hosts(devices: int, devices_per_host: int) -> tuple[int, int]:
  """`(hosts, GPUs of each)`: as many in a host as there are in one, or fewer where that does not divide."""
  gpus = max(count for count in range(1, min(devices, devices_per_host) + 1) if devices % count == 0)
  return devices // gpus, gpus


def require() -> None:
  """Raises MissingError if the compiler or a part of it is not installed."""
  if reason := missing():
    raise MissingError(f"compiling for CUDA needs the extra cuda-compile: {reason}; install it with: {INSTALL}")


def missing() -> str | None:
  """What cannot be found, or does not fit; None if a compile can start."""
  for package, module in (("jax-cuda13-plugin", "jax_cuda13_plugin"), ("jax-cuda13-pjrt", "jax_plugins.xla_cuda13")):
    if not _found(module):
      return f"{package} is not installed"
  plugin, jaxlib = (importlib.metadata.version(name) for name in ("jax-cuda13-plugin", "jaxlib"))
  if plugin != jaxlib:
    return f"jax-cuda13-plugin {plugin} does not fit jaxlib {jaxlib}, and must have its version"
  if not (toolkit() / "bin" / "ptxas").exists():
    return "nvidia-cuda-nvcc is not installed"
  return None


def toolkit() -> pathlib.Path:
  """Where the wheels of CUDA's compiler lie."""
  package, folder = TOOLKIT.split("/")
  spec = importlib.util.find_spec(package)
  places = list(spec.submodule_search_locations or []) if spec else []
  return pathlib.Path(places[0] if places else ".") / folder


def flags() -> str:
  """For XLA: where ptxas is, and that there is no GPU to time anything on."""
  return f"--xla_gpu_cuda_data_dir={toolkit()} --xla_gpu_autotune_level=0"


def _found(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of the package around it
    return False
