"""Programs with known answers, as the compilers of all three targets make them."""

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import TARGETS, WITH_CUDA, WITH_TPU, mesh, modules_on
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from known_programs import CONVOLUTION, LOOPS, MATMULS, ONE, ONE_ROW, SQUARE, choice, until_told

from jaxmoe.xla.collectives import collectives
from jaxmoe.xla.declared import AT_MOST, Declared
from jaxmoe.xla.elementwise import elementwise_work
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.layout import aliased_arguments
from jaxmoe.xla.rewrites import explain
from jaxmoe.xla.traffic import memory_traffic
from jaxmoe.xla.unknown import UnknownTripCount
from jaxmoe.xla.walk import UnknownOperation

ON_TARGETS = pytest.mark.parametrize("target", TARGETS)
DOTS = MATMULS | ONE_ROW
# NVIDIA's tensor cores take 16-bit matrices of eight by eight at least, and XLA pads smaller ones.
PADDED = {("tiny", jnp.bfloat16, "cuda"): 2 * 8 * 8 * 8}
SIZES = {"x": 2, "y": 4}
X = jnp.ones(SQUARE)


def counted(made, declared=None):
  """FLOPs of each stage; with no error."""
  return {stage: matmul_flops(module, *([declared] if declared else [])).total for stage, module in made.items()}


def both(flops):
  return {"partitioned": flops, "optimised": flops}


def made_on(target, known, dtype=jnp.float32):
  program, shapes, _ = known
  return modules_on(target, program, *(jnp.ones(shape, dtype) for shape in shapes))


@ON_TARGETS
@pytest.mark.parametrize("name", LOOPS)
def test_loops_multiply(name, target):
  assert counted(made_on(target, LOOPS[name])) == both(LOOPS[name][2])


@ON_TARGETS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", DOTS)
def test_matmuls(name, dtype, target):
  """As dots, convolutions, or multiplies and sums; in fusions, calls and loops."""
  flops = DOTS[name][2]
  executed = PADDED.get((name, dtype, target), flops)
  assert counted(made_on(target, DOTS[name], dtype)) == {"partitioned": flops, "optimised": executed}


@WITH_TPU
def test_tpu_makes_convolutions_of_dots():
  module = made_on("tpu", MATMULS["small"])["optimised"]
  opcodes = {x.opcode for computation in module.computations.values() for x in computation.instructions}
  assert "convolution" in opcodes and "dot" not in opcodes


@ON_TARGETS
def test_a_convolution_of_the_program(target):
  assert matmul_flops(made_on(target, CONVOLUTION)["partitioned"]).total == CONVOLUTION[2]


@WITH_CUDA
def test_a_library_that_nobody_declared_is_an_error_naming_it():
  with pytest.raises(UnknownOperation, match=r"'__cudnn\$convForward' \(cudnn-conv.*known_programs.py:\d+\) declares"):
    matmul_flops(made_on("cuda", CONVOLUTION)["optimised"])


@ON_TARGETS
def test_a_loop_that_the_data_end(target):
  made = modules_on(target, until_told, X, 3)
  assert counted(made) == both(2.5 * ONE)
  assert counted(made, AT_MOST) == both(7 * ONE)


@ON_TARGETS
def test_a_loop_of_which_nobody_says_how_often(target):
  made = modules_on(target, lambda x, n: lax.fori_loop(0, n, lambda _, x: x @ x, x), X, 3)
  for module in made.values():
    with pytest.raises(
      UnknownTripCount, match=r"how often a loop runs \(.*while, .*test_hlo_targets.py:\d+\); declare"
    ):
      matmul_flops(module)


@ON_TARGETS
def test_branches_by_their_shares_or_the_heaviest(target):
  made = modules_on(target, choice, X)
  assert counted(made) == both(4 * 2 * ONE)
  assert {matmul_flops(module).bound for module in made.values()} == {4 * 2 * ONE}
  shares = Declared(branch_shares={"choice": (0.5, 0.25, 0.25)})
  assert counted(made, shares) == both(4 * (0.25 * 2 + 0.25) * ONE)
  assert {matmul_flops(module, shares).bound for module in made.values()} == {0}


@ON_TARGETS
def test_transcendental_functions_in_a_loop(target):
  """Five times, each element of the result, in both modules; backends spell a tanh in their own way."""

  def program(x):
    return lax.fori_loop(0, 5, lambda _, x: jnp.exp(jnp.sin(x)), x)

  made = modules_on(target, program, jnp.ones((64, 32)))
  assert {stage: elementwise_work(module).transcendentals for stage, module in made.items()} == both(2 * 5 * 64 * 32)


@ON_TARGETS
def test_collectives_under_shard_map(target):
  def local(x, w):
    y = lax.psum(jnp.sin(x @ w), "y")
    y = lax.scan(lambda y, _: (lax.ppermute(jnp.sin(y), "x", [(0, 1), (1, 0)]), None), y, None, length=3)[0]
    return lax.psum_scatter(lax.all_gather(y, "y", axis=0, tiled=True), "y", tiled=True)

  spec = PartitionSpec
  on = mesh(target, **SIZES)
  sharded = jax.shard_map(local, mesh=on, in_specs=(spec("x"), spec()), out_specs=spec("x"), check_vma=False)
  made = modules_on(target, sharded, shards(on, (32, 128), "x"), shards(on, (128, 128)))
  one = 16 * 128 * 4
  planned = [
    ("all-reduce", ("y",), one, 1),
    ("collective-permute", ("x",), one, 3),
    ("all-gather", ("y",), 4 * one, 1),
    ("reduce-scatter", ("y",), 4 * one, 1),
  ]
  assert counted(made) == both(2 * 16 * 128 * 128)
  assert_collectives(made, planned)


@ON_TARGETS
def test_collectives_of_automatic_partitioning(target):
  """A contraction that is split ends in an all-reduce; a result that is whole, in an all-gather."""
  on = mesh(target, **SIZES)
  out = NamedSharding(on, PartitionSpec())
  made = modules_on(
    target, lambda x, w: jnp.sin(x @ w), shards(on, (64, 128), "x", "y"), shards(on, (128, 256), "y"), out_shardings=out
  )
  assert counted(made) == both(2 * 32 * 256 * 32)
  assert_collectives(made, [("all-reduce", ("y",), 32 * 256 * 4, 1), ("all-gather", ("x",), 64 * 256 * 4, 1)])


@ON_TARGETS
def test_shards_that_are_not_even(target):
  """Ten rows on four devices are three rows each, and two that nobody needs."""
  on = mesh(target, **SIZES)

  def program(x, w):
    y = lax.with_sharding_constraint(jnp.sin(x), NamedSharding(on, PartitionSpec("y")))
    return lax.with_sharding_constraint(y @ w, NamedSharding(on, PartitionSpec("y"))).sum()

  made = modules_on(target, program, shards(on, (10, 32)), shards(on, (32, 48)))
  assert counted(made) == both(2 * 3 * 32 * 48)


@ON_TARGETS
@pytest.mark.parametrize("donated", [False, True])
def test_a_donated_buffer_is_updated_in_place(donated, target):
  def write(cache_TD, row_1D, at):
    return lax.dynamic_update_slice_in_dim(cache_TD, row_1D, at, 0)

  cache, row = jnp.ones((1024, 128)), jnp.ones((1, 128))
  made = modules_on(target, write, cache, row, 7, donate_argnums=(0,) if donated else ())["optimised"]
  assert aliased_arguments(made.header) == ((0,) if donated else ())
  total = memory_traffic(made).total
  assert 2 * row.nbytes <= total < cache.nbytes if donated else 2 * cache.nbytes <= total


def shards(on, shape, *axes):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(on, PartitionSpec(*axes)))


def assert_collectives(made, planned):
  """The partitioned program has these; what the backend made of them is a named rewrite of a planned one."""
  before, after = (collectives(made[stage], SIZES) for stage in ("partitioned", "optimised"))
  assert sorted((c.kind, c.axes, c.payload_bytes, c.count) for c in before) == sorted(planned)
  assert sum(c.count for c in after) > 0
  assert [rewrite for rewrite in explain(before, after) if not rewrite.planned_for] == []
