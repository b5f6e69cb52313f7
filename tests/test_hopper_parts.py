"""Float32 as the sum of three bfloat16 parts: to the last bit, also under jit, where compilers like to drop casts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.kernels import work
from jaxmoe.kernels.hopper.parts import parts, products


@pytest.mark.parametrize("run", [parts, jax.jit(parts)])
def test_parts_sum_to_the_number(run):
  random = np.random.default_rng(0)
  numbers = (random.standard_normal(10_000) * 2.0 ** random.integers(-90, 120, 10_000)).astype(np.float32)
  found = run(jnp.asarray(numbers))
  assert [part.dtype for part in found] == [jnp.bfloat16] * 3
  wide = [np.asarray(part).astype(np.float64) for part in found]
  np.testing.assert_array_equal(sum(wide), numbers)
  assert all((np.abs(low) <= np.abs(high) / 2**8).all() for high, low in itertools.pairwise(wide))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_one_part(dtype):
  array = jnp.ones(3, dtype)
  (part,) = parts(array)
  assert part is array


def test_what_is_not_finite_has_one_part():
  first, *others = parts(jnp.array([np.inf, -np.inf, np.nan], "float32"))
  np.testing.assert_array_equal(np.asarray(first).astype(np.float64), [np.inf, -np.inf, np.nan])
  assert not any(np.any(np.asarray(part)) for part in others)


def test_products_of_parts():
  """Of nine the six that are not below 2^-24 of the largest; of one operand in parts, all three."""
  assert products(1, 1) == [(0, 0)]
  assert products(3, 1) == [(2, 0), (1, 0), (0, 0)]
  found = products(3, 3)
  assert sorted(found) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
  assert [i + j for i, j in found] == [2, 2, 2, 1, 1, 0]
  assert len(found) == work.products("hopper", "float32")


@pytest.mark.parametrize("kernel, dtype", [("hopper", "bfloat16"), ("tpu", "float32"), (None, "float32")])
def test_others_take_one_product(kernel, dtype):
  assert work.products(kernel, dtype) == 1
