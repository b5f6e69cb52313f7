"""PTX and host code of kernels, compiled in a child process without a GPU.

python -m ptx.compiled FOLDER    compiles the kernels that FOLDER/kernels.json lists
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp

from jaxmoe.kernels.hopper.config import TileShape
from jaxmoe.meshes.build import cuda_devices
from ptx import host, program
from ptx.kernels import Kernel

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
# In the log of the compiler's passes: host code whose constants are folded and which still names its operations.
HOST_CODE = "IR Dump Before ConvertToLLVMPass: convert-to-llvm"


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A kernel's launch, and its program as text, which tests change."""

  launch: host.Launch
  ptx: str

  @functools.cached_property
  def program(self) -> program.Program:
    return program.parse(self.ptx)


@functools.cache
def compiled(*kernels: Kernel) -> dict[Kernel, Compiled]:
  """Each of the kernels. One process compiles them all, because it takes longer to start than a kernel."""
  environment = {
    **os.environ,  # conftest.py has set up the compilers
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "MOSAIC_GPU_DUMP_MLIR_PASSES": "1",
    "MOSAIC_GPU_DUMP_PTX": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]),
  }
  with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    (at / "kernels.json").write_text(json.dumps([dataclasses.asdict(kernel) for kernel in kernels]))
    command = [sys.executable, "-m", "ptx.compiled", folder]
    done = subprocess.run(
      command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
      raise RuntimeError(f"compiling failed:\n{done.stdout[-3000:]}")
    return {
      kernel: Compiled(host.launch((at / f"{i}.mlir").read_text()), (at / f"{i}.ptx").read_text())
      for i, kernel in enumerate(kernels)
    }


def compile_all(folder: pathlib.Path) -> None:
  """Compile each kernel, and leave its texts in the folder."""
  with contextlib.redirect_stdout(io.StringIO()):
    (device,) = cuda_devices("h200", hosts=1, gpus=1)
  one = jax.sharding.SingleDeviceSharding(device)
  # XLA and its compiler of kernels each set LLVM up, in threads that may collide: let XLA come first.
  jax.jit(jnp.negative).lower(jax.ShapeDtypeStruct((8,), "float32", sharding=one)).compile()
  for i, fields in enumerate(json.loads((folder / "kernels.json").read_text())):
    kernel = Kernel(**{**fields, "shape": TileShape(**fields["shape"])})
    dumps = folder / f"dumps{i}"
    dumps.mkdir()
    os.environ["MOSAIC_GPU_DUMP_TO"] = str(dumps)
    arguments = jax.tree.map(
      lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=one), kernel.arguments([0] * kernel.groups)
    )
    jax.jit(lambda *arrays, kernel=kernel: kernel.run(arrays)).lower(*arguments).compile()
    (ptx,), (passes,) = dumps.glob("*.ptx"), dumps.glob("*mlir-passes.log")
    ptx.rename(folder / f"{i}.ptx")
    (folder / f"{i}.mlir").write_text(passes.read_text().partition(HOST_CODE)[2].partition("IR Dump ")[0])


if __name__ == "__main__":
  compile_all(pathlib.Path(sys.argv[1]))
