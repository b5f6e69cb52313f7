"""Targets of verify: fake CPU devices, and TPU slices that are not here."""

import dataclasses
import importlib.util
import pathlib

import pytest
import tiny

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_deployment
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.layout import aliased_arguments, argument_padding
from jaxmoe.xla.target import Target
from jaxmoe.xla.verify import verify
from jaxmoe.xla.walk import UnknownOperation

WITH_TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed")

ACCELERATOR = any(pathlib.Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))

HEADER = (
  "HloModule m, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), {1}: (2, {}, may-alias) },"
  " entry_computation_layout={(f32[]{:T(128)}, s32[2]{0:T(128)}, bf16[3,100]{1,0:T(8,128)(2,1)}, f32[5]{0})->(f32[2])}"
)


def test_padding_by_hand():
  """A scalar and two ids each take one tile of 128; 3 x 100 takes one of 8 x 128; the last has no tiles."""
  assert argument_padding(HEADER) == (127 * 4, 126 * 4, (8 * 128 - 300) * 2, 0)
  assert aliased_arguments(HEADER) == (1, 2)


OFFLOADED = """
HloModule m
ENTRY %main (x: s32[8]) -> s32[8] {
  %x = s32[8] parameter(0)
  ROOT %y = s32[8] custom-call(%x), custom_call_target="new", backend_config={"sparse_core_config":{"offload":"WHAT"}}
}
"""


def test_a_gather_given_to_sparse_cores_multiplies_nothing_and_other_unknown_calls_are_refused():
  assert matmul_flops(Module.from_text(OFFLOADED.replace("WHAT", "OFFLOAD_GATHER"))).total == 0
  with pytest.raises(UnknownOperation, match="'new'"):
    matmul_flops(Module.from_text(OFFLOADED.replace("WHAT", "OFFLOAD_MATMUL")))


LONG = "cpu:" + "9" * 5000
UNKNOWN = ("gpu", "cpu:0", "cpu:x", "", LONG, "local:2", "tpu", "tpu:v5p", "tpu:4x4", "tpu:v5p:4", "TPU:v5p:2x2x1")


@pytest.mark.parametrize("text", UNKNOWN)
def test_an_unknown_target_is_refused(text):
  with pytest.raises(UsageError, match="--target must be cpu or cpu:N"):
    Target.parse(text)


@pytest.mark.parametrize("target", ["cpu:2049", "cpu:99999999"])
def test_more_fake_devices_than_xla_takes_are_refused(target):
  with pytest.raises(UsageError, match=r"at most 2048 devices, got \d+; use --target cpu:2048"):
    verify(tiny.deployment(Strategy()), target)


def test_a_plan_of_more_devices_than_can_be_faked_is_refused():
  tier = dataclasses.replace(tiny.CLUSTER.tiers[0], devices=4096)
  cluster = dataclasses.replace(tiny.CLUSTER, devices=4096, tiers=(tier,))
  d = dataclasses.replace(tiny.deployment(batch=8192), cluster=cluster, strategy=Strategy(data=4096))
  with pytest.raises(UsageError, match="at most 2048 devices, got 4096; name a TPU slice"):
    verify(d, "cpu")


@pytest.mark.skipif(ACCELERATOR, reason="an accelerator is here, and takes the place of the CPU")
def test_local_compiles_for_the_devices_that_are_here():
  """Without fake devices a CPU is one device."""
  assert Target.parse("local") == Target(local=True)
  found = verify(tiny.deployment(Strategy()), "local")
  assert found.agrees and found.compiled.platform == "cpu"


def test_local_needs_as_many_devices_as_the_plan(capsys):
  assert main(["verify", "ep64_tp2", "--target", "local"]) == ExitCode.MISSING
  err = capsys.readouterr().err
  assert "= 128 devices, and " in err and " devices are present; " in err and "--target cpu" in err


@WITH_TPU
def test_a_slice_that_no_tpu_has_is_refused():
  with pytest.raises(UsageError, match="v9z:1x1x1 is unknown to the TPU compiler"):
    verify(tiny.deployment(Strategy()), "tpu:v9z:1x1x1")


def test_a_slice_of_another_size_is_refused():
  with pytest.raises(UsageError, match=r"slice of 64 chips.*= 128 devices; name a slice of 128 chips"):
    verify(load_deployment("ep64_tp2"), "tpu:v5p:4x4x4")


def test_a_missing_compiler_names_its_install_line(monkeypatch):
  def missing(*_, **__):
    raise MissingError("pip install 'jaxmoe[tpu]'")

  monkeypatch.setattr("jaxmoe.xla.verify.run_in_child", missing)
  with pytest.raises(MissingError):
    verify(load_deployment("ep64_tp2"), "tpu:v5p:4x4x8")


TPU_CASES = {
  "train": (Strategy(stage=2, expert=2, tensor=2), {"remat": "full"}),
  "prefill, folded": (Strategy(data=2, expert=4, heads_over=("expert",)), {"kind": "prefill"}),
  "train, gather transport": (Strategy(stage=2, expert=4), {"transport": "gather", "remat": "full"}),
  "decode": (Strategy(stage=2, expert=2, tensor=2), {"kind": "decode"}),
}
LANES = {"d_model": 256, "head_dim": 128, "d_expert": 512, "vocab_size": 1024}


@WITH_TPU
@pytest.mark.slow
@pytest.mark.parametrize("name", TPU_CASES)
def test_the_tpu_compiler_agrees(name):
  strategy, job = TPU_CASES[name]
  d = tiny.deployment(strategy, "bfloat16", LANES, **{"sequence_length": 256, "capacity_factor": 1.25, **job})
  found = verify(d, "tpu:v5e:2x4")
  assert [(c.name, c.axis, c.predicted, c.compiled) for c in found.checks if not c.ok] == []
  assert found.unplanned == []


@WITH_TPU
@pytest.mark.slow
def test_a_document_agrees_on_128_tpu_chips():
  assert verify(load_deployment("ep64_tp2"), "tpu:v5p:4x4x8").ok
