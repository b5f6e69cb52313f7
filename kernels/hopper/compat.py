"""All that differs between jax 0.11.2 and 0.12 for these kernels, and what both leave private or untyped."""

import contextlib
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmoe.kernels import work
from jaxmoe.kernels.rows import vary

PROCESSOR_AXIS, WARPGROUP_AXIS = "processor", "warpgroup"
WARPGROUPS = 3  # of 128 threads; one copies, two multiply


def kernel(
  body,
  *,
  name: str,
  out_type,
  processors: int,
  rows: int,
  cost: pl.CostEstimate,
  declared_bytes: float,
  approximate: bool = True,
):
  """A call of `body` in every warpgroup of every processor, in a scope that declares its work.

  Args:
    rows: of the array of rows.
    cost: if all of `rows` are some expert's; for XLA's scheduler, which 0.12 can tell it.
    declared_bytes: expected to be read and written.
  """
  takes_cost = "cost_estimate" in inspect.signature(plgpu.kernel).parameters
  more: dict[str, Any] = {"cost_estimate": cost} if takes_cost else {}
  call = plgpu.kernel(
    body,
    out_type=out_type,
    grid=(processors,),
    grid_names=(PROCESSOR_AXIS,),
    num_threads=WARPGROUPS,
    thread_name=WARPGROUP_AXIS,
    kernel_name=name,
    compiler_params=plgpu.CompilerParams(approx_math=approximate),
    **more,
  )
  scoped = jax.named_scope(work.kernel_scope(cost.flops / rows, rows, declared_bytes))(call)
  return lambda *operands: jax.tree.map(_varying_like, scoped(*operands), out_type)


def _varying_like(array, declared: jax.ShapeDtypeStruct):
  """The kernel's result as its type was declared: jax drops over which mesh axes it varies."""
  return vary(array, declared.manual_axis_type.varying)


def output(shape: tuple[int, ...], like) -> jax.ShapeDtypeStruct:
  """An output of this shape, of the dtype of `like`, varying over the same mesh axes."""
  return jax.ShapeDtypeStruct(shape, like.dtype, manual_axis_type=jax.typeof(like).manual_axis_type)


def swizzled(rows: int, dtype, columns: int = 64):
  """Layout in shared memory: tiles of so many rows by `columns` or fewer, the bytes of each of their rows permuted."""
  columns = min(columns, swizzled_columns(dtype))
  tiling = plgpu.TilingTransform((rows, columns))  # pyright: ignore[reportAbstractUsage]
  return tiling, plgpu.SwizzleTransform(columns * jnp.dtype(dtype).itemsize)  # pyright: ignore[reportAbstractUsage]


def swizzled_columns(dtype) -> int:
  """Columns of a tile in shared memory: 64, or as many as have the 128 bytes that the hardware permutes at most."""
  return min(64, 128 // jnp.dtype(dtype).itemsize)


def accumulator(shape: tuple[int, int]):
  """Float32 sums in registers, zero at first."""
  return plgpu.ACC(shape)  # pyright: ignore[reportPrivateImportUsage]


@contextlib.contextmanager
def interpreted(*, detect_races: bool):
  """Run kernels in the CPU interpreter; with `detect_races`, raise when two unordered accesses meet.

  jax 0.12 raises by itself, and at once; 0.11.2 only prints, and notes it in a state that it makes for each kernel.
  Neither looks at what tensor cores read from shared memory, so that is added.
  """
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

  module: Any = gpu_callbacks
  new_state, multiply, states = module.GPURaceDetectionState, module.wgmma, []
  module.GPURaceDetectionState = lambda **sizes: states.append(new_state(**sizes)) or states[-1]
  module.wgmma = module.fail_on_exception(functools.partial(_read_and_multiply, module, multiply))
  try:
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=detect_races)):
      yield
  finally:
    module.GPURaceDetectionState, module.wgmma = new_state, multiply
  if any(state.races_found for state in states):
    raise RuntimeError("RACE DETECTED: the interpreter printed where")


def _read_and_multiply(module: Any, multiply, **arguments):
  """The interpreter's multiplication, after its reads are held against what others write.

  Tensor cores belong to the asynchronous proxy: they see what was committed, and who waits for this thread afterwards
  may copy over what they read.
  """
  memory, thread, said = module._get_shared_memory(), arguments["thread"], arguments["source_info"]
  if memory.detect_races:
    for operand in ("a", "b"):
      key = module.HostAllocationKey.from_array(arguments[f"{operand}_allocation_key_as_array"])
      transforms = jax.tree.map(int, module._remove_noop_transforms(arguments[f"{operand}_transforms"]))
      read, clock = memory.access(key, transforms), memory.incr_clock(thread)
      clock.async_smem_clock.inc(memory.thread_to_vc_position(thread))  # after what it has seen, not beside it
      for seen in (clock.async_smem_clock, clock.generic_clock):
        module.get_races().check_read(thread, seen, key, read, source_info=said)
    memory.commit_smem(thread)
  return multiply(**arguments)


def reset_interpreter():
  """Forget what a kernel that raised in the interpreter left behind; without this, the next one raises too."""
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

  gpu_callbacks.reset_gpu_interpret_mode_state()
