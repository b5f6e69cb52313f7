"""The formulas equal the compiled program over strategies, foldings, jobs and model variants, not only documents'."""

import pytest
import tiny

from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step

FOLDED = {"heads_over": ("expert",)}
BOTH = {"heads_over": ("expert", "tensor")}
WHOLE = {"experts_over": ("expert", "tensor")}
GROUPED = {"num_heads": 8, "num_kv_heads": 4}

CASES = {
  "train, every axis but data": (Strategy(stage=2, expert=2, tensor=2), {}, {}),
  "train, recomputed, four microbatches": (
    Strategy(data=2, stage=2, tensor=2),
    {"remat": "full", "microbatches": 4},
    {"gated": False, "activation": "gelu"},
  ),
  "train, folded": (Strategy(stage=2, expert=4, **FOLDED), {}, GROUPED),
  "train, folded and recomputed": (Strategy(data=2, expert=4, **FOLDED), {"remat": "full"}, {"tied_embeddings": True}),
  "train, heads over both": (Strategy(data=2, expert=2, tensor=2, **BOTH), {"remat": "full"}, {}),
  "train, whole experts": (Strategy(stage=2, expert=2, tensor=2, **WHOLE), {}, {"query_key_norm": "head"}),
  "train, heads over both, whole experts": (Strategy(expert=2, tensor=2, **BOTH, **WHOLE), {"remat": "full"}, {}),
  "train, heads that share a norm": (
    Strategy(data=2, expert=2, tensor=2),
    {"remat": "full"},
    {"query_key_norm": "head"},
  ),
  "train, dense transport": (Strategy(stage=2, expert=2, tensor=2), {"transport": "dense"}, {}),
  "train, dense transport, folded, recomputed": (
    Strategy(data=2, expert=4, **FOLDED),
    {"transport": "dense", "remat": "full"},
    {},
  ),
  "train, buffers by the tile loop": (Strategy(stage=2, expert=2, tensor=2), {"expert_kernel": "cpu_tiles"}, {}),
  "prefill, all tokens by the tile loop": (
    Strategy(data=2, expert=4),
    {"kind": "prefill", "transport": "dense", "expert_kernel": "cpu_tiles"},
    {},
  ),
  "train, gather transport": (Strategy(stage=2, expert=2, tensor=2), {"transport": "gather"}, {}),
  "train, gather transport, folded, recomputed": (
    Strategy(data=2, expert=4, **FOLDED),
    {"transport": "gather", "remat": "full"},
    {"experts_per_token": 3, "gated": False},
  ),
  "prefill, gather transport": (
    Strategy(stage=2, expert=2, tensor=2, **WHOLE),
    {"kind": "prefill", "transport": "gather"},
    {},
  ),
  "train, blocked attention": (Strategy(expert=2), {"batch": 2, "sequence_length": 1030, "microbatches": 1}, {}),
  "prefill": (Strategy(stage=2, expert=2, tensor=2), {"kind": "prefill"}, GROUPED),
  "prefill, folded": (Strategy(stage=2, expert=4, **FOLDED), {"kind": "prefill"}, {}),
  "prefill, dense transport": (Strategy(data=2, expert=4), {"kind": "prefill", "transport": "dense"}, {}),
  "decode": (Strategy(stage=2, expert=2, tensor=2), {"kind": "decode"}, GROUPED),
  "decode, folded": (Strategy(data=2, expert=4, **FOLDED), {"kind": "decode", "microbatches": 1}, {}),
  "decode, one sequence at a time": (Strategy(stage=2, expert=4), {"kind": "decode", "microbatches": 4}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_formulas_equal_the_compiled_program(name):
  """To the last byte and FLOP, although the rules would allow 1 %; loops declare their trips to six digits."""
  strategy, job, sizes = CASES[name]
  d = tiny.deployment(strategy, "bfloat16", sizes, **{"capacity_factor": 1.25, **job})
  found = compare(d, "cpu", compile_step(d))
  exactly = 1e-5 if d.job.transport == "gather" else 0
  assert [(c.name, c.axis, c.predicted, c.compiled) for c in found.checks if abs(c.relative_error) > exactly] == []
  assert found.unplanned == []
  traced = [c for c in found.checks if c.program is not None]
  assert [(c.name, c.axis) for c in traced if abs(c.program - c.predicted) > exactly * c.predicted] == []
