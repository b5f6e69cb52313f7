"""Strategies, partition rules and meshes."""

import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxmoe.cost.parameters import parameter_tensors
from jaxmoe.meshes.axes import AXES, label
from jaxmoe.meshes.build import build_mesh, spec, topology_devices
from jaxmoe.meshes.errors import MissingError, UsageError
from jaxmoe.meshes.rules import PartitionRules
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.model.sharded import shard_model
from jaxmoe.train.step import abstract_optimizer, init_optimizer, make_optimizer

STRATEGIES = [
  Strategy(),
  Strategy(stage=2, expert=2, tensor=2),
  Strategy(data=2, expert=4, heads_over=("expert",)),
  Strategy(data=2, expert=2, tensor=2, heads_over=("expert", "tensor"), experts_over=("expert", "tensor")),
]


def test_product_is_written_out():
  assert Strategy(data=4, stage=4, expert=4, tensor=8).product == "4 data x 4 stage x 4 expert x 8 tensor = 512 devices"


def test_ranks_are_row_major_with_tensor_innermost():
  mesh = build_mesh(Strategy(stage=2, expert=2, tensor=2))
  assert mesh.axis_names == AXES
  assert mesh.devices[0, 1, 0, 1] == jax.devices()[5]


def test_mesh_axes_are_auto():
  assert set(build_mesh(Strategy()).axis_types) == {AxisType.Auto}


def test_too_few_devices_are_refused():
  with pytest.raises(MissingError, match="512 devices, but 8 cpu"):
    build_mesh(Strategy(data=64, expert=8))


def test_a_missing_extra_names_its_install_line(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
  with pytest.raises(MissingError, match=r"pip install 'jaxmoe\[tpu\]'"):
    topology_devices("v5e:2x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed")
def test_a_mesh_over_a_compile_only_topology():
  """In a process of its own: libtpu may be loaded once, and other tests need their backend."""
  code = """
from jaxmoe.meshes.build import build_mesh, topology_devices
from jaxmoe.meshes.strategy import Strategy
mesh = build_mesh(Strategy(expert=4, tensor=2), topology_devices("v5e:2x4"))
print(mesh.devices.shape, mesh.devices[0, 0, 0, 0].platform)
"""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
  assert done.stdout.split("\n")[0] == "(1, 1, 4, 2) tpu", done.stderr


def test_rules_by_hand():
  rules = PartitionRules(Strategy(stage=2, expert=2, tensor=2))
  assert spec(rules, "expert", "LEDF") == PartitionSpec("stage", "expert", None, "tensor")
  assert spec(rules, "attention", "LDHK") == PartitionSpec("stage", None, "tensor", None)
  assert spec(rules, "router", "LDE") == PartitionSpec("stage", None, None)
  assert spec(rules, "vocabulary", "VD") == PartitionSpec(("stage", "tensor"), None)
  assert spec(rules, "activation", "BS") == PartitionSpec(("data", "expert"), None)


def test_folded_rules_by_hand():
  rules = PartitionRules(Strategy(stage=4, expert=4, heads_over=("expert",)))
  assert spec(rules, "attention", "LDHK") == PartitionSpec("stage", None, "expert", None)
  assert spec(rules, "activation", "BS") == PartitionSpec("data", None)
  assert rules.strategy.slice_axes == ("expert",)


def test_an_axis_used_twice_is_a_conflict():
  with pytest.raises(UsageError, match="tensor twice"):
    PartitionRules(Strategy(tensor=2)).partition("attention", "HG")


def test_unknown_role_is_refused():
  with pytest.raises(UsageError, match="role must be one of"):
    PartitionRules(Strategy()).axes("heads", "H")


def test_a_size_that_does_not_divide_is_refused():
  with pytest.raises(UsageError, match="H=3 of role attention does not divide over tensor = 2"):
    PartitionRules(Strategy(tensor=2)).local_shape("attention", "LHK", (2, 3, 4))


def test_axis_labels_are_in_mesh_order():
  assert label(("tensor", "stage")) == "stage+tensor"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.product)
def test_model_holds_the_tensors_that_the_cost_model_counts(strategy):
  """Name by name: shape, dtype and one device's share; and arrays lie where their PartitionSpec says."""
  d = tiny.deployment(strategy)
  model = shard_model(d, build_mesh(strategy))
  parameters = model.init()
  arrays = {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(parameters))}
  counted = {tensor.name: tensor for tensor in parameter_tensors(d.model)}
  assert arrays.keys() == counted.keys()
  for name, array in arrays.items():
    tensor = counted[name]
    assert array.shape == tensor.shape
    assert array.dtype == tensor.dtype(d.job.precision)
    assert array.sharding.spec == spec(d.rules, tensor.role, tensor.letters)
    assert array.sharding.shard_shape(array.shape) == d.rules.local_shape(tensor.role, tensor.letters, tensor.shape)


def test_moments_lie_where_their_parameters_lie():
  d = tiny.deployment(Strategy(stage=2, expert=2, tensor=2))
  model, optimizer = shard_model(d, build_mesh(d.strategy)), make_optimizer()
  abstract = abstract_optimizer(model, optimizer)
  state = init_optimizer(optimizer, d, model.init())
  assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
  specs = [x.sharding.spec for x in jax.tree.leaves(abstract) if x.ndim]
  assert specs == 2 * [x.sharding.spec for x in jax.tree.leaves(model.abstract)]
  assert np.asarray(state[0].count) == 0


def _name(path) -> str:
  """The cost model's spelling: `layers/experts/up`; a norm or router is named without its only weight."""
  return "/".join(entry.key for entry in path).removesuffix("/scale").removesuffix("/weight")
