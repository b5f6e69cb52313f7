"""What can be planned but not run, or not priced, says so and names why."""

import dataclasses

import pytest
import tiny
from flax import nnx
from plans import PLAN, edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import model_names
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.parts import (
  Biases,
  DenseLayers,
  LatentAttention,
  LocalAttention,
  Multipliers,
  Rotary,
  Routing,
  SharedExpert,
)
from jaxmoe.cost.collectives import collectives
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.flops import executed_flops
from jaxmoe.cost.memory import activation_bytes
from jaxmoe.model.support import check_supported
from jaxmoe.model.transformer import Transformer

LATENT = LatentAttention(query_rank=None, rank=8, plain_dim=4, rotary_dim=4, value_dim=8)
NOT_PRICED = {
  "latent attention": {"latent": LATENT},
  "near keys": {"local": LocalAttention(kind="sliding", size=4, layers=(0,))},
  "dense layers": {"dense": DenseLayers(layers=(0,), d_hidden=8)},
  "shared expert": {"shared": SharedExpert(d_hidden=8)},
  "prediction layers": {"mtp_layers": 1},
}
NOT_RUN = {
  **NOT_PRICED,
  "biases": {"biases": Biases(router=True)},
  "attention sinks": {"sinks": True},
  "layer norm": {"norm": "layer"},
  "projection norm": {"query_key_norm": "projection"},
  "unit norm": {"query_key_norm": "unit"},
  "clipped": {"clip_qkv": 8.0},
  "rotary": {"rotary": Rotary(share=0.5)},
  "softmax routing": {"routing": Routing(scale=2.0)},
  "multipliers": {"multipliers": Multipliers(residual=0.5)},
  "activation clamped": {"activation": "clamped"},
}


def test_every_part_is_listed():
  """A part added to `ModelConfig` must be run, or be refused here."""
  first = next(i for i, field in enumerate(dataclasses.fields(ModelConfig)) if field.name == "norm")
  added = {field.name for field in dataclasses.fields(ModelConfig)[first:]} - {"quantization"}
  assert added == {key for changes in NOT_RUN.values() for key in changes} - {"query_key_norm", "activation"}


@pytest.mark.parametrize("words", NOT_RUN)
def test_the_runnable_model_refuses_what_it_lacks(words):
  with pytest.raises(NotImplementedError, match=f"can be planned but not run: it has .*{words}"):
    Transformer(tiny.deployment(sizes=NOT_RUN[words]), rngs=nnx.Rngs(0))


def test_all_reasons_are_named():
  model = tiny.model(sinks=True, latent=LATENT, norm="layer")
  with pytest.raises(NotImplementedError, match=r"it has latent attention, attention sinks and layer norm$"):
    check_supported(model)


def test_plain_models_are_supported():
  for changes in ({}, {"query_key_norm": "head"}, {"gated": False, "activation": "gelu"}, {"quantization": "fp8"}):
    check_supported(tiny.model(**changes))


@pytest.mark.parametrize("words", NOT_RUN)
def test_what_has_no_price_says_so(words):
  d = tiny.deployment(sizes=NOT_RUN[words])
  if words not in NOT_PRICED:
    assert estimate(d).time.total_s > 0
    return
  for price in (executed_flops, collectives, lambda d: activation_bytes(d, "none")):
    with pytest.raises(NotImplementedError, match=f"not priced: it has .*{words}"):
      price(d)


MODEL = PLAN[PLAN.index("model:\n") : PLAN.index("cluster:\n")]


@pytest.mark.parametrize("verb, words", [("estimate", "not priced"), ("verify", "planned but not run")])
def test_verbs_refuse_in_one_line(verb, words, tmp_path, capsys):
  (tmp_path / "p.yaml").write_text(edited((MODEL, "model: gpt-oss-120b\n")))
  assert main([verb, str(tmp_path / "p.yaml")]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and words in err and "gpt-oss-120b" in err


@pytest.mark.parametrize("name", model_names())
def test_every_model_is_shown(name, capsys):
  assert main(["model", "show", name]) == 0
  assert f"{name}\n" in capsys.readouterr().out
  assert main(["model", "show", name, "--mtp", "--json"]) == 0


def test_model_show_counts_prediction_layers_on_request(capsys):
  assert main(["model", "show", "deepseek-v3", "--mtp"]) == 0
  out = capsys.readouterr().out
  assert "682,636,487,424" in out and "dense.layers              0, 1, 2\n" in out and "multipliers" not in out
