"""The kernels' legs, with their compiled PTX executed in place of the kernels."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.kernels.hopper import compat
from ptx import machine
from ptx.compiled import Compiled
from ptx.objection import Unmodelled
from ptx.shared_memory import POISON


@contextlib.contextmanager
def executing(kernel: Compiled, timing: machine.Timing, seed: int = 0):
  """Whatever kernel is called within is taken to be this one."""

  def replaced(body, *, out_type, **_):
    return functools.partial(call, kernel, timing, seed, out_type)

  with mock.patch.object(compat, "kernel", replaced):
    yield


def call(kernel: Compiled, timing: machine.Timing, seed: int, out_type, *operands):
  """The results of operands in their order as leaves, which is that of the kernel's arguments."""
  arrays = [np.asarray(operand) for operand in jax.tree.leaves(operands)]
  structs, tree = jax.tree.flatten(out_type)
  results = [np.empty(struct.shape, struct.dtype) for struct in structs]
  for result in results:
    result.view(np.uint8).fill(POISON)
  for argument, shape in kernel.launch.shapes.items():
    if [*arrays, *results][argument].shape != shape:
      raise Unmodelled(f"argument {argument} of {[*arrays, *results][argument].shape}, compiled for {shape}")
  machine.run(kernel.launch, kernel.program, arrays, results, timing, seed)
  return jax.tree.unflatten(tree, [jnp.asarray(result) for result in results])
