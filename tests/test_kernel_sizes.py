"""Group sizes of every integer dtype: known ones that do not fit raise, traced ones are cut off and reported."""

import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np
import pytest
from jax.experimental import checkify

from jaxmoe.kernels import check
from jaxmoe.kernels.grouped_matmul import grouped_matmul

N, D, F, E = 12, 8, 16, 3
DTYPES = [f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")]
# Rows N, and what numpy makes of the greatest integer of a dtype.
CASES = {
  "fit": lambda most: (300, [100, 0, 100]),
  "sum too large": lambda most: (150, [100, 20, 100]),
  "one too large": lambda most: (60, [10, 100, 3]),
  "one more than all": lambda most: (60, [0, 61, 0]),
  "greatest": lambda most: (300, [most, 1, most]),
  "greatest, and as many rows": lambda most: (min(most, 2**31 - 1), [5, most, most]),
  "more rows than its integers": lambda most: (70_000, [min(most, 30_000)] * 3),
  "negative": lambda most: (300, [100, -5, 60]),
  "least": lambda most: (300, [100, -most - 1, 60]),
  "no rows": lambda most: (0, [0, 1, 0]),
}
OF_SIGNED = ("negative", "least")


def cut_off(sizes, num_rows):
  """Group after group, as many rows as are left."""
  left, found = num_rows, []
  for size in sizes:
    found.append(min(max(size, 0), left))
    left -= found[-1]
  return found


@pytest.mark.parametrize(
  "case,dtype", [(case, dtype) for case in CASES for dtype in DTYPES if case not in OF_SIGNED or dtype[0] != "u"]
)
def test_every_integer(case, dtype):
  num_rows, sizes = CASES[case](int(np.iinfo(dtype).max))
  wanted = cut_off(sizes, num_rows)
  run = lambda sizes_E: check.sizes(sizes_E, E, num_rows)  # noqa: E731
  with jax.enable_x64(dtype.endswith("64")):
    for known in (np.array(sizes, dtype), jnp.array(sizes, dtype)):
      assert known.dtype == dtype
      if sizes == wanted:
        assert_sizes(run(known), wanted)
      else:
        with pytest.raises(ValueError, match="must not be negative" if min(sizes) < 0 else "must sum to at most"):
          run(known)
      assert_sizes(jax.jit(run)(known), wanted)
      error, got = jax.jit(checkify.checkify(run, errors=checkify.user_checks))(known)
      assert_sizes(got, wanted)
      assert (error.get() is None) == (sizes == wanted)


def assert_sizes(got, wanted):
  assert got.dtype == jnp.int32 and got.tolist() == wanted


@pytest.mark.parametrize(
  "sizes,as_if",
  [([4, -3, 6], [4, 0, 6]), ([4, 5, 6], [4, 5, 3]), ([2**31 - 1, 2**31 - 1, 5], [12, 0, 0]), ([20, -5, 1], [12, 0, 0])],
)
def test_traced_sizes_are_clamped_and_reported(sizes, as_if):
  x_ND, w_EDF = oracle.draw(0, "float32", (N, D), (E, D, F))
  got = jax.jit(grouped_matmul)(x_ND, w_EDF, jnp.array(sizes))
  oracle.assert_close(got, oracle.grouped_matmul(x_ND, w_EDF, as_if), "float32")
  loss = lambda x, w, sizes: grouped_matmul(x, w, sizes).sum()  # noqa: E731
  for function in (grouped_matmul, jax.grad(loss, argnums=1)):
    checked = jax.jit(checkify.checkify(function, errors=checkify.user_checks))
    error, _ = checked(x_ND, w_EDF, jnp.array(sizes))
    with pytest.raises(checkify.JaxRuntimeError, match="group size"):
      error.throw()
    error, _ = checked(x_ND, w_EDF, jnp.array(as_if))
    error.throw()


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16"])
def test_narrow_traced_sizes_of_many_rows(dtype):
  sizes, num_rows = ([100, 100], 300) if dtype.endswith("8") else ([30_000, 30_000], 70_000)
  x_ND, w_EDF = oracle.draw(0, "float32", (num_rows, 4), (2, 4, 4))
  got = jax.jit(grouped_matmul)(x_ND, w_EDF, np.array(sizes, dtype))
  oracle.assert_close(got, oracle.grouped_matmul(x_ND, w_EDF, sizes), "float32")


@pytest.mark.parametrize(
  "num_rows,sizes",
  [(2**30, [2**30] * 5), (2**30 + 10, [2**30, 2**30 + 10, 5]), (2**31 - 1, [2**31 - 2, 2**31 - 1, 2**31 - 1, 7])],
)
def test_sizes_whose_sum_overflows_are_clamped(num_rows, sizes):
  run = lambda sizes_E: check.sizes(sizes_E, len(sizes), num_rows)  # noqa: E731
  error, got = jax.jit(checkify.checkify(run, errors=checkify.user_checks))(jnp.array(sizes))
  assert_sizes(got, cut_off(sizes, num_rows))
  assert "sum to more than all rows" in error.get()
