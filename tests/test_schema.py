"""The YAML forms give exactly the dataclasses that they spell, and refuse the rest by name."""

import dataclasses
import json

import pytest
import yaml
from plans import PLAN, edited

from jaxmoe.config.assumptions import Assumptions
from jaxmoe.config.catalogue import load_deployment, load_model, model_names
from jaxmoe.config.deployment import Claim
from jaxmoe.config.from_forms import cluster_from
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.messages import field_path
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.model_form import model_from
from jaxmoe.config.parts import DenseLayers, LatentAttention
from jaxmoe.config.schema import ClusterForm, DeploymentForm, checked
from jaxmoe.meshes.cluster import NetworkTier
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy


@pytest.fixture
def plan(tmp_path):
  """Loads a plan's text."""

  def load(text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_deployment(str(path))

  return load


def test_every_field_arrives(plan):
  d = plan(PLAN)
  assert (d.name, d.title, d.document, d.expert_numbering) == ("tiny", "A tiny plan", None, "per_layer")
  assert d.model == ModelConfig(
    name="tiny", num_layers=4, d_model=64, num_heads=4, num_kv_heads=4, head_dim=16, num_experts=8,
    experts_per_token=2, d_expert=128, vocab_size=256,
  )  # fmt: skip
  assert d.strategy == Strategy(data=1, stage=2, expert=4, tensor=2)
  assert d.job == Job(kind="train", batch=16, sequence_length=32, microbatches=2, precision=Precision())
  assert d.claims == (Claim(name="devices", value=16, unit="devices", quote="on 16 devices"),)
  assert d.cluster.peak_flops_per_s == {"bfloat16": 1e14}
  assert d.cluster.tiers == (NetworkTier(name="link", devices=16, bandwidth_bytes_per_s=1e11, latency_s=1e-6),)


def test_8_bit_weights_are_for_serving(plan):
  for kind in ("prefill", "decode"):
    served = edited(("kind: train", f"kind: {kind}"), ("microbatches: 2", "precision: {weights: float8_e4m3fn}"))
    assert plan(served).job.precision.weights == "float8_e4m3fn"
  for field in ("compute", "optimizer"):
    with pytest.raises(UsageError, match=rf"job\.precision\.{field} must be one of .*'float8_e4m3fn'"):
      Precision(**{field: "float8_e4m3fn"})


def test_optional_fields_arrive(plan):
  d = plan(
    edited(
      (
        "expert: 4, tensor: 2}",
        "expert: 4, tensor: 2, heads_over: [expert, tensor], experts_over: [expert, tensor]}",
      ),
      ("num_heads: 4", "num_heads: 8"),
      ("microbatches: 2}", "microbatches: 2, remat: full, precision: {weights: bfloat16}}"),
      ("title: A tiny plan", "title: A tiny plan\nexpert_numbering: across_stages\ndocument: a.txt"),
    )
    + "reading:\n  - {statement: s, reading: r}\n  - {statement: t, reading: u, assumption: true}\n"
  )
  assert d.strategy.heads_over == d.strategy.experts_over == ("expert", "tensor")
  assert (d.job.remat, d.job.precision.weights) == ("full", "bfloat16")
  assert (d.expert_numbering, d.document) == ("across_stages", "a.txt")
  assert [(r.statement, r.reading, r.assumption) for r in d.readings] == [("s", "r", False), ("t", "u", True)]


@pytest.mark.parametrize(
  "text, assumed",
  [
    ("{dispatch_overlap: 0.5, gradient_overlap: 1, load: 2}",
     Assumptions(dispatch_overlap=0.5, gradient_overlap=1.0, load=2.0)),
    ("{popularity: 2}", Assumptions(popularity=2.0)),
    ("{popularity: [1, 2, 3, 4, 5, 6, 7, 8.5]}", Assumptions(popularity=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5))),
    ("{}", Assumptions()),
  ],
)  # fmt: skip
def test_assumptions_arrive(text, assumed, plan):
  d = plan(f"{PLAN}assumptions: {text}\n")
  assert d.assumptions == assumed and type(d.assumptions.load) is float


@pytest.mark.parametrize(
  "text, words",
  [
    ("{overlap: 0.5}", "assumptions.overlap: unknown key"),
    ("{dispatch_overlap: 1.5}", r"assumptions\.dispatch_overlap: expected a number of at most 1"),
    ("{load: 0.5}", r"assumptions\.load: expected a number of at least 1"),
    ("{load: 9}", r"assumptions\.load must be at most 8"),
    ("{load: .inf}", r"assumptions\.load: expected a number"),
    ("{popularity: 0.5}", r"assumptions\.popularity, a power law's exponent, must be above 1"),
    ("{popularity: 1" + "0" * 390 + "}", r"assumptions\.popularity: expected a power law's exponent"),
    ("{popularity: '2'}", r"assumptions\.popularity: expected a power law's exponent"),
    ("{popularity: true}", r"assumptions\.popularity: expected a power law's exponent"),
    ("{popularity: [1, a]}", r"assumptions\.popularity: expected a power law's exponent"),
    ("{popularity: [1, 2]}", "rows of each of the model's 8 experts, got 2"),
    ("{popularity: []}", "not all 0"),
    ("5", "assumptions: expected a mapping"),
  ],
)
def test_assumptions_that_cannot_be_are_named(text, words, plan):
  with pytest.raises(UsageError, match=words):
    plan(f"{PLAN}assumptions: {text}\n")


@pytest.mark.parametrize("name", model_names())
def test_a_model_that_is_shown_is_read_back(name):
  """Every field of `ModelConfig` has its key, parts included."""
  model = load_model(name, mtp=True)
  assert model_from(json.loads(json.dumps(dataclasses.asdict(model))), name="other") == model


def test_parts_are_left_out_or_spelled():
  data = {key: value for key, value in yaml.safe_load(PLAN)["model"].items() if key != "head_dim"}
  latent = {"rank": 8, "plain_dim": 4, "rotary_dim": 2, "value_dim": 4}
  model = model_from({**data, "latent": latent, "dense": {"layers": [0, 2], "d_hidden": 9}}, name="m")
  assert model.latent == LatentAttention(query_rank=None, **latent) and model.head_dim == 6
  assert model.dense == DenseLayers(layers=(0, 2), d_hidden=9) and model.shared is None


@pytest.mark.parametrize(
  "part, words",
  [
    ({"dense": {"layers": [0], "hidden": 9}}, "model.dense.hidden: unknown key .*'d_hidden'"),
    ({"dense": {"layers": [0, 0], "d_hidden": 9}}, "model.dense.layers must be layer numbers in rising order"),
    ({"dense": {"layers": [4], "d_hidden": 9}}, "model.dense.layers must lie below num_layers=4, got 4"),
    ({"dense": {"layers": [0, 1, 2, 3], "d_hidden": 9}}, "leave at least one to experts"),
    ({"local": {"kind": "near", "size": 2, "layers": [0]}}, r"model\.local\.kind: expected .*'sliding'.*'near'"),
    ({"local": {"kind": "sliding", "size": 0, "layers": [0]}}, r"model\.local\.size: expected a number of at least 1"),
    ({"routing": {"groups": 3}}, "num_experts=8 must divide into routing.groups=3"),
    ({"mtp_layers": -1}, r"model\.mtp_layers: expected a number of at least 0"),
    ({"latent": {"rank": 8, "plain_dim": 4, "rotary_dim": 2, "value_dim": 4}}, "head_dim = .* = 6 .* got head_dim 16"),
    ({"latent": {"rank": 8, "plain_dim": 14, "rotary_dim": 2, "value_dim": 4}, "num_kv_heads": 2}, "num_kv_heads 2"),
  ],
)  # fmt: skip
def test_faults_of_parts_are_named(part, words):
  with pytest.raises(UsageError, match=words):
    model_from({**yaml.safe_load(PLAN)["model"], **part}, name="m", prefix="model")


def test_head_dim_and_kv_heads_have_defaults():
  data = {key: value for key, value in yaml.safe_load(PLAN)["model"].items() if key != "head_dim"}
  model = model_from(data, name="m")
  assert (model.head_dim, model.num_kv_heads, model.name) == (64 // 4, 4, "m")
  with pytest.raises(UsageError, match="head_dim is missing"):
    model_from({**data, "d_model": 66}, name="m")


@pytest.mark.parametrize("value", [True, "4", 4.0, None, [4], {}])
def test_a_whole_number_is_nothing_else(value):
  with pytest.raises(UsageError, match=r"model\.num_layers: expected a whole number"):
    model_from({**yaml.safe_load(PLAN)["model"], "num_layers": value}, name="m", prefix="model")


@pytest.mark.parametrize("value", [True, "0.5", None, float("nan"), float("inf"), 0, -0.1, 1.01])
def test_a_share_lies_above_0_and_up_to_1(value):
  data = parsed_cluster()
  assert cluster_from({**data, "matmul_efficiency": 1}).matmul_efficiency == 1.0
  with pytest.raises(UsageError, match="matmul_efficiency: expected"):
    cluster_from({**data, "matmul_efficiency": value})


def test_assumptions_must_name_fields():
  data = parsed_cluster()
  assert cluster_from({**data, "assumptions": {"tiers.link.latency_s": "why"}}).assumptions
  with pytest.raises(UsageError, match=r"assumptions\.matmul_eficiency.*'matmul_efficiency'"):
    cluster_from({**data, "assumptions": {"matmul_eficiency": "why"}})


def test_a_nested_unknown_key_names_its_form():
  data = parsed_cluster()
  data["tiers"][0]["latency"] = 1
  with pytest.raises(UsageError) as caught:
    checked(ClusterForm, data, prefix="cluster")
  assert "cluster.tiers[0].latency: unknown key (did you mean 'latency_s'?)" in str(caught.value)
  assert "name, devices, bandwidth_bytes_per_s, latency_s" in str(caught.value)


def test_an_unknown_key_is_told_before_what_it_leaves_missing():
  with pytest.raises(UsageError) as caught:
    model_from({**yaml.safe_load(PLAN)["model"], "layers": 4, "num_layers": "4"}, name="m")
  assert "layers: unknown key (did you mean 'num_layers'?)" in str(caught.value)
  assert "1 more after this" in str(caught.value)


def test_claims_have_names_of_their_own():
  data = yaml.safe_load(PLAN)
  data["claims"] *= 2
  with pytest.raises(UsageError, match=r"claims\[1\]\.name: devices names another claim"):
    checked(DeploymentForm, data)


def test_field_path():
  assert field_path(("claims", 3, "value")) == "claims[3].value"
  assert field_path(("num_layers",), "model") == "model.num_layers"


def parsed_cluster():
  data = yaml.safe_load(PLAN)["cluster"]  # YAML 1.1 takes 1e12 for text
  data["peak_flops_per_s"] = {"bfloat16": 1e14}
  data["memory_bandwidth_bytes_per_s"] = 1e12
  data["tiers"] = [{"name": "link", "devices": 16, "bandwidth_bytes_per_s": 1e11, "latency_s": 1e-6}]
  return data
