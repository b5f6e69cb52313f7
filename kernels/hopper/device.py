"""Which device a kernel is for, and whether the kernels can serve a request on it."""

import dataclasses

import jax

DTYPES = ("bfloat16", "float16", "float32")
HOPPER = ("H100", "H200", "H800", "H20", "GH200")  # parts of device names


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
  """Its name, and how many processors (SMs) the kernels occupy; tests in the interpreter use two to eight."""

  kind: str
  processors: int


def current() -> Device:
  """The device of the mesh in use, which may be one to compile for; without such a mesh, jax's first device.

  Raises:
    NotImplementedError: it is not a Hopper GPU.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    kind, processors = device.device_kind, device.num_cores
  else:
    kind, processors = jax.devices()[0].device_kind, getattr(jax.devices()[0], "core_count", None)
  if processors is None or not any(name in kind for name in HOPPER):
    raise NotImplementedError(
      f"the Hopper kernels need an NVIDIA {', '.join(HOPPER)}, got {kind}; name another implementation"
    )
  return Device(kind, processors)


def check_dtypes(*arrays):
  """Floats of one dtype, of two bytes or four; what else is sound, these kernels cannot serve."""
  names = {array.dtype.name for array in arrays}
  if len(names) != 1 or not names <= set(DTYPES):
    raise NotImplementedError(
      f"the Hopper kernels multiply {', '.join(DTYPES)}, got {' and '.join(sorted(names))};"
      " cast the operands, or name another implementation"
    )
