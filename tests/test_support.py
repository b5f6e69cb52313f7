"""What can be planned but not run says so and names why; what it costs is known all the same."""

import dataclasses

import pytest
import tiny
from flax import nnx
from plans import PLAN, edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import model_names
from jaxmoe.config.job import Job, Precision
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
from jaxmoe.cost.estimate import estimate
from jaxmoe.cost.flops import executed_flops, useful_flops
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.model.support import check_runnable, check_supported
from jaxmoe.model.transformer import Transformer

LATENT = LatentAttention(query_rank=None, rank=8, plain_dim=4, rotary_dim=4, value_dim=8)
UNUSUAL_LAYERS = {
  "latent attention": {"latent": LATENT},
  "near keys": {"local": LocalAttention(kind="sliding", size=4, layers=(0,))},
  "dense layers": {"dense": DenseLayers(layers=(0,), d_hidden=8)},
  "shared expert": {"shared": SharedExpert(d_hidden=8)},
  "prediction layers": {"mtp_layers": 1},
}
NOT_RUN = {
  **UNUSUAL_LAYERS,
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
def test_what_does_not_run_has_a_price(words):
  """On one device, with room for every row and no more, the program computes what the model needs.

  The useful FLOPs are summed over parameters, the executed ones over operations; attention differs by the mask.
  """
  d = tiny.deployment(sizes=NOT_RUN[words], capacity_factor=1.0, microbatches=1)
  executed, useful = executed_flops(d), useful_flops(d)
  assert executed.router == pytest.approx(useful.router, rel=1e-12 if "shared" not in words else 1)
  assert executed.experts == pytest.approx(useful.experts, rel=1e-12)
  assert executed.attention >= useful.attention
  assert estimate(d).time.total_s > 0


STRATEGIES = {
  "context parallelism": Strategy(data=2, context=2),
  "sequence parallelism": Strategy(tensor=2, sequence_parallel=True),
}
JOBS = {
  "zero 1": {"zero": 1},
  "schedule 1f1b": {"schedule": "1f1b"},
  "schedule interleaved": {"schedule": "interleaved", "chunks": 2},
  "selective rematerialisation": {"remat": "selective"},
  "transport ragged": {"transport": "ragged"},
}


@pytest.mark.parametrize("words", [*STRATEGIES, *JOBS])
def test_plans_beyond_the_program_say_so(words):
  d = tiny.deployment(STRATEGIES.get(words, Strategy(stage=2)), **JOBS.get(words, {}))
  assert estimate(d).time.total_s > 0
  with pytest.raises(NotImplementedError, match=f"can be planned but not run: it has .*{words}"):
    Transformer(d, rngs=nnx.Rngs(0))


PRECISIONS = {
  "a master copy of the weights": {"master": "float32"},
  "gradients in a dtype of their own": {"gradients": "bfloat16"},
  "matmuls in a dtype of their own": {"matmuls": "float8_e4m3fn"},
}


@pytest.mark.parametrize("words", PRECISIONS)
def test_precisions_beyond_the_program_say_so(words):
  with pytest.raises(NotImplementedError, match=words):
    Transformer(tiny.deployment(precision=Precision(**PRECISIONS[words])), rngs=nnx.Rngs(0))


def test_naming_the_dtype_that_is_used_anyway_changes_nothing():
  plain, named = (
    tiny.deployment(precision=Precision(compute="bfloat16", **dtypes))
    for dtypes in ({}, {"gradients": "float32", "matmuls": "bfloat16"})
  )
  check_runnable(named)
  assert (estimate(named).time, estimate(named).memory) == (estimate(plain).time, estimate(plain).memory)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Precision)])
def test_a_dtype_that_is_none_is_refused(field):
  with pytest.raises(UsageError, match=rf"job\.precision\.{field} must be one of float64, .*got 'fp8'"):
    Precision(**{field: "fp8"})


def test_every_dtype_is_run_or_refused():
  """A dtype added to a job's must be run, or be refused above."""
  refused = {key for dtypes in PRECISIONS.values() for key in dtypes}
  assert {field.name for field in dataclasses.fields(Precision)} == {"weights", "compute", "optimizer"} | refused


def test_every_choice_of_a_plan_is_run_or_refused():
  """A field added to these must be run, or be refused above."""
  run = {"kind", "batch", "sequence_length", "microbatches", "capacity_factor", "expert_kernel", "precision"}
  refused = {key for job in JOBS.values() for key in job} | {"remat", "transport", "chunks"}
  assert {field.name for field in dataclasses.fields(Job)} == run | refused
  run = {"data", "stage", "expert", "tensor", "heads_over", "experts_over", "order"}
  assert {field.name for field in dataclasses.fields(Strategy)} == run | {"context", "sequence_parallel"}


MODEL = PLAN[PLAN.index("model:\n") : PLAN.index("cluster:\n")]


def test_verify_refuses_in_one_line(tmp_path, capsys):
  (tmp_path / "p.yaml").write_text(edited((MODEL, "model: gpt-oss-120b\n")))
  assert main(["verify", str(tmp_path / "p.yaml")]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and "planned but not run" in err and "gpt-oss-120b" in err


@pytest.mark.parametrize("name", model_names())
def test_every_model_is_shown(name, capsys):
  assert main(["model", "show", name]) == 0
  assert f"{name}\n" in capsys.readouterr().out
  assert main(["model", "show", name, "--mtp", "--json"]) == 0


def test_model_show_counts_prediction_layers_on_request(capsys):
  assert main(["model", "show", "deepseek-v3", "--mtp"]) == 0
  out = capsys.readouterr().out
  assert "682,636,487,424" in out and "dense.layers              0, 1, 2\n" in out and "multipliers" not in out
