"""The YAML forms give exactly the dataclasses that they spell, and refuse the rest by name."""

import pytest
import yaml
from plans import PLAN, edited

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.config.deployment import Claim
from jaxmoe.config.job import Job, Precision
from jaxmoe.config.messages import field_path
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.schema import ClusterForm, DeploymentForm, checked, cluster_from, model_from
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
