"""The audit of documents: every claim is judged by a rule, the known contradictions are found, and rules can fail."""

import dataclasses
import json
import math
import pathlib

import pytest
from plans import edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import document_names, load_deployment
from jaxmoe.planner.amount import exact, shown
from jaxmoe.planner.audit import RULES, Verdict, audit, requirements, rule_of
from jaxmoe.planner.audit_places import NUMBERED_RULES
from jaxmoe.planner.book import Book, Printed, printed
from jaxmoe.planner.checks import Missing
from jaxmoe.planner.own_plan import own_plans
from jaxmoe.report import audit as report

DOCUMENTS = {name: load_deployment(name) for name in document_names()}
FINDINGS = {(name, finding.claim): finding for name, d in DOCUMENTS.items() for finding in audit(d)}
CONSISTENT = [key for key, finding in FINDINGS.items() if finding.verdict == Verdict.CONSISTENT]
CONTRADICTED = [
  key for key, f in FINDINGS.items() if f.verdict not in (Verdict.CONSISTENT, Verdict.NOT_CHECKABLE)
]  # fmt: skip
OWN = {name: own_plans(d) for name, d in DOCUMENTS.items()}
IDS = "-".join

# Every claim that is not consistent.
VERDICTS = {
  "ep256_pp16": {
    "contradicts_document":
      "devices expert_parallel_size pipeline_parallel_size_in_product kv_cache_bytes_per_layer "
      "stage_message_bytes",
    "contradicts_model":
      "kv_cache_bytes_per_device flops_per_token throughput_tokens_per_s_per_device "
      "throughput_tokens_per_ms_per_device required_tokens_per_ms_per_device prefill_latency_s "
      "link_bytes_per_s stage_message_s compute_efficiency",
  },
  "ep64_tp2": {
    "contradicts_document":
      "expert_bytes_per_device",
    "contradicts_model":
      "memory_utilization compute_utilization compute_utilization_maximum attention_bytes_per_device "
      "activation_bytes_per_device memory_bytes_per_device expert_parallel_efficiency",
    "not_checkable":
      "load_balance load_variance",
  },
  "ep64_tp2_pp4": {
    "impossible":
      "throughput_batches_per_s latency_s",
    "contradicts_document":
      "devices expert_parallel_size module_divisions",
    "contradicts_model":
      "parameters_total memory_bytes_per_device memory_utilization parameter_bytes_per_device "
      "activation_bytes_total device_utilization compute_efficiency parallel_efficiency_minimum "
      "link_bytes_per_s communication_overhead",
  },
  "tp4_ep4_pp4": {
    "impossible":
      "modules_per_device sequential_layers",
    "contradicts_document":
      "devices",
    "contradicts_model":
      "modules_per_device_maximum parameter_bytes_per_device activation_bytes_per_device "
      "optimizer_bytes_per_device buffer_bytes_per_device memory_bytes_per_device latency_reduction "
      "device_utilization_minimum",
    "not_checkable":
      "throughput_increase",
  },
  "tp8_pp4_ep4_dp4": {
    "contradicts_document":
      "parameters_total memory_bytes_total earlier_memory_bytes_total throughput_sequences_per_s "
      "device_memory_efficiency gradient_accumulation_steps",
    "contradicts_model":
      "parameter_bytes_total activation_bytes_total gradient_bytes_total optimizer_bytes_total latency_s "
      "compute_efficiency",
    "not_checkable":
      "network_efficiency_target",
  },
}  # fmt: skip

# What a reader of the documents finds with pencil and paper: (claim, verdict, its arithmetic here).
BY_HAND = [
  # 000: matmuls of 128 x 1024 tokens in 16 layers: projections 8 D^2, experts 8 D F, router 2 D E, half of 4 S D
  ("ep64_tp2_pp4", "latency_s", "impossible",
   (131072 * 16 * (8 * 1024**2 + 8 * 1024 * 2048 + 2 * 1024 * 16 + 2 * 1025 * 1024) + 128 * 2 * 1024 * 32768)
   / (128 * 400e12)),
  ("ep64_tp2_pp4", "throughput_batches_per_s", "impossible",
   128 * 400e12
   / (131072 * 16 * (8 * 1024**2 + 8 * 1024 * 2048 + 2 * 1024 * 16 + 2 * 1025 * 1024) + 128 * 2 * 1024 * 32768)),
  ("ep64_tp2_pp4", "devices", "contradicts_document", 64 * 2 * 4),
  ("ep64_tp2_pp4", "expert_parallel_size", "contradicts_document", 16),
  ("ep64_tp2_pp4", "device_utilization", "contradicts_model", 8 / (8 + 4 - 1)),
  ("ep64_tp2_pp4", "system_flops_per_s", "consistent", 128 * 240e12),
  ("ep64_tp2_pp4", "expert_31_last_device", "consistent", 31 * 2 + 1),
  ("ep64_tp2_pp4", "stage_2_last_device", "consistent", 3 * 32 - 1),
  ("ep64_tp2_pp4", "stage_0_first_layer", "consistent", 0),
  ("ep64_tp2_pp4", "stage_3_first_layer", "consistent", 3 * 4),
  ("ep64_tp2_pp4", "stage_1_first_device", "consistent", 32),
  ("ep64_tp2_pp4", "expert_16_first_device", "consistent", 16 * 2),
  # 001
  ("ep256_pp16", "devices", "contradicts_document", 4096),
  ("ep256_pp16", "pipeline_parallel_size_in_product", "contradicts_document", 16),
  ("ep256_pp16", "kv_cache_bytes_per_layer", "contradicts_document", 16 * 32 * 2 * 10240 * 2 * 128),
  ("ep256_pp16", "kv_cache_bytes_per_device", "contradicts_model", 16 * 32 * 2 * 10240 * 2 * 128 / 16),
  ("ep256_pp16", "stage_message_bytes", "contradicts_document", 128 * 512 * 2),
  ("ep256_pp16", "stage_message_s", "contradicts_model", 5e-6 + 128 / 16 / 4 * 512 * 2 / 50e9),
  ("ep256_pp16", "expert_bytes_per_device", "consistent", 20e9 / 256),
  ("ep256_pp16", "hosts", "consistent", 256 / 8),
  ("ep256_pp16", "experts_per_device", "consistent", 256 / 256),
  ("ep256_pp16", "kv_cache_tensors", "consistent", 2),
  # 002: experts, attention, router, norms, embedding and head
  ("tp8_pp4_ep4_dp4", "parameters_total", "contradicts_document",
   16 * (64 * 2 * 1024 * 2048 + 4 * 1024**2 + 64 * 1024 + 2 * 1024) + 2 * 32768 * 1024 + 1024),
  ("tp8_pp4_ep4_dp4", "earlier_parameters_total", "consistent", 4430267392),
  ("tp8_pp4_ep4_dp4", "memory_bytes_total", "contradicts_document", 60e9 + 8.4e9 + 60e9 + 120e9),
  ("tp8_pp4_ep4_dp4", "parameter_bytes_total", "contradicts_model", 4430267392 * 4),
  ("tp8_pp4_ep4_dp4", "gradient_bytes_total", "contradicts_model", 4430267392 * 4),
  ("tp8_pp4_ep4_dp4", "optimizer_bytes_total", "contradicts_model", 4430267392 * 2 * 4),
  ("tp8_pp4_ep4_dp4", "throughput_sequences_per_s", "contradicts_document", 128 * 4 / 0.064),
  ("tp8_pp4_ep4_dp4", "gradient_accumulation_steps", "contradicts_document", 512 / (32 * 4)),
  ("tp8_pp4_ep4_dp4", "device_memory_efficiency", "contradicts_document", 257 / 512 / 64),
  ("tp8_pp4_ep4_dp4", "earlier_devices", "consistent", 8 * 4 * 4 * 16),
  # 003
  ("tp4_ep4_pp4", "devices", "contradicts_document", 4 * 4 * 4),
  ("tp4_ep4_pp4", "modules_per_device", "impossible", 2 * (1 + 1)),
  ("tp4_ep4_pp4", "sequential_layers", "impossible", 8),
  ("tp4_ep4_pp4", "modules", "consistent", 8 * (1 + 4)),
  ("tp4_ep4_pp4", "device_13_tensor_rank", "consistent", 13 % 4),
  ("tp4_ep4_pp4", "device_13_expert", "consistent", 13 % 4),
  ("tp4_ep4_pp4", "device_13_stage", "consistent", 13 // 4),
  ("tp4_ep4_pp4", "device_utilization_minimum", "contradicts_model", 4 / 7),
  # 004
  ("ep64_tp2", "expert_bytes_per_device", "contradicts_document", 16 * 2 * 1024 * 2048 / 2),
  ("ep64_tp2", "attention_bytes_per_device", "contradicts_model", 16 * 4 * 1024 * 1024 / 2),
  ("ep64_tp2", "devices_as_product", "consistent", 64 * 2),
]  # fmt: skip


def judged(key, **changes):
  """The finding of one claim after the document had said something else."""
  name, claim_name = key
  d = DOCUMENTS[name]
  claims = tuple(dataclasses.replace(c, **changes) if c.name == claim_name else c for c in d.claims)
  claim = next(c for c in claims if c.name == claim_name)
  return next(f for f in audit(dataclasses.replace(d, claims=claims)) if f.claim == claim.name)


def test_every_claim_has_a_verdict_from_a_rule():
  assert len(FINDINGS) == sum(len(d.claims) for d in DOCUMENTS.values()) > 200
  for (_, claim), finding in FINDINGS.items():
    assert not any(isinstance(part, Missing) and "a rule" in part.what for part in rule_of(claim)), claim
    assert (finding.verdict == Verdict.NOT_CHECKABLE) == (finding.missing is not None) == (finding.recomputed is None)
    assert finding.missing or finding.arithmetic


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_are_these(name):
  found = {(f.claim, f.verdict.value) for f in audit(DOCUMENTS[name]) if f.verdict != Verdict.CONSISTENT}
  assert found == {(claim, verdict) for verdict, names in VERDICTS[name].items() for claim in names.split()}


@pytest.mark.parametrize("name, claim, verdict, recomputed", BY_HAND, ids=[f"{row[0]}-{row[1]}" for row in BY_HAND])
def test_arithmetic_by_hand(name, claim, verdict, recomputed):
  finding = FINDINGS[name, claim]
  assert finding.verdict == verdict
  assert finding.recomputed == pytest.approx(recomputed, rel=1e-9)


@pytest.mark.parametrize("name, claim, words", [
  ("ep64_tp2_pp4", "latency_s", "57.26 TFLOP a batch / (128 devices x 400 TFLOP/s) = 1.118 ms"),
  ("ep256_pp16", "devices", "EP 256 x PP 16 x TP 1 x SP 1 x DP 1 = 4,096 devices"),
  ("ep256_pp16", "kv_cache_bytes_per_layer", "x 128 sequences = 2.684 GB"),
  ("tp8_pp4_ep4_dp4", "memory_bytes_total", "60 GB + 8.4 GB + 60 GB + 120 GB = 248.4 GB"),
  ("tp4_ep4_pp4", "modules_per_device", "2 layers x (1 part of attention + 1 expert) = 4 modules"),
  ("ep64_tp2", "expert_bytes_per_device", "/ TP 2 = 33.55 MB"),
])  # fmt: skip
def test_arithmetic_is_one_line_to_follow(name, claim, words):
  assert words in FINDINGS[name, claim].arithmetic


@pytest.mark.parametrize("name, claim, hint", [
  ("ep256_pp16", "kv_cache_bytes_per_layer", "leaves out 128 sequences"),
  ("ep256_pp16", "stage_message_bytes", "leaves out 2 B"),
  ("ep64_tp2", "expert_bytes_per_device", "leaves out TP 2"),
  ("tp8_pp4_ep4_dp4", "memory_bytes_total", "activation_bytes_total counted twice it is 256.8 GB"),
  ("tp8_pp4_ep4_dp4", "throughput_sequences_per_s", "leaves out DP 4"),
  ("tp4_ep4_pp4", "modules_per_device", "40 modules / 16 devices = 2.5 is an average"),
  ("ep64_tp2_pp4", "link_bytes_per_s", "1.8 TB/s x 80 % is the memory's"),
])  # fmt: skip
def test_where_a_wrong_number_comes_from(name, claim, hint):
  assert hint in FINDINGS[name, claim].hint


@pytest.mark.parametrize("key", CONSISTENT, ids=IDS)
def test_a_consistent_claim_perturbed_is_not(key):
  finding = FINDINGS[key]
  up, down = finding.recomputed * 1.5 + 1, finding.recomputed / 1.5 - 1e-6 * (finding.recomputed == 0)
  wrong = {"equal": (up, down), "at_least": (down,), "at_most": (up,), "whole": (up,)}[finding.relation]
  assert all(judged(key, value=value).verdict != Verdict.CONSISTENT for value in wrong)


@pytest.mark.parametrize("key", CONTRADICTED, ids=IDS)
def test_a_contradicted_claim_corrected_is_judged_anew(key):
  """The failed check holds then, whatever another one may still say."""
  before = FINDINGS[key]
  after = judged(key, value=before.recomputed)
  assert (after.verdict, after.recomputed, after.relation) != (before.verdict, before.recomputed, before.relation)


@pytest.mark.parametrize("key, value, verdict", [
  (("tp4_ep4_pp4", "modules_per_device"), 4, "consistent"),
  (("tp4_ep4_pp4", "modules_per_device"), 3, "contradicts_model"),
  (("tp4_ep4_pp4", "throughput_increase"), 17, "impossible"),
  (("ep64_tp2_pp4", "latency_s"), 0.0208, "contradicts_document"),  # the throughput still says otherwise
  (("ep64_tp2", "load_variance"), -0.1, "impossible"),
  (("ep64_tp2", "compute_utilization"), 1.2, "impossible"),
  (("ep64_tp2", "memory_bytes_per_device"), 65e9, "impossible"),
  (("tp8_pp4_ep4_dp4", "memory_bytes_total"), 248.4e9, "contradicts_model"),
  (("ep256_pp16", "throughput_tokens_per_s_per_device"), 150_000, "impossible"),
  (("ep256_pp16", "experts_numbered_per_layer"), 0, "contradicts_document"),
  (("ep64_tp2_pp4", "stage_1_first_layer"), 16, "impossible"),
  (("ep64_tp2_pp4", "expert_1_first_device"), 1, "contradicts_model"),
  (("tp4_ep4_pp4", "device_6_expert"), 3, "contradicts_model"),
  (("tp4_ep4_pp4", "devices_available"), 15, "contradicts_document"),
  (("tp4_ep4_pp4", "last_device"), 16, "contradicts_document"),
  (("tp8_pp4_ep4_dp4", "optimizer_copies"), 3, "contradicts_document"),
])  # fmt: skip
def test_the_value_decides(key, value, verdict):
  assert judged(key, value=value).verdict == verdict


def test_what_other_claims_say_decides_too():
  """Without the batch, 20 MB a layer is right; with a pipeline of 1, EP 256 are 256 devices."""
  d = DOCUMENTS["ep256_pp16"]
  changed = {"batch": 1, "pipeline_parallel_size": 1}
  claims = tuple(dataclasses.replace(c, value=changed.get(c.name, c.value)) for c in d.claims)
  found = {f.claim: f for f in audit(dataclasses.replace(d, claims=claims))}
  assert found["kv_cache_bytes_per_layer"].verdict == Verdict.CONSISTENT
  assert found["kv_cache_bytes_per_layer"].hint == "MB as 2^20 bytes"
  assert found["devices"].verdict == Verdict.CONSISTENT
  unsaid = dataclasses.replace(d, claims=tuple(c for c in d.claims if c.name == "kv_cache_bytes_per_layer"))
  assert "num_heads" in audit(unsaid)[0].missing


@pytest.mark.parametrize("quote, value, unit, half, prefix", [
  ("Memory per GPU: 0.637 GB", 0.637e9, "bytes", 0.5e6, "G"),
  ("30B parameter transformer", 30e9, "parameters", 0.5e9, ""),
  ("512,000 batches/second", 512000, "batches/s", 0.5, ""),
  ("Estimated Latency: 0.002ms", 2e-6, "s", 0.5e-6, "m"),
  ("0.197% of memory", 0.00197, "share", 0.5e-5, ""),
  ("10B x 2 bytes (FP16) = 20GB", 2, "bytes", 0, ""),  # counted
  ("ttft: < 10s", 10, "s", 0.5, ""),
  ("40 modules / 16 GPUs = 2.5", 2.5, "modules", 0, ""),
])  # fmt: skip
def test_precision_is_that_of_the_print(quote, value, unit, half, prefix):
  claim = dataclasses.replace(DOCUMENTS["ep64_tp2"].claims[0], quote=quote, value=value, unit=unit)
  assert printed(claim) == Printed(pytest.approx(half), prefix)


def test_a_limit_is_exact_as_printed():
  claim = dataclasses.replace(DOCUMENTS["ep64_tp2"].claims[0], quote="< 1GB", value=1e9, unit="bytes")
  assert printed(claim).half == 0.5e9
  assert printed(dataclasses.replace(claim, name="memory_bytes_per_device_maximum")).half == 0


def test_amounts_carry_precision_and_text():
  book = Book(DOCUMENTS["tp8_pp4_ep4_dp4"])
  total = book.said("parameter_bytes_total") + book.said("activation_bytes_total")
  each = total / exact(512, "512 devices")
  assert (total.low, total.high) == pytest.approx((67.85e9, 68.95e9))
  assert each.text == "(60 GB + 8.4 GB) / 512 devices" and each.high == pytest.approx(68.95e9 / 512)
  assert book.said("parameter_bytes_total").value == 60e9
  assert exact(67.9e9).agrees_with(total) and not exact(67.8e9).agrees_with(total)
  assert Book(book.d, binary=True).said("parameter_bytes_total").value == pytest.approx(60 * 2**30)


@pytest.mark.parametrize("value, unit, text", [
  (0, "share", "0 %"), (30.72e15, "FLOP/s", "30.72 PFLOP/s"), (4430267392, "parameters", "4.43B parameters"),
  (1, "experts a layer", "1 expert a layer"), (2.5, "modules", "2.5 modules"), (5.04096e-6, "s", "5.041 μs"),
  (1e300, "devices", "1e+300 devices"), (999_990_000, "bytes", "1 GB"), (0.104845, "tokens/ms", "0.1048 tokens/ms"),
])  # fmt: skip
def test_numbers_as_documents_write_them(value, unit, text):
  assert shown(value, unit) == text


def test_the_documents_own_requirements():
  """By estimate: 001 keeps its times and memory but not its 100 tokens/ms a device; 004 computes more than 1 %."""
  kept = {(r.deployment, r.claim): r for d in DOCUMENTS.values() for r in requirements(d)}
  broken = {key for key, requirement in kept.items() if not requirement.holds}
  assert broken == {
    ("ep256_pp16", "required_tokens_per_ms_per_device"), ("ep64_tp2", "compute_utilization_maximum"),
    ("ep64_tp2_pp4", "parallel_efficiency_minimum"), ("tp4_ep4_pp4", "device_utilization_minimum"),
  }  # fmt: skip
  assert kept["ep256_pp16", "required_time_to_first_token_s"].holds
  assert {name for name, _ in kept} == set(DOCUMENTS)


def test_json_has_every_finding_with_its_sources(capsys):
  assert main(["audit", "all", "--json"]) == 0
  document = json.loads(capsys.readouterr().out)
  assert document["schema_version"] == 1 and len(document["findings"]) == len(FINDINGS)
  assert sum(document["counts"].values()) == len(FINDINGS)
  for finding in document["findings"]:
    key = finding["deployment"], finding["claim"]
    assert (finding["document"], finding["quote"]) == (FINDINGS[key].document, FINDINGS[key].quote)
    assert finding["sources"]["document"] == "document"
    assert (finding["sources"]["recomputed"] is None) == (finding["recomputed"] is None)
    assert finding["recomputed"] is None or math.isfinite(finding["recomputed"])


def test_terminal_output_fits_100_columns(capsys):
  assert main(["audit", "all"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("Verdicts\n") and max(map(len, out.splitlines())) <= 100
  for d in DOCUMENTS.values():
    assert f"\n{d.name}: {d.document}\n" in out
  assert "EP 256 x PP 16" in out and "does not hold" in out


def test_the_summary_names_the_gravest(capsys):
  """What is impossible or at odds with its own document, with the arithmetic, and nothing milder."""
  assert main(["audit", "all", "--summary"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("Verdicts\n") and max(map(len, out.splitlines())) <= 100
  words = " ".join(out.split())
  for name, d in DOCUMENTS.items():
    grave = [f for f in audit(d) if f.verdict in (Verdict.IMPOSSIBLE, Verdict.CONTRADICTS_DOCUMENT)]
    assert grave and all(f"{f.claim} " in out and f.arithmetic in words for f in grave), name
  for named in (
    "512,000! at most 128 devices x 400 TFLOP/s / 57.26 TFLOP a batch = 894.2 batches/s", "2 μs! at least",
    "EP 256 x PP 16 x TP 1 x SP 1 x DP 1 = 4,096 devices", "the claim leaves out 128 sequences", "= 4.43B parameters",
    "= 248.4 GB", "EP 4 x PP 4 x TP 4 x DP 1 = 64 devices", "2.5 is an average", "pipelined or not", "leaves out TP 2",
  ):  # fmt: skip
    assert named in words, named
  assert "compute_utilization" not in out
  readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
  assert f"```\n{out.rstrip()}\n```\n" in readme, "run `make docs`"


def test_one_deployment_by_path_and_an_unknown_one(tmp_path, capsys):
  plan = tmp_path / "plan.yaml"
  plan.write_text(edited(("name: devices, value: 16", "name: a_claim_of_its_own, value: 16")))
  assert main(["audit", str(plan)]) == 0
  assert "missing: a rule for claims named" in capsys.readouterr().out
  plan.write_text(edited(("claims:\n  - {name: devices, value: 16, unit: devices, quote: on 16 devices}\n", "")))
  capsys.readouterr()
  assert main(["audit", str(plan)]) == 0
  out = capsys.readouterr().out
  assert out.startswith("tiny: no claims\n\n") and "\nVerdicts" not in out and "arithmetic" not in out
  assert main(["audit", "nonsense"]) == 2


def test_rules_name_no_claim_twice():
  numbered = {name.replace("#", "3") for name in NUMBERED_RULES}
  assert all(not isinstance(rule_of(name)[0], Missing) for name in numbered) and not numbered & set(RULES)


@pytest.mark.parametrize("prefix, bytes_", [("K", 2**10), ("T", 2**40), ("P", 2**50), ("m", 1e-3), ("", 1)])
def test_binary_bytes_of_any_prefix(prefix, bytes_):
  scale = {"K": 1e3, "T": 1e12, "P": 1e15, "m": 1e-3, "": 1}[prefix]
  claim = dataclasses.replace(DOCUMENTS["ep64_tp2"].claims[0], quote=f"3{prefix}B", value=3 * scale, unit="bytes")
  d = dataclasses.replace(DOCUMENTS["ep64_tp2"], claims=(claim,))
  assert Book(d, binary=True).said("devices").value == pytest.approx(3 * bytes_)


@pytest.mark.parametrize("value", [0, -1, 1e-300, 1e308])
def test_no_claim_breaks_the_audit(value):
  for name, d in DOCUMENTS.items():
    claims = tuple(dataclasses.replace(claim, value=float(value)) for claim in d.claims)
    changed = dataclasses.replace(d, claims=claims)
    assert len(audit(changed)) == len(claims) and requirements(changed) is not None, name
    assert json.dumps(report.document([changed], [OWN[name]]), allow_nan=False)
