"""What a message suggests is legal: the deployment builds with it, whatever was wrong with it before."""

import dataclasses
import pickle
import random
import re

import pytest
import tiny

from jaxmoe.config.catalogue import deployment_names, load_deployment, load_model
from jaxmoe.config.legal import IllegalError, changed, divisors, multiples, nearest
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.parts import LatentAttention, Routing
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

FIELDS = (
  "strategy.data", "strategy.stage", "strategy.expert", "strategy.tensor", "job.batch", "job.microbatches",
  "job.sequence_length", "model.num_layers", "model.num_heads", "model.num_experts", "model.experts_per_token",
  "model.d_expert", "model.vocab_size",
)  # fmt: skip
FOLDINGS = (
  {}, {}, {}, {"strategy.heads_over": ("expert", "tensor")}, {"strategy.experts_over": ("expert", "tensor")},
  {"strategy.heads_over": ("expert", "tensor"), "strategy.experts_over": ("expert", "tensor")},
)  # fmt: skip
SUGGESTION = re.compile(r"nearest legal (\S+) is (-?\d+)((?: (?:with|and) \S+ \d+)*)")


def suggestions(error):
  """The changes that a message offers, each by itself: [{"strategy.tensor": 4}, ...]."""
  found = []
  for field, value, others in SUGGESTION.findall(str(error)):
    rest = re.findall(r"(?:with|and) (\S+) (\d+)", others)
    found.append({path: int(number) for path, number in [(field, value), *rest]})
  return found


def refused(build):
  """The error of building, `None` if it builds."""
  try:
    build()
  except UsageError as error:
    return error
  return None


def mutations(rng, deployment):
  """One to three fields at sizes near or far from what they were."""
  for field in rng.sample(FIELDS, rng.choice([1, 1, 2, 3])):
    now = getattr(getattr(deployment, field.split(".")[0]), field.split(".")[1])
    yield field, rng.choice([now + 1, max(1, now - 1), 3 * now, max(1, now // 2), 2 * now, rng.randint(1, 4 * now)])


@pytest.mark.parametrize("name", deployment_names())
def test_whatever_is_suggested_builds(name):
  """Of one changed field there always is a suggestion: what it was before, or something nearer."""
  rng, plan, illegal, offered = random.Random(name), load_deployment(name), 0, 0
  for _ in range(150):
    mutation = {**dict(mutations(rng, plan)), **rng.choice(FOLDINGS)}
    error = refused(lambda mutation=mutation: changed(plan, mutation))
    if error is not None:
      found = suggestions(error)
      assert found or len(mutation) > 1 or "or tensor: 1" in str(error), (mutation, str(error))
      assert found or "nearest legal" not in str(error)
      for suggestion in found:
        assert_mends(plan, mutation, suggestion, error)
      illegal, offered = illegal + 1, offered + len(found)
  assert illegal > 50 and offered > 80


def assert_mends(plan, mutation, suggestion, error):
  """The whole deployment builds; a model that was at fault by itself builds by itself."""
  both = {**mutation, **suggestion}
  model = {path.removeprefix("model."): new for path, new in both.items() if path.startswith("model.")}
  at_fault = {path.removeprefix("model."): new for path, new in mutation.items() if path.startswith("model.")}
  if refused(lambda: changed(plan.model, at_fault)) is not None:
    changed(plan.model, model)
  else:
    assert refused(lambda: changed(plan, both)) is None, (mutation, suggestion, str(error))


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "ep64_tp2"])
def test_whatever_is_suggested_for_a_model_builds(name):
  rng, model, offered = random.Random(name), load_model(name), 0
  fields = ["num_heads", "num_kv_heads", "head_dim", "num_experts", "experts_per_token", "routing.groups"]
  for _ in range(200):
    mutation = {field: rng.randint(0, 600) for field in rng.sample(fields, rng.choice([1, 1, 2]))}
    error = refused(lambda mutation=mutation: changed(model, mutation))
    for suggestion in suggestions(error) if error else ():
      both, offered = {**mutation, **unprefixed(suggestion, "model.")}, offered + 1
      if str(error).startswith("model.routing."):  # it is built first, and by itself
        changed(model.routing, unprefixed({k: v for k, v in both.items() if k.startswith("routing.")}, "routing."))
      else:
        assert refused(lambda both=both: changed(model, both)) is None, (mutation, suggestion, str(error))
  assert offered > 100


def unprefixed(suggestion, prefix):
  return {path.removeprefix(prefix): value for path, value in suggestion.items()}


def message(build):
  error = refused(build)
  assert error is not None
  return str(error)


def test_an_axis_is_offered_where_heads_cannot_change():
  """16 and 16 heads over 3: the axis that the user changed comes first, and 15 heads, which 16 others refuse, not."""
  plan = load_deployment("ep64_tp2_pp4")
  said = message(lambda: changed(plan, {"strategy.tensor": 3, "strategy.expert": 8}))
  assert said.startswith("model.num_heads=16 must be a multiple of tensor = 3; the nearest legal strategy.tensor is 4")
  assert "15" not in said


def test_heads_change_together_where_one_kind_cannot_alone():
  plan = tiny.deployment(Strategy(tensor=2), sizes={"num_heads": 8, "num_kv_heads": 8, "d_expert": 96})
  said = message(lambda: changed(plan, {"model.num_heads": 7, "model.num_kv_heads": 7}))
  assert "the nearest legal model.num_heads is 8 with model.num_kv_heads 8" in said


def test_too_many_devices_name_what_fits_and_divides():
  said = message(lambda: changed(tiny.deployment(Strategy(expert=8, tensor=4)), {"strategy.tensor": 6}))
  assert "model.num_heads=4 must be a multiple of tensor = 6" in said  # 48 devices do fit
  said = message(lambda: changed(tiny.deployment(Strategy(expert=8, tensor=4)), {"strategy.tensor": 9}))
  assert "= 72 devices, but cluster lab has 64" in said and "the nearest legal strategy.tensor is 4" in said
  said = message(lambda: tiny.deployment(Strategy(data=16, stage=4, expert=16, tensor=4)))
  assert suggestions(said) and "legal strategy.data is" in said and " with strategy." in said


def test_slices_offer_length_batch_and_axis():
  folded = Strategy(expert=4, heads_over=("expert",))
  said = message(lambda: tiny.deployment(folded, batch=1, microbatches=1, sequence_length=63))
  assert said.startswith("a microbatch of 63 tokens (1 x 63) must divide over expert = 4; ")
  assert suggestions(said) == [{"job.sequence_length": 64}, {"job.batch": 4}, {"strategy.expert": 1}]
  assert "sequence_length" not in message(lambda: tiny.deployment(folded, kind="decode", batch=1, microbatches=1))


def test_where_nothing_is_legal_nothing_is_suggested():
  """No head width mends a model of which the latent part is at odds with itself."""
  latent = LatentAttention(query_rank=None, rank=8, plain_dim=6, rotary_dim=3, value_dim=4)
  said = message(lambda: tiny.model(latent=latent, num_kv_heads=2, head_dim=8))
  assert "nearest legal" not in said and "changing" in said and "must be even" in said


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"num_heads": 6, "num_kv_heads": 4}, "num_kv_heads is 3, or the nearest legal model.num_heads is 8"),
    ({"experts_per_token": 9}, "experts_per_token is 8"),
    ({"routing": Routing(groups=3)}, "num_experts is 9, or the nearest legal model.routing.groups is 4"),
    ({"head_dim": 7}, "head_dim is 8"),
    ({"head_dim": 0}, "head_dim is 2"),
    ({"mtp_layers": -1}, "mtp_layers is 0"),
  ],
)
def test_nearest_legal_sizes_of_a_model(changes, words):
  assert message(lambda: tiny.model(**changes)).endswith(f"; the nearest legal model.{words}")


def test_routing_groups_visited():
  said = message(lambda: Routing(groups=2, groups_per_token=3))
  assert said == (
    "model.routing.groups_per_token must be at most groups=2, got 3; "
    "the nearest legal model.routing.groups_per_token is 2"
  )


def test_a_refusal_is_cheap_until_it_is_read(monkeypatch):
  built = []
  check = ModelConfig.__post_init__
  monkeypatch.setattr(ModelConfig, "__post_init__", lambda self: (built.append(1), check(self)))
  error = refused(lambda: tiny.model(num_kv_heads=3))
  assert len(built) == 1
  assert "nearest legal model.num_kv_heads is 4" in str(error) and len(built) > 1


def test_a_refusal_goes_to_another_process_as_its_text():
  error = refused(lambda: tiny.model(num_kv_heads=3))
  assert isinstance(error, IllegalError)
  sent = pickle.loads(pickle.dumps(error))
  assert type(sent) is UsageError and str(sent) == str(error)


def test_candidates_by_hand():
  assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(1) == [1] and divisors(49) == [1, 7, 49]
  assert nearest([1, 2, 4, 8], 3) == [4, 2, 1, 8]
  assert list(multiples(4, 10, most=20)) == [12, 8, 16, 4, 20]
  assert list(multiples(3, 100, most=10)) == [9, 6, 3] and list(multiples(3, -5, most=6)) == [3, 6]


def test_sequences_longer_than_the_model_was_trained_on_warn():
  d = tiny.deployment(sizes={"max_sequence_length": 16})
  assert d.warnings == () and tiny.deployment().warnings == ()
  longer = dataclasses.replace(d, job=dataclasses.replace(d.job, sequence_length=17))
  assert longer.warnings == (
    "job.sequence_length=17 exceeds model.max_sequence_length=16; positions beyond it were never trained",
  )
