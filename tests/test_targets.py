"""Targets of verify: fake CPU devices, and TPU slices that are not here."""

import importlib.util

import pytest
import tiny

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.layout import aliased_arguments, argument_padding
from jaxmoe.xla.target import Target
from jaxmoe.xla.verify import verify

WITH_TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed")

HEADER = (
  "HloModule m, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), {1}: (2, {}, may-alias) },"
  " entry_computation_layout={(f32[]{:T(128)}, s32[2]{0:T(128)}, bf16[3,100]{1,0:T(8,128)(2,1)}, f32[5]{0})->(f32[2])}"
)


def test_padding_by_hand():
  """A scalar and two ids each take one tile of 128; 3 x 100 takes one of 8 x 128; the last has no tiles."""
  assert argument_padding(HEADER) == (127 * 4, 126 * 4, (8 * 128 - 300) * 2, 0)
  assert aliased_arguments(HEADER) == (1, 2)


UNKNOWN = ("gpu", "cpu:0", "cpu:x", "", "tpu", "tpu:v5p", "tpu:4x4", "tpu:v5p:4", "TPU:v5p:2x2x1")


@pytest.mark.parametrize("text", UNKNOWN)
def test_an_unknown_target_is_refused(text):
  with pytest.raises(UsageError, match="--target must be cpu or cpu:N"):
    Target.parse(text)


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
