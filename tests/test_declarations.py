"""A scope that declares work serves one loop or kernel, directly in it, and says numbers that can be."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from compiled_modules import STAGES, TARGETS, modules, modules_on
from jax import lax

from jaxmoe.kernels import work
from jaxmoe.xla import declarations, scopes
from jaxmoe.xla.declared import AT_MOST, NOTHING
from jaxmoe.xla.flops import matmul_flops
from jaxmoe.xla.hlo import Module
from jaxmoe.xla.jaxpr_counts import count
from jaxmoe.xla.traffic import memory_traffic
from jaxmoe.xla.unknown import UnknownOperation, UnknownTripCount, WrongDeclaration

X = jnp.ones((8, 8))
SQUARE = 2 * 8**3  # FLOPs of x @ x
LOOP, INNER = "loop[expected=3,max=5]", "loop[expected=2,max=4]"
KERNEL = "kernel[expected=100,max=300,bytes=1]"


def loop(x, n):
  return lax.fori_loop(0, n, lambda _, y: jnp.sin(y @ y), x)


def product(x, n):
  return lax.ragged_dot(x, x[None], jnp.array([8]) * n)


def within(scope, function):
  def scoped(x, n):
    with jax.named_scope(scope):
      return function(x, n)

  return scoped


def nested(inner):
  """A declared loop that does `inner` in each iteration."""
  return within(LOOP, lambda x, n: lax.fori_loop(0, n, lambda i, y: inner(y, n + i), x))


def jaxpr_flops(function, declared=NOTHING):
  return count(jax.jit(function).trace(X, 3).jaxpr, declared).flops


def flops(function, declared=NOTHING) -> list[float]:
  """As traced, as partitioned and as optimised."""
  made = modules(function, X, 3)
  return [jaxpr_flops(function, declared), *(matmul_flops(made[stage], declared).total for stage in STAGES)]


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_in_a_declared_loop_needs_its_own_declaration(target):
  said = rf"while\S* \(?.*while/body.*test_declarations.py:\d+\)+; declare it .*; {LOOP[:4]}\S* does not stand directly"
  with pytest.raises(UnknownTripCount, match=said):
    jaxpr_flops(nested(loop))
  for module in modules_on(target, nested(loop), X, 3).values():
    with pytest.raises(UnknownTripCount, match=said.replace(r" \(?", "")):
      matmul_flops(module)
  for inner in (INNER, LOOP):  # the same numbers again are a declaration of its own
    for module in modules_on(target, nested(within(inner, loop)), X, 3).values():
      assert matmul_flops(module).total == {INNER: 3 * 2, LOOP: 3 * 3}[inner] * SQUARE
      assert matmul_flops(module, AT_MOST).total == {INNER: 5 * 4, LOOP: 5 * 5}[inner] * SQUARE


def branches(x, n):
  return lax.cond(n > 1, loop, lambda x, n: loop(loop(x, n), n), x, n)


@pytest.mark.parametrize("function", [nested(product), within(KERNEL, nested(product))])
def test_a_kernel_in_a_loop_needs_its_declaration_inside(function):
  """A ragged dot counts by its shape where nothing declares its work."""
  assert jaxpr_flops(function) == 3 * SQUARE
  assert jaxpr_flops(nested(within(KERNEL, product))) == 3 * 100


@pytest.mark.parametrize(
  "function", [within(LOOP, branches), within(KERNEL, loop), within(LOOP, within("inner", loop))]
)
def test_a_scope_that_is_not_the_loops_own_declares_nothing(function):
  with pytest.raises(UnknownTripCount):
    jaxpr_flops(function)
  for module in modules(function, X, 3).values():
    with pytest.raises(UnknownTripCount, match="declare it"):
      matmul_flops(module)


def test_trips_that_the_program_holds_are_never_the_declared_ones():
  four = lambda x, n: lax.fori_loop(0, 4, lambda _, y: jnp.sin(y @ y), x)  # noqa: E731
  assert flops(nested(four)) == [3 * 4 * SQUARE] * 3
  assert flops(within(LOOP, lambda x, n: loop(four(x, n), n))) == [(4 + 3) * SQUARE] * 3


HLO = """HloModule kernel, num_partitions=1
ENTRY main {
  x = f32[8,8] parameter(0)
  ROOT y = f32[8,8] custom-call(x, x), custom_call_target="TARGET", metadata={op_name="jit(f)/SCOPE/name/pallas_call"}
}
"""


def kernel(scope, target="any_kernel"):
  return Module.from_text(HLO.replace("SCOPE", scope).replace("TARGET", target))


@pytest.mark.parametrize("between", ["while/body", "cond/branch_1_fun", LOOP])
def test_a_kernels_scope_is_its_own(between):
  assert matmul_flops(kernel(KERNEL)).total == 100
  with pytest.raises(UnknownOperation, match=r"'any_kernel' .*declares no work; declare it"):
    matmul_flops(kernel(f"{KERNEL}/{between}"))


def test_a_listed_call_beside_a_kernel_counts_by_what_it_is():
  """A scope may hold operations of the compiler's own before the kernel."""
  assert matmul_flops(kernel(KERNEL, "__cublas$gemm")).total == SQUARE
  assert matmul_flops(kernel(KERNEL, "TopK")).total == 0
  assert memory_traffic(kernel(KERNEL, "TopK")).total == 3 * 8 * 8 * 4


WRONG = {
  "expected=9,max=5": "expects more than the maximum",
  "expected=-1,max=5": "declares expected=-1",
  "expected=-1,max=-1": "declares expected=-1 and max=-1",
  "expected=nan,max=5": "declares expected=nan",
  "expected=1,max=inf": "declares max=inf",
  "expected=1,max=1e999": "declares max=1e999",
  "expected=1-2,max=5": "declares expected=1-2",
  "expected=,max=5": "declares expected=",
  "expected=1": "is no declaration that can be read",
  "max=5,expected=1": "is no declaration that can be read",
  "": "is no declaration that can be read",
}


@pytest.mark.parametrize("said", WRONG)
def test_numbers_that_cannot_be(said):
  with pytest.raises(WrongDeclaration) as wrong:
    matmul_flops(kernel(f"kernel[{said}]"))
  assert f"scope kernel[{said}] {WRONG[said]} (y, jit(f)/" in str(wrong.value)
  for function in (within(f"kernel[{said}]", product), within(f"loop[{said}]", loop)):
    with pytest.raises(
      WrongDeclaration, match=r"test_declarations.py:\d+\)*; a declaration is loop\[expected="
    ) as wrong:
      jaxpr_flops(function)
    assert WRONG[said] in str(wrong.value)


def test_bytes_that_cannot_be():
  for said, reason in {"bytes=-1": "declares bytes=-1", "bytes=1,bytes=1": "no declaration"}.items():
    with pytest.raises(WrongDeclaration, match=reason):
      memory_traffic(kernel(f"kernel[expected=1,max=2,{said}]"))
  with pytest.raises(WrongDeclaration, match="no declaration"):
    jaxpr_flops(within("loop[expected=1,max=2,bytes=3]", loop))


@pytest.mark.parametrize("stage", STAGES)
def test_a_loop_that_expects_more_than_its_maximum(stage):
  with pytest.raises(WrongDeclaration, match=r"\(while.*, .*/while, .*test_declarations.py:\d+\)"):
    matmul_flops(modules(within("loop[expected=9,max=5]", loop), X, 3)[stage])


def test_trips_are_a_mean_over_the_loop_around():
  """With most routing a loop may run more often around an inner one that runs less often each time."""
  around = "loop[expected=2,max=4]/while/body"
  assert declarations.loop_work(f"{around}/loop[expected=2,max=1.5]/while", str)
  with pytest.raises(WrongDeclaration, match="more than the maximum"):
    declarations.loop_work(f"{around}/loop[expected=2,max=0.5]/while", str)


def test_what_the_kernels_declare_can_be():
  for rows, experts, share in itertools.product(range(1, 150), (1, 2, 3, 8, 64), (None, 0.1, 0.5)):
    with work.expecting(share and rows * share):
      trips = work.expert_trips(rows, experts), work.tile_trips(rows, experts, work.tile_rows(rows, experts))
      outer, inner = (f"loop[expected={one.expected:g},max={one.most:g}]/while" for one in trips)
      assert declarations.loop_work(outer, str) and declarations.loop_work(f"{outer}/body/{inner}", str)
      assert declarations.kernel_work(work.kernel_scope(2.0, rows, 3.0), str)


def twice(function):
  return lambda x, n: function(function(x, n), n)


def jitted(function):
  return jax.jit(lambda x, n: function(x, n))


def in_python(function):
  def repeated(x, n):
    for _ in range(2):
      x = function(x, n)
    return x

  return repeated


def unlike(function):
  return lambda x, n: jnp.cos(function(jnp.sin(x), n)) + function(x, n)


@pytest.mark.parametrize("scope, function", [(LOOP, loop), (KERNEL, product)])
@pytest.mark.parametrize("several", [twice, in_python, unlike, lambda one: twice(jitted(one))])
def test_two_in_one_scope(several, scope, function):
  two = r"two stand in it: jax's \S+ \(in .*\.py:\d+\), and jax's \S+ \(in .*\.py:\d+\); put each"
  with pytest.raises(WrongDeclaration, match=two):
    jaxpr_flops(within(scope, several(function)))
  each = several(within(scope, function))
  assert jaxpr_flops(each) == 2 * jaxpr_flops(within(scope, function))
  assert flops(jax.jit(each))[0] == jaxpr_flops(each)


def recomputed(function):
  """A gradient with what is declared executed on the way forward, and again on the way back."""
  held = jax.checkpoint(lambda x, n: jnp.sin(x) * lax.stop_gradient(function(jnp.sin(x), n)))
  return lambda x, n: jax.value_and_grad(lambda x: jnp.sum(held(x, n)))(x)


def linear(function):
  def both(x, n):
    y, tangent = jax.linearize(lambda x: function(x, n), x)
    return y, tangent(x)

  return both


COPIED = {
  "recomputed": recomputed(within(LOOP, loop)),
  "recomputed in the scope": within(LOOP, recomputed(loop)),
  "linear": linear(within(LOOP, loop)),
  "mapped": jax.vmap(within(LOOP, lambda x, n: loop(jnp.outer(x, x), n)), in_axes=(0, None)),
  "in a scan": lambda x, n: lax.scan(lambda x, _: (within(LOOP, loop)(x, n), 0), x, None, length=2)[0],
}


@pytest.mark.parametrize("name", COPIED)
def test_what_jax_and_the_compiler_make_of_one_loop(name):
  traced, *compiled = flops(COPIED[name])
  assert compiled == [traced] * 2
  assert traced % (3 * SQUARE) == 0 and traced > 3 * SQUARE


def gradient(function):
  return lambda x, n: jax.grad(lambda x, w: jnp.sum(function(x, w, n)), (0, 1))(x, x)


def test_gradients_of_one_product():
  """Both are made of one line; two lines are two products, differentiated or not."""
  one = lambda x, w, n: lax.ragged_dot(x, w[None], jnp.array([8]) * n)  # noqa: E731

  def two(x, w, n):
    with jax.named_scope(KERNEL):
      y = lax.ragged_dot(x, w[None], jnp.array([8]) * n)
      return lax.ragged_dot(y, w[None], jnp.array([8]) * n)

  assert jaxpr_flops(gradient(lambda x, w, n: within(KERNEL, lambda x, n: one(x, w, n))(x, n))) == 2 * 100
  with pytest.raises(WrongDeclaration, match="two stand in it"):
    jaxpr_flops(gradient(two))


@pytest.mark.parametrize(
  "op_name, own",
  [
    ("jit(f)/layer/loop[a]/while", ("layer", "loop[a]")),
    ("jit(f)/loop[a]/while/body/while", ()),
    ("jit(f)/loop[a]/while/body/loop[a]/while", ("loop[a]",)),
    ("jit(f)/transpose(jvp(loop[a]))/while/body/eval_jaxpr/checkpoint/b/while", ("b",)),
    ("transpose(jvp(a/while/body/b))/jit(f)/vmap()/while", ("b",)),
    ("jit(f)/loop[a]/cond/branch_0_fun/while", ()),
    ("jit(f)/loop[a]/jit(silu)/while", ("loop[a]",)),
    ("", ()),
  ],
)
def test_scopes_that_are_an_operations_own(op_name, own):
  assert scopes.own(op_name) == own
