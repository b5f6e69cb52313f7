"""Execution counts: loops, branches, calls, and errors for what is unknown."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import STAGES, modules
from jax import lax
from jax.experimental.compilation_cache import compilation_cache
from known_programs import choice, step

from jaxmoe.xla import scopes
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.unknown import UnknownTripCount
from jaxmoe.xla.walk import Declared, UnknownOperation, walk


def executions(module, declared=None, opcode="dot"):
  """Executions of one opcode, and whether one of them is an upper bound."""

  def weight(visit):
    return visit.count * (visit.instruction.opcode == opcode)

  found = [visit for visit in walk(module, declared or Declared(), weight=weight) if weight(visit)]
  return sum(visit.count for visit in found), any(visit.bound for visit in found)


X = jnp.ones((8, 8))


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_trip_count_is_an_error_until_declared(stage):
  def program(x):
    with jax.named_scope("until_small"):
      return lax.while_loop(lambda x: x[0, 0] > 1e-3, step, x)

  module = modules(program, X)[stage]
  with pytest.raises(UnknownTripCount, match="while"):
    executions(module)
  assert executions(module, Declared(trip_counts={"until_small": 2.5})) == (2.5, False)


def test_bound_that_moves_is_an_error():
  def program(x):
    return lax.while_loop(lambda c: c[0] < c[2], lambda c: (c[0] + 2, step(c[1]), c[2] + 1), (0, x, 5))

  with pytest.raises(UnknownTripCount):
    executions(modules(program, X)["partitioned"])


LOOP = """HloModule loops
condition {{
  c = (s32[], f32[4,4]) parameter(0)
  i = s32[] get-tuple-element(c), index=0
  bound = s32[] constant({bound})
  ROOT more = pred[] compare({sides}), direction={direction}
}}
body {{
  b = (s32[], f32[4,4]) parameter(0)
  i = s32[] get-tuple-element(b), index=0
  x = f32[4,4] get-tuple-element(b), index=1
  step = s32[] constant({step})
  next = s32[] add(i, step)
  y = f32[4,4] dot(x, x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT out = (s32[], f32[4,4]) tuple({carried}, y)
}}
ENTRY main {{
  x = f32[4,4] parameter(0)
  start = s32[] constant({start})
  init = (s32[], f32[4,4]) tuple(start, x)
  ROOT loop = (s32[], f32[4,4]) while(init), condition=condition, body=body
}}"""


def loop(start, step, direction, bound, *, sides="i, bound", carried="next"):
  text = LOOP.format(start=start, step=step, direction=direction, bound=bound, sides=sides, carried=carried)
  return executions(Module.from_text(text))[0]


@pytest.mark.parametrize("direction", ["LT", "LE", "GT", "GE", "NE"])
@pytest.mark.parametrize("start", [-3, 0, 4, 9])
@pytest.mark.parametrize("step", [-2, -1, 1, 3])
def test_derived_trip_count_equals_counting(start, step, direction):
  test = {
    "LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__, "NE": int.__ne__,
  }[direction]  # fmt: skip
  i, trips, bound = start, 0, 4
  while test(i, bound) and trips < 100:
    i, trips = i + step, trips + 1
  if trips < 100:
    assert loop(start, step, direction, bound) == trips
  else:
    with pytest.raises(UnknownTripCount):
      loop(start, step, direction, bound)


def test_bound_on_the_left():
  assert loop(0, 2, "GT", 7, sides="bound, i") == 4


def test_loop_that_never_moves_is_an_error():
  with pytest.raises(UnknownTripCount, match="loop"):
    loop(0, 1, "LT", 4, carried="i")


def test_shares_that_are_not_those_of_the_branches_are_refused():
  with pytest.raises(ValueError, match="3 shares"):
    executions(modules(choice, X)["partitioned"], Declared(branch_shares={"choice": (0.5, 0.5)}))


def test_undeclared_custom_call_is_an_error_naming_it():
  def program(x):
    with jax.named_scope("host"):
      return jax.pure_callback(lambda x: x, X, x)

  module = modules(program, X)["optimised"]
  with pytest.raises(UnknownOperation, match="callback"):
    executions(module)
  assert executions(module, Declared(custom_call_flops={"host": 0.0})) == (0, False)


def test_unknown_opcode_is_an_error_naming_it():
  text = "HloModule m\nENTRY main {\n  x = f32[4,4] parameter(0)\n  ROOT y = f32[4,4] cholesky(x)\n}"
  with pytest.raises(UnknownOperation, match="cholesky"):
    executions(Module.from_text(text))


@pytest.mark.parametrize(
  "op_name, path",
  [
    ("jit(f)/dot_general", ()),
    ("jit(f)/jvp(embed)/dot_general", ("embed",)),
    (
      "jit(f)/transpose(jvp(layer/attention))/while/body/scores/bd,de->be/dot_general",
      ("layer", "attention", "scores"),
    ),
    (
      "jit(f)/transpose(jvp())/shard_map/while/body/eval_jaxpr/checkpoint/rematted_computation/layer/dot_general",
      ("layer",),
    ),
    ("jit(<lambda>)/layer/jit(silu)/mul", ("layer",)),
    ("transpose(jvp(attention))/checkpoint/attention/dot_general", ("attention",)),
    ("layer/slot/cond/branch_1_fun/experts/dot_general", ("layer", "slot", "experts")),
    ("", ()),
  ],
)
def test_scope_path(op_name, path):
  assert scopes.path(op_name) == path


def test_source_names_this_file():
  module = modules(lambda x: x @ x, X)["partitioned"]
  (dot,) = [x for x in module.entry.instructions if x.opcode == "dot"]
  file, line = module.source(dot).rsplit(":", 1)
  assert pathlib.Path(file).name == pathlib.Path(__file__).name
  assert "x @ x" in (pathlib.Path(__file__).parents[1] / file).read_text().splitlines()[int(line) - 1]


def test_attributes_and_shapes():
  module = Module.from_text("""HloModule m, num_partitions=4, replica_count=2
ENTRY main {
  x = (f8e4m3fn[8,<=4], pred[3]) parameter(0), frontend_attributes={kind="a",note="b c"}
  ROOT y = pred[3] get-tuple-element(x), index=1
}""")
  y = module.entry.root
  (x,) = y.operands
  assert [(shape.dtype, shape.dims, shape.bytes) for shape in x.shapes] == [
    ("f8e4m3fn", (8, 4), 32),
    ("pred", (3,), 3),
  ]
  assert (x.frontend_attributes, y.word("index"), module.devices) == ({"kind": "a", "note": "b c"}, "1", 8)


def test_partitioned_program_despite_a_persistent_cache(tmp_path):
  settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0}
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    for _ in range(2):
      jax.clear_caches()
      jax.jit(step).lower(X).compile()  # fills the cache, then is answered by it
      assert executions(modules(step, X)["partitioned"]) == (1, False)
    assert any(tmp_path.iterdir())
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


KERNEL = """HloModule kernel, num_partitions=1

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8] parameter(0)
  ROOT %y = f32[8,8] custom-call(%x), custom_call_target="any_kernel", metadata={op_name="jit(f)/SCOPE/pallas_call"}
}
"""


def test_a_kernel_may_declare_its_flops_in_its_scope():
  declared = Module.from_text(KERNEL.replace("SCOPE", "experts/kernel[expected=2e+06,max=7e+06]"))
  assert matmul_flops(declared).by_scope == {"experts/kernel[expected=2e+06,max=7e+06]": 2e6}
  assert matmul_flops(declared, Declared(at_most=True)).total == 7e6
  with pytest.raises(UnknownOperation, match="any_kernel"):
    matmul_flops(Module.from_text(KERNEL.replace("SCOPE", "experts")))
