"""The catalogue: every file loads, says where its numbers come from, and quotes what it claims."""

import json
import re

import pytest
from numerals import PRINTED, quoted_values
from plans import PLAN, edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import (
  cluster_names,
  deployment_names,
  load_cluster,
  load_deployment,
  load_model,
  model_names,
)
from jaxmoe.meshes.errors import UsageError

# (devices as data x stage x expert x tensor, document, job, batch, sequence length)
DECIDED = {
  "ep64_tp2_pp4": ((1, 4, 16, 2), "000", "prefill", 128, 1024),
  "ep256_pp16": ((1, 16, 16, 1), "001", "decode", 128, 10240),
  "tp8_pp4_ep4_dp4": ((4, 4, 4, 8), "002", "train", 512, 1024),
  "tp4_ep4_pp4": ((1, 4, 4, 1), "003", "train", 8, 256),
  "ep64_tp2": ((1, 1, 64, 2), "004", "prefill", 128, 1024),
}
CLAIMS = [(name, claim) for name in deployment_names() for claim in load_deployment(name).claims]


@pytest.mark.parametrize("name", DECIDED)
def test_deployments_are_read_as_decided(name):
  d = load_deployment(name)
  s = d.strategy
  sizes = (s.data, s.stage, s.expert, s.tensor)
  assert (sizes, d.document[:3], d.job.kind, d.job.batch, d.job.sequence_length) == DECIDED[name]
  assert (d.name, d.job.capacity_factor, d.job.transport) == (name, 1.25, "capacity")
  assert d.model.experts_per_token == 2 and d.model.vocab_size == 32768 and not d.model.gated


def test_all_five_documents_are_there():
  assert set(deployment_names()) >= set(DECIDED)


def test_only_document_003_folds_heads_onto_experts():
  assert {n for n in DECIDED if load_deployment(n).strategy.heads_over == ("expert",)} == {"tp4_ep4_pp4"}


@pytest.mark.parametrize("name, claim", CLAIMS, ids=[f"{name}-{claim.name}" for name, claim in CLAIMS])
def test_a_claim_quotes_its_number(name, claim):
  values = quoted_values(claim.quote.replace("exactly one", "1"))
  assert any(value == pytest.approx(claim.value, rel=1e-9, abs=0) for value in values), claim


def test_quoted_values_can_tell_units_apart():
  assert quoted_values("Memory per GPU: 0.637 GB") == [0.637e9] and quoted_values("0.002ms") == [2e-6]
  assert quoted_values("60%") == [0.6] and quoted_values("30B params") == quoted_values("30 billion") == [3e10]
  assert quoted_values("512,000 at 2,3 in 8 seconds < 10s") == [512000, 2, 3, 8, 10]


# Digits in each document; its rows in numerals.txt must have as many.
NUMERALS = {"ep64_tp2_pp4": 108, "ep256_pp16": 133, "tp8_pp4_ep4_dp4": 147, "tp4_ep4_pp4": 155, "ep64_tp2": 66}
NO_CLAIM = {"-list", "-row", "-name", "-index", "-pattern"}


@pytest.mark.parametrize("name", NUMERALS)
def test_every_number_of_a_document_is_a_claim(name):
  """Each numeral, as printed, is the value of the claim named beside it; the others say what they are instead."""
  claims = {claim.name: claim.value for claim in load_deployment(name).claims}
  found = 0
  for words, names in PRINTED[name]:
    values = quoted_values(words)
    assert len(values) == len(names), words
    found += len(values)
    for value, of in zip(values, names, strict=True):
      assert of in NO_CLAIM or value == pytest.approx(claims[of], rel=1e-9, abs=0), (words, of)
      assert of != "-row" or all(f"_{value:.0f}_" in other for other in names if other != of), words
  assert found == NUMERALS[name]


@pytest.mark.parametrize("name", NUMERALS)
def test_every_claim_is_in_its_document(name):
  printed = {of for _, names in PRINTED[name] for of in names}
  in_words = {claim.name for claim in load_deployment(name).claims if not quoted_values(claim.quote)}
  assert {claim.name for claim in load_deployment(name).claims} == (printed - NO_CLAIM) | in_words
  assert in_words == ({"experts_per_device"} if name == "ep256_pp16" else set())  # "exactly one expert"


@pytest.mark.parametrize("name", DECIDED)
def test_readings_say_what_was_read_and_mark_assumptions(name):
  readings = load_deployment(name).readings
  assert len(readings) >= 8
  assert any(reading.assumption for reading in readings) and not all(reading.assumption for reading in readings)


@pytest.mark.parametrize("name", cluster_names())
def test_clusters_name_source_and_assumptions(name):
  cluster = load_cluster(name)
  assert cluster.name == name and cluster.source and cluster.peak_flops_per_s["bfloat16"] > 1e14
  tiers = {tier.name: tier for tier in cluster.tiers}
  for key in cluster.assumptions:
    field, *rest = key.split(".")
    assert hasattr(cluster, field) and (not rest or rest[0] in tiers), key
  assert all(f"tiers.{tier}.latency_s" in cluster.assumptions for tier in tiers), "no datasheet states latencies"
  assert cluster.devices % cluster.devices_per_host == 0


# NVIDIA's and Google's published figures: dense bf16 TFLOP/s, GB, TB/s, GB/s of links in one direction
DATASHEET = {
  "dgx_h100": (989.4, 80, 3.35, 450), "dgx_h200": (989.4, 141, 4.8, 450), "gb200_nvl72": (2500, 186, 8, 900),
  "tpu_v5e": (197, 16, 0.819, 200), "tpu_v5p": (459, 95, 2.765, 600), "tpu_v6e": (918, 32, 1.638, 400),
  "seed_400tf": (400, 64, 1.8, 450),
}  # fmt: skip


@pytest.mark.parametrize("name", DATASHEET)
def test_clusters_are_in_base_units(name):
  c, (tflops, gigabytes, terabytes_per_s, link) = load_cluster(name), DATASHEET[name]
  assert c.peak_flops_per_s["bfloat16"] == pytest.approx(tflops * 1e12)
  assert c.memory_bytes == gigabytes * 10**9
  assert c.memory_bandwidth_bytes_per_s == pytest.approx(terabytes_per_s * 1e12)
  assert c.tiers[0].bandwidth_bytes_per_s == pytest.approx(link * 1e9)


def test_models_load_and_a_deployment_lends_its_own():
  assert {load_model(name).name for name in model_names()} == set(model_names())
  assert load_model("ep64_tp2") == load_deployment("ep64_tp2").model


def test_model_and_cluster_by_path_beside_the_deployment(tmp_path, monkeypatch):
  head, rest = PLAN.split("model:\n")
  model, rest = rest.split("cluster:\n")
  cluster, rest = rest.split("strategy:")
  folder = tmp_path / "plans"
  folder.mkdir()
  (folder / "m.yaml").write_text(model.replace("\n  ", "\n").lstrip())
  (folder / "c.yaml").write_text(cluster.replace("\n  ", "\n").lstrip())
  (folder / "plan.yaml").write_text(f"{head}model: m.yaml\ncluster: ./c.yaml\nstrategy:{rest}")
  inline = tmp_path / "inline.yaml"
  inline.write_text(PLAN)
  monkeypatch.chdir(tmp_path)
  by_path, written_out = load_deployment("plans/plan.yaml"), load_deployment("inline.yaml")
  assert by_path.cluster == written_out.cluster and by_path.model.name == "m"
  assert load_model("plans/m.yaml") == by_path.model
  assert load_model("inline.yaml") == written_out.model


@pytest.mark.parametrize("model", ["mixtral-8x7b", "ep64_tp2"])
def test_a_deployment_may_name_a_model_of_the_catalogue(tmp_path, model):
  inline = PLAN[PLAN.index("model:\n") : PLAN.index("cluster:\n")]
  (tmp_path / "p.yaml").write_text(edited((inline, f"model: {model}\n")))
  assert load_deployment(str(tmp_path / "p.yaml")).model == load_model(model)


UNKNOWN = {
  "mixtral": (load_model, (*model_names(), *deployment_names())),
  "dgx-h100": (load_cluster, cluster_names()),
  "EP64-TP2": (load_deployment, deployment_names()),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_lists_the_known(name):
  load, known = UNKNOWN[name]
  with pytest.raises(UsageError, match=rf"expected a path to a file .* or one of {re.escape(', '.join(known))}$"):
    load("nonsense")
  with pytest.raises(UsageError, match="did you mean"):
    load(name)


def test_verbs_write_one_json_document(capsys):
  for verb, key in [(["deployments"], "deployments"), (["model", "show", "olmoe-1b-7b"], "model")]:
    assert main([*verb, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and key in document
  assert document["parameters"] == {"total": 6919161856, "active": 1282017280}


def test_verbs_write_whole_lines_when_piped(capsys):
  assert main(["deployments"]) == 0
  out = capsys.readouterr().out
  for name in deployment_names():
    d = load_deployment(name)
    assert any(all(text in line for text in (name, d.strategy.product, d.title)) for line in out.splitlines())
  assert "…" not in out
  assert main(["model", "show", "mixtral-8x7b"]) == 0
  assert "46,702,792,704" in capsys.readouterr().out
