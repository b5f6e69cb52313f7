"""The main job, from the document to a compiled, compared and running model."""

import json

import pytest

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import deployment_names, load_deployment
from jaxmoe.config.reduced import reduced
from jaxmoe.meshes.axes import AXES
from jaxmoe.meshes.errors import UsageError


def test_demo(capsys):
  assert main(["demo", "--json"]) == ExitCode.DONE
  captured = capsys.readouterr()
  document = json.loads(captured.out)
  assert document["ok"]
  assert document["verification"]["devices"] == 128
  assert document["reduced"]["devices"] == 8
  losses = [step["loss"] for step in document["training"]]
  assert len(losses) == 20
  assert losses[-1] < losses[0] - 1
  for dtype, limit in {"float32": 1e-5, "float64": 1e-10}.items():
    assert 0 <= document["agreement"][dtype]["gradient"] <= limit
    assert 0 <= document["agreement"][dtype]["loss"] <= limit
  assert "compiling for 128 devices" in captured.err
  assert "step 20 of 20" in captured.err


@pytest.mark.parametrize("name", deployment_names())
def test_a_reduced_copy_keeps_every_axis_and_folding(name):
  whole = load_deployment(name)
  small = reduced(whole, 16)
  assert small.strategy.devices <= 16
  for axis in AXES:
    assert (small.strategy.size(axis) > 1) == (whole.strategy.size(axis) > 1)
  assert small.strategy.heads_over == whole.strategy.heads_over
  assert (small.job.remat, small.job.transport) == (whole.job.remat, whole.job.transport)
  assert small.model.gated == whole.model.gated


def test_too_few_devices_for_the_axes_are_refused():
  with pytest.raises(UsageError, match="at least 16 devices, got 8"):
    reduced(load_deployment("tp8_pp4_ep4_dp4"), 8)
