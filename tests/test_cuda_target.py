"""NVIDIA targets: compiled for without a GPU, read, and compared; skipped where the extra cuda-compile is missing."""

import importlib.util

import pytest
import tiny
from compiled_modules import WITH_CUDA
from verified_documents import assert_every_document_agrees

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_deployment
from jaxmoe.meshes.build import CUDA_TARGETS
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla import cuda
from jaxmoe.xla.compare import compare
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.verify import verify

STRATEGY = Strategy(stage=2, expert=2, tensor=2)


def deployment(dtype="bfloat16", **job):
  return tiny.whole_tiles(STRATEGY, dtype, **job)


def test_every_generation_is_described():
  assert {file.stem for file in CUDA_TARGETS.glob("*.txtpb")} == set(cuda.GENERATIONS)
  for name in cuda.GENERATIONS:
    assert f'device_description_str: "NVIDIA {name.upper()}' in (CUDA_TARGETS / f"{name}.txtpb").read_text()


@pytest.mark.parametrize("devices, expected", [(1, (1, 1)), (4, (1, 4)), (8, (1, 8)), (12, (2, 6)), (128, (16, 8))])
def test_hosts_are_filled_where_that_divides(devices, expected):
  assert cuda.hosts(devices, 8) == expected


@pytest.mark.parametrize("absent", ["jax_cuda13_plugin", "jax_plugins.xla_cuda13"])
def test_a_missing_extra_is_exit_code_5_with_its_install_line(absent, monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else object())
  assert main(["verify", "all", "--target", "cuda"]) == ExitCode.MISSING
  assert capsys.readouterr().err.endswith('install it with: pip install "jaxmoe[cuda-compile]"\n')


def test_a_plugin_of_another_version_is_refused(monkeypatch):
  versions = {"jax-cuda13-plugin": "0.11.2", "jaxlib": "0.12.0.1"}
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
  monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
  with pytest.raises(MissingError, match=r"jax-cuda13-plugin 0\.11\.2 does not fit jaxlib 0\.12\.0\.1"):
    cuda.require()


SCAN = """
HloModule m, entry_computation_layout={(f32[6,2]{1,0})->f32[6,2]{1,0}}

%step (x: f32[2], sum: f32[2]) -> (f32[2], f32[2]) {
  %x = f32[2]{0} parameter(0)
  %sum = f32[2]{0} parameter(1)
  %product = f32[] dot(%x, %sum), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %same = f32[2]{0} broadcast(%product), dimensions={}
  ROOT %both = (f32[2]{0}, f32[2]{0}) tuple(%same, %same)
}

ENTRY %main (x.1: f32[6,2]) -> f32[6,2] {
  %x.1 = f32[6,2]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %first = f32[2]{0} broadcast(%zero), dimensions={}
  %run = (f32[6,2]{1,0}, f32[2]{0}) scan(%x.1, %first), dimensions={0}, num_carries=1, to_apply=%step
  ROOT %sums = f32[6,2]{1,0} get-tuple-element(%run), index=0
}
"""


def test_what_a_scan_applies_runs_once_a_slice():
  """A cumulative sum is spelt so before NVIDIA's passes; were there a dot in it, it would count: 6 x 2 x 2."""
  assert matmul_flops(Module.from_canonical(SCAN.strip())).total == 24


@WITH_CUDA
def test_a_training_step_agrees_by_hopper_kernels():
  """Dots of XLA's own, kernels that declare their FLOPs, asynchronous collectives; nothing widened."""
  found = verify(deployment(remat="full"), "cuda:h100")
  assert [(check.name, check.axis) for check in found.checks if not check.ok] == []
  assert found.unplanned == []
  assert found.target == "cuda:h100:1x8" and found.compiled.platform == "gpu"
  assert found.compiled.settings["expert kernel"] == "hopper"
  assert found.compiled.notes == (cuda.NOT_AUTOTUNED,)
  assert not any("widened" in rewrite.names for rewrite in found.rewrites)
  assert {"jax-cuda13-plugin", "nvidia-cuda-nvcc"} <= found.compiled.versions.keys()


@WITH_CUDA
@pytest.mark.parametrize("transport", ["capacity", "gather"])
def test_float32_takes_six_products(transport):
  found = verify(deployment("float32", kind="prefill", transport=transport), "cuda:h200")
  assert found.agrees and found.compiled.settings["expert kernel"] == "hopper"
  half = verify(deployment("float16", kind="prefill", transport=transport), "cuda:h200")
  ours, theirs = (step.compiled.flops_by_part["experts"] for step in (found, half))
  assert ours == pytest.approx(6 * theirs, rel=1e-5)


@WITH_CUDA
@pytest.mark.parametrize("target, dtype", [("b200", "bfloat16"), ("b200", "float32"), ("h200", "float64")])
def test_einsum_stands_in_where_hopper_kernels_cannot_serve(target, dtype):
  found = verify(deployment(dtype, kind="prefill"), f"cuda:{target}")
  assert found.agrees and found.compiled.settings["expert kernel"] == "einsum"
  assert found.compiled.notes[0].startswith("experts are multiplied by einsum, for: the Hopper kernels ")


@WITH_CUDA
@pytest.mark.parametrize("job", [{"transport": "gather"}, {"expert_kernel": "hopper"}])
def test_a_kernel_that_nothing_can_stand_in_for_is_refused(job):
  with pytest.raises(UsageError, match="cannot be compiled for cuda:b200:1x8: the Hopper kernels need"):
    verify(deployment(kind="prefill", **job), "cuda:b200")


@WITH_CUDA
def test_a_wrong_plan_is_caught(monkeypatch):
  """The compiled step of one capacity judged by another: routing buffers, and so traffic and work, differ."""
  step = verify(deployment(kind="prefill"), "cuda").compiled
  wrong = compare(deployment(kind="prefill", capacity_factor=1.0), "cuda", step)
  failed = {(check.name, check.axis) for check in wrong.checks if not check.ok}
  assert {("all-to-all", "expert"), ("experts matmuls", "")} <= failed


@WITH_CUDA
def test_the_smallest_document_agrees():
  assert verify(load_deployment("tp4_ep4_pp4"), "cuda").ok


@WITH_CUDA
@pytest.mark.slow
def test_every_document_agrees_on_nvidia(monkeypatch, capsys):
  entries = assert_every_document_agrees("cuda", monkeypatch, capsys)
  assert all(entry["notes"] == [cuda.NOT_AUTOTUNED] for entry in entries)
