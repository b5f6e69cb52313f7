"""ptxas compiles every Hopper kernel and tile shape to sm_90a without a spill; needs no GPU, but `cuda-compile`."""

import importlib.util
import pathlib
import sys

import pytest
from compiled_modules import WITH_CUDA

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu" / "compile.py"


def load():
  spec = importlib.util.spec_from_file_location("compile_hopper_kernels", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


script = load()


@pytest.mark.slow
@WITH_CUDA
def test_kernels_compile_without_spills():
  reports = script.measure()
  assert {report["leg"] for report in reports} == set(script.SIDES)
  for report in reports:
    assert report["spill_bytes"] == 0, report
    assert report["local_memory_instructions"] in (0, None), report  # None: no machine code to read
    assert report["serialized"] == 0, report  # C7511: multiplications waiting for each other
    assert report["tensor_core_instructions"] >= report["depth"] // 16, report  # each of them 16 deep
    assert report["registers"] <= 168, report  # at entry; the warpgroups then share out 504
    assert report["shared_bytes"] <= 227 * 1024, report


def test_report_reads_what_ptxas_prints():
  text = """ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized
    24 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 1 bytes smem
  HGMMA.64x128x16.F32.BF16 R88, gdesc[UR40].tnspB, R88 ;
  STL [R1], R2 ;"""
  found = {
    "leg": "matmul",
    "registers": 168,
    "spill_bytes": 20,
    "serialized": 1,
    "tensor_core_instructions": 1,
    "local_memory_instructions": 1,
  }
  assert script.report({"leg": "matmul"}, text, machine_code=True) == found
  assert script.report({"leg": "matmul"}, text, machine_code=False) == found | {"local_memory_instructions": None}
