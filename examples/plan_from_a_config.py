"""Plan a model from its `config.json`: search, write the plan's file, and ask why it beats the runner-up.

Expected output (`...` stands for numbers of the cost model):

6,919,161,856 parameters, 1,282,017,280 active
... plans, ... legal, ... keep every limit
best: ... = 16 devices, ... a step
runner-up: ... = 16 devices, ... a step
front: ... plans, from ... to ... of a device
... is ... (formula)
plan.yaml reads back: True
"""

import json
import pathlib
import tempfile

from jaxmoe.config.catalogue import load_cluster, load_deployment, load_model
from jaxmoe.config.job import Job
from jaxmoe.config.plan_form import deployment_text
from jaxmoe.cost.parameters import active_parameters, total_parameters
from jaxmoe.planner.answer import answer
from jaxmoe.planner.pareto import Explored
from jaxmoe.planner.question import Question
from jaxmoe.planner.space import whole_space
from jaxmoe.planner.why import why
from jaxmoe.report import units
from jaxmoe.report.why import verdict

CONFIG = {
  "model_type": "olmoe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 1024,
  "max_position_embeddings": 4096, "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
  "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": False, "vocab_size": 50304,
}  # fmt: skip

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "config.json").write_text(json.dumps(CONFIG))
model = load_model(str(folder / "config.json"))
print(f"{total_parameters(model):,} parameters, {active_parameters(model):,} active")

job = Job(kind="train", batch=256, sequence_length=4096)
question = Question(model=model, cluster=load_cluster("dgx_h100"), devices=16, job=job, space=whole_space(job.kind))
explored = Explored(question)
found = answer(question, 10, explored.see)
print(f"{found.considered:,} plans, {found.priced:,} legal, {found.fitting:,} keep every limit")

best, second = found.plans[:2]
for name, plan in (("best", best), ("runner-up", second)):
  print(f"{name}: {plan.deployment.strategy.product}, {units.seconds(plan.time.total_s)} a step")
most, least = (units.bytes_(explored.found[at].memory_bytes) for at in (0, -1))
print(f"front: {len(explored.found)} plans, from {most} to {least} of a device")
print(verdict(why(second, best)))

(folder / "plan.yaml").write_text(deployment_text(best.deployment, "Found by examples/plan_from_a_config.py."))
print(f"plan.yaml reads back: {load_deployment(str(folder / 'plan.yaml')) == best.deployment}")
