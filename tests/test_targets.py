"""Targets of verify: fake CPU devices, and TPU slices that are not here."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re

import pytest
import tiny
from compiled_modules import WITH_TPU
from plans import edited
from verified_documents import assert_every_document_agrees

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_deployment
from jaxmoe.kernels import buffer_ffn, choose
from jaxmoe.meshes import slices
from jaxmoe.meshes.axes import DATA
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report.verification import verdict
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.layout import aliased_arguments, argument_padding
from jaxmoe.xla.target import Target, expert_kernel
from jaxmoe.xla.verify import verify
from jaxmoe.xla.walk import UnknownOperation

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
UNKNOWN = (
  "gpu", "cpu:0", "cpu:x", "", LONG, "local:2", "tpu:4x4", "tpu:v5p:4", "TPU:v5p:2x2x1", "tpu:v5p:2x2x1:0",
  "cuda:2x8", "cuda:h200:2x8:2", "cuda:", "tpu:v5e:", "tpu:v5e::2",
)  # fmt: skip


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
  assert Target.parse("local") == Target(platform="local")
  found = verify(tiny.deployment(Strategy()), "local")
  assert found.agrees and found.compiled.platform == "cpu"


def test_local_needs_as_many_devices_as_the_plan(capsys):
  assert main(["verify", "ep64_tp2", "--target", "local"]) == ExitCode.MISSING
  err = capsys.readouterr().err
  assert "= 128 devices, and " in err and " devices are present; " in err and "--target cpu" in err


CHOSEN = [
  ("v5e", 1, "v5e:1x1"), ("v5e", 8, "v5e:2x4"), ("v5e", 256, "v5e:16x16"), ("v5e", 512, "v5e:16x16:2"),
  ("v6e", 128, "v6e:8x16"), ("v6e", 768, "v6e:16x16:3"),
  ("v5p", 4, "v5p:2x2x1"), ("v5p", 16, "v5p:2x2x4"), ("v5p", 128, "v5p:4x4x8"), ("v5p", 256, "v5p:4x8x8"),
  ("v5p", 512, "v5p:8x8x8"), ("v5p", 6144, "v5p:16x16x24"), ("v5p", 12288, "v5p:16x16x24:2"),
]  # fmt: skip


@pytest.mark.parametrize("generation, chips, name", CHOSEN)
def test_the_most_cubic_slice_of_the_size_is_chosen(generation, chips, name):
  found = slices.chosen(generation, chips)
  assert (str(found), found.count * math.prod(found.shape)) == (name, chips)


def test_shapes_are_as_documented():
  """All of Google's tables for v5e and v6e, and for v5p; the largest job has 96 cubes of 64 chips."""
  flat = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
  assert [slices.spelled(shape) for shape in slices.SHAPES["v5e"]] == flat
  assert slices.SHAPES["v6e"] == slices.SHAPES["v5e"]
  common = {(2, 2, 1), (2, 2, 2), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16)}
  assert common | {(16, 16, 16)} < set(slices.SHAPES["v5p"])
  assert slices.SHAPES["v5p"][-1] == (16, 16, 24)


REFUSED = {
  "v5e 24": "no TPU v5e slice has 24 chips; the nearest real ones are 4x4 .16 chips. and 4x8 .32 chips.",
  "v5e 257": "no TPU v5e slice has 257 chips; the nearest real ones are 16x16",
  "v5p 1": "no TPU v5p slice has 1 chips; the nearest real ones are 2x2x1",
  "v9z 4": "TPU generations are v5e, v5p, v6e, got v9z",
}


@pytest.mark.parametrize("request_", REFUSED)
def test_a_number_of_chips_that_no_slice_has_is_refused(request_):
  generation, chips = request_.split()
  with pytest.raises(UsageError, match=REFUSED[request_]):
    slices.chosen(generation, int(chips))


@pytest.mark.parametrize(
  "target, message",
  [
    ("tpu:v5e:16x32", "no TPU v5e slice is 16x32; the nearest real ones are 16x16"),
    ("tpu:v5p:8x4x4", "no TPU v5p slice is 8x4x4; the nearest real ones are 4x4x8"),
    ("tpu:v9z:1x1x1", "TPU generations are v5e, v5p, v6e, got v9z"),
    ("tpu:v5p:4x4x4", r"slice of 64 chips.*= 128 devices; use --target tpu:v5p:4x4x8"),
    ("tpu:v5e:2x2:8", r"slice of 32 chips.*= 128 devices; use --target tpu:v5e:8x16"),
    ("cuda:h200:2x8", r"hosts of 16 GPUs.*= 128 devices; use --target cuda:h200:16x8"),
    ("cuda:a100", "--target cuda knows h100, h200, b200, got a100"),
  ],
)
def test_an_unreal_target_is_refused_before_anything_is_compiled(target, message, capsys):
  assert main(["verify", "ep64_tp2", "--target", target]) == ExitCode.USAGE
  assert re.search(message, capsys.readouterr().err)


def test_targets_are_chosen_for_the_plan():
  d = load_deployment("ep64_tp2")
  found = {text: str(Target.parse(text).on(d)) for text in ("cpu", "tpu", "tpu:v5e", "cuda", "cuda:b200", "local")}
  assert found == {
    "cpu": "cpu", "tpu": "tpu:v5p:4x4x8", "tpu:v5e": "tpu:v5e:8x16", "cuda": "cuda:h200:16x8",
    "cuda:b200": "cuda:b200:16x8", "local": "local",
  }  # fmt: skip


def test_a_missing_compiler_names_its_install_line(monkeypatch, capsys):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
  assert main(["verify", "ep64_tp2", "--target", "tpu"]) == ExitCode.MISSING
  assert "pip install 'jaxmoe[tpu]'" in capsys.readouterr().err


def test_all_is_a_table_and_its_exit_code_is_the_worst(monkeypatch, capsys):
  """16 devices fit in 100 fake ones, 128 do not."""
  monkeypatch.setattr("jaxmoe.config.catalogue.deployment_names", lambda: ("tp4_ep4_pp4", "ep64_tp2"))
  assert main(["verify", "all", "--target", "cpu:100", "--json"]) == ExitCode.USAGE
  document = json.loads(capsys.readouterr().out)
  agreeing, refused = document["deployments"]
  assert not document["ok"] and agreeing["ok"] and not refused["ok"]
  assert (agreeing["deployment"], agreeing["devices"], agreeing["verdict"]) == ("tp4_ep4_pp4", 16, "agrees")
  assert agreeing["checks_held"] == agreeing["checks"] > 10 and agreeing["seconds"] > 0
  assert refused["verdict"].startswith("refused: --target cpu:100 is too small")
  assert main(["verify", "all", "--target", "cpu:100"]) == ExitCode.USAGE
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[:4] for line in lines[:2]] == [
    ["deployment", "target", "devices", "verdict"],
    ["tp4_ep4_pp4", "cpu:100", "16", "agrees"],
  ]
  assert "(cached)" in lines[1] and len(lines) == 3


def test_all_writes_no_page_of_one(capsys, tmp_path):
  assert main(["verify", "all", "--html", str(tmp_path / "page.html")]) == ExitCode.USAGE
  assert "name it instead of all" in capsys.readouterr().err


@WITH_TPU
def test_a_program_too_large_for_a_chip_is_exit_code_4(tmp_path, capsys):
  """In the compiler's words, with the largest class and a plan that fits in the 16 GB of a chip."""
  sizes = ("d_model: 64", "d_model: 2048"), ("d_expert: 128", "d_expert: 8192"), ("head_dim: 16", "head_dim: 128")
  layout = (("stage: 2, expert: 4, tensor: 2", "stage: 1, expert: 4, tensor: 1"),)
  (tmp_path / "plan.yaml").write_text(edited(*sizes, *layout, ("batch: 16, sequence_length: 32", BATCH)))
  command = ["verify", str(tmp_path / "plan.yaml"), "--target", "tpu:v5e", "--json"]
  assert main(command) == ExitCode.DISAGREES
  document = json.loads(capsys.readouterr().out)
  assert (document["ok"], document["out_of_memory"], document["target"]) == (False, True, "tpu:v5e:2x2")
  assert "memory" in document["refused"] and len(document["refused"]) < 700
  assert document["largest_class"] == "temporaries"
  assert document["class_bytes"]["optimizer"] > document["class_bytes"]["parameters"] > 0
  assert document["nearest_plan"]["memory_bytes"] < 16e9
  assert {"needed_bytes", "available_bytes", "excess_bytes"} <= document["sources"].keys()
  assert main([*command[:-1], "--html", str(tmp_path / "page.html")]) == ExitCode.DISAGREES
  printed = capsys.readouterr()
  assert "\nnearest plan that fits: " in printed.out
  assert "page.html is not written" in printed.err and not (tmp_path / "page.html").exists()


BATCH = "batch: 16, sequence_length: 2048"


TPU_CASES = {
  "train": (Strategy(stage=2, expert=2, tensor=2), {"remat": "full"}),
  "prefill, folded": (Strategy(data=2, expert=4, heads_over=("expert",)), {"kind": "prefill"}),
  "train, gather transport": (Strategy(stage=2, expert=4), {"transport": "gather", "remat": "full"}),
  "decode": (Strategy(stage=2, expert=2, tensor=2), {"kind": "decode"}),
}


@WITH_TPU
@pytest.mark.slow
@pytest.mark.parametrize("name", TPU_CASES)
def test_the_tpu_compiler_agrees(name):
  strategy, job = TPU_CASES[name]
  d = tiny.whole_tiles(strategy, **job)
  found = verify(d, "tpu:v5e:2x4")
  assert [(c.name, c.axis, c.predicted, c.compiled) for c in found.checks if not c.ok] == []
  assert found.unplanned == []


@WITH_TPU
@pytest.mark.slow
def test_two_slices_agree():
  """A slice holds half of the replicas; hosts add their gradients up, and that is read too."""
  strategy = Strategy(data=2, expert=2, tensor=2)
  d = tiny.whole_tiles(strategy, remat="full")
  found = verify(d, "tpu:v5e:2x2:2")
  assert found.agrees and any("2 slices" in note for note in found.compiled.notes)
  assert "every collective is planned" in verdict(found)
  between = [one for one in found.compiled.optimised if one.between_slices]
  assert between and {one.axes for one in between} == {(DATA,)}


@WITH_TPU
@pytest.mark.slow
def test_every_document_agrees_on_tpu(monkeypatch, capsys):
  entries = assert_every_document_agrees("tpu", monkeypatch, capsys)
  assert all("libtpu" in entry["versions"] for entry in entries)


@pytest.mark.parametrize("platform", choose.OF_PLATFORM)
@pytest.mark.parametrize("transport", ["capacity", "dense", "gather"])
def test_the_kernel_that_is_expected_is_the_one_that_is_chosen(transport, platform):
  batched = transport != "gather" and platform in buffer_ffn.EINSUM_PLATFORMS
  d = tiny.deployment(Strategy(), transport=transport)
  assert expert_kernel(d, platform) == ("einsum" if batched else choose.of_platform(platform))
  named = tiny.deployment(Strategy(), transport=transport, expert_kernel="ragged")
  assert expert_kernel(named, platform) == "ragged"
