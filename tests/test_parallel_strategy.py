"""`parallel_strategy:` names the same strategies as `strategy:`, as the deployment documents write it."""

import pytest
import yaml
from plans import PLAN, edited

from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import load_deployment, load_model
from jaxmoe.config.plan_form import deployment_mapping
from jaxmoe.meshes.errors import UsageError
from jaxmoe.meshes.strategy import Strategy

STRATEGY = "strategy: {data: 1, stage: 2, expert: 4, tensor: 2}"

# Document 001
BLOCK = """
parallel_strategy:
  ep: 256          # Expert Parallel
  pp: 16           # Pipeline Parallel
  tp: 1            # Tensor Parallel
  sp: 1            # Sequence Parallel
  dp: 1            # Data Parallel
"""


@pytest.fixture
def plan(tmp_path):
  """Loads the small plan with this block for its strategy."""

  def load(block, *edits):
    path = tmp_path / "plan.yaml"
    path.write_text(edited((STRATEGY, block), *edits))
    return load_deployment(str(path))

  return load


def test_the_block_of_document_001_is_its_deployment(tmp_path):
  """Its ep counts the experts of all stages, as its experts are numbered."""
  d = load_deployment("ep256_pp16")
  data = deployment_mapping(d)
  del data["strategy"]
  (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**data, **yaml.safe_load(BLOCK)}))
  # YAML 1.1 writes numbers that the reader takes too
  assert load_deployment(str(tmp_path / "plan.yaml")) == d


@pytest.mark.parametrize(
  "block, strategy",
  [
    ("{ep: 4, pp: 2, tp: 2, sp: 1, dp: 1}", Strategy(stage=2, expert=4, tensor=2)),
    ("{ep: 4, pp: 2, tp: 2, sp: 2}", Strategy(stage=2, expert=4, tensor=2, sequence_parallel=True)),
    ("{dp: 2, tp: 2}", Strategy(data=2, tensor=2)),
    ("{}", Strategy()),
  ],
)
def test_each_size_is_its_axis(block, strategy, plan):
  assert plan(f"parallel_strategy: {block}").strategy == strategy


def test_ep_over_all_stages(plan):
  across = ("title: A tiny plan", "title: A tiny plan\nexpert_numbering: across_stages")
  assert plan("parallel_strategy: {ep: 8, pp: 2}", across).strategy == Strategy(stage=2, expert=4)
  with pytest.raises(UsageError, match=r"ep=7 must be a multiple of pp=2.*nearest legal ep is 8"):
    plan("parallel_strategy: {ep: 7, pp: 2}", across)


@pytest.mark.parametrize(
  "block, words",
  [
    ("{ep: 4, sp: 2}", [r"parallel_strategy: sp=2 must be 1 or tp=1", "strategy.context"]),
    ("{ep: 4, tp: 2, sp: 4}", [r"parallel_strategy: sp=4 must be 1 or tp=2"]),
    ("{ep: 4, ppp: 2}", ["parallel_strategy.ppp: unknown key (did you mean 'pp'?); legal keys are ep, pp, tp, sp, dp"]),
    ("{ep: 4, pipeline: 2}", ["parallel_strategy.pipeline: unknown key", "ep, pp, tp, sp, dp"]),
    ("{ep: '4'}", ["parallel_strategy.ep: expected a whole number", "quotes"]),
    ("{ep: 0}", ["parallel_strategy.ep", "at least 1"]),
    ("[4]", ["parallel_strategy: expected a mapping, got a list"]),
    ("{ep: 4, pp: 2, tp: 2, dp: 2}", ["2 data x 2 stage x 4 expert x 2 tensor = 32 devices", "has 16"]),
    ("{ep: 3}", ["model.num_experts=8", "parallel_strategy was read as 1 data x 1 stage x 3 expert x 1 tensor"]),
    ("{ep: 4}\nstrategy: {}", ["strategy and parallel_strategy are both given; keep one"]),
  ],
)
def test_faults_are_named(block, words, plan):
  with pytest.raises(UsageError) as caught:
    plan(f"parallel_strategy: {block}")
  assert all(word in str(caught.value) for word in words), caught.value


def test_no_strategy_at_all(plan):
  with pytest.raises(UsageError, match=r"strategy is missing; add it, or parallel_strategy: \{ep, pp, tp, sp, dp\}"):
    plan("")


def test_every_verb_takes_it(tmp_path, capsys):
  path = tmp_path / "plan.yaml"
  path.write_text(PLAN)
  whole = load_model(str(path))
  assert main(["estimate", str(path), "--json"]) == 0
  expected = capsys.readouterr().out
  path.write_text(edited((STRATEGY, "parallel_strategy: {ep: 4, pp: 2, tp: 2, sp: 1, dp: 1}")))
  assert load_model(str(path)) == whole
  assert main(["estimate", str(path), "--json"]) == 0
  assert capsys.readouterr().out == expected
  assert main(["place", str(path)]) == 0
