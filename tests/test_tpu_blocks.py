"""Which blocks the TPU kernel takes, what they copy, and what its tables of visits multiply: plain numbers."""

import itertools

import jax
import jax.numpy as jnp
import kernels_tpu as benchmark
import numpy as np
import pytest
import tpu_devices

from jaxmoe.kernels import tpu_blocks, tpu_chip, tpu_rows


@pytest.mark.parametrize("device", tpu_devices.DEVICES)
def test_bytes_are_those_of_the_blocks_that_are_copied(device):
  """A block is copied when it is another one than in the step before: counted along the grid, by its table."""
  rng, chip = np.random.default_rng(5), benchmark.chip_of(device)
  for N, E, K, width, transposed in (
    (4096, 8, 1024, 2048, False), (1000, 64, 2048, 1408, True), (5000, 16, 4096, 640, False), (100, 3, 512, 768, True),
    (16_384, 4, 8192, 2944, True), (4096, 8, 14_336, 4096, True), (300, 40, 1152, 384, False),
    (4096, 32, 2048, 128, True),
  ):  # fmt: skip
    up = {"terms": 1, "beside": 2, "outputs": 3} if not transposed else {"terms": 2, "beside": 1, "outputs": 1}
    job = tpu_blocks.Job(N, E, K, width, transposed=transposed, itemsize=2, **up)
    choice = tpu_blocks.choose(job, chip)
    assert choice is not None, job
    one = job._replace(terms=1) if choice.apart else job
    sizes = rng.multinomial(N, rng.dirichlet(np.full(E, 50.0)))
    most = copied_bytes(one, choice.blocks, sizes, chip) * job.terms // one.terms
    added = (job.terms + 1) * 2 * N * width if choice.apart else 0
    assert 0.99 * choice.bytes <= most + added <= choice.bytes, (job, choice)


def copied_bytes(job, blocks, sizes, chip):
  visits = tpu_rows.visits_of(jnp.array(sizes, jnp.int32), job.N, blocks.height, chip.rows)
  steps = list(zip(*(np.asarray(index).tolist() for index in (visits.source, visits.group, visits.rows)), strict=True))
  total, held, parts = 2 * job.outputs * job.N * job.F, [None, None], job.K // blocks.depth
  for first in range(0, job.F, blocks.width):
    for (v, (tile, expert, rows)), k in itertools.product(enumerate(steps), range(parts)):
      part = k if v < visits.count[0] and rows else parts - 1
      if held[0] != (tile, part):
        total += 2 * job.terms * min(blocks.height, job.N - tile * blocks.height) * blocks.depth
      if held[1] != (expert, first, part):
        total += 2 * job.weights * blocks.depth * min(blocks.width, job.F - first)
      held = [(tile, part), (expert, first, part)]
  return total


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5"])
def test_two_cores_get_as_many_blocks_each(kind):
  for shape, N, leg in itertools.product(benchmark.SHAPES, benchmark.ROWS, benchmark.LEGS):
    job = benchmark.job_of(shape, N, leg)
    if choice := tpu_blocks.choose(job, tpu_chip.chip_of(kind)):
      assert -(-job.F // choice.blocks.width) % 2 == 0, (shape, N, leg)


@pytest.mark.parametrize("job, why", [
  (tpu_blocks.Job(4096, 8, 65_664, 4096, 2, 1, 1, True, 2), "no column fits, and no part divides K"),
  (tpu_blocks.Job(512, 256, 7168, 2048, 1, 2, 3, False, 2), "only weights count, and an up leg reads them anyway"),
  (tpu_blocks.Job(15, 4, 1024, 2048, 1, 1, 1, True, 2), "too few rows for a tile"),
])  # fmt: skip
def test_declines(job, why):
  assert tpu_blocks.choose(job, tpu_chip.chip_of("TPU v6 lite")) is None, why
  assert tpu_blocks.choose(job._replace(N=16_384, E=8, K=2048), tpu_chip.chip_of("TPU v6 lite"))


@pytest.mark.parametrize("K, depth", [(10_112, 10_112), (10_240, 256), (65_536, 256), (10_368, None)])
def test_how_deep_sums_may_be(K, depth):
  """At once, in parts, or, where a multiple of 128 has no such part, not at all."""
  job = tpu_blocks.Job(65_536, 8, K, 4096, 1, 2, 3, False, 2)
  choice = tpu_blocks.choose(job, tpu_chip.chip_of("TPU v5 lite"))
  assert (choice and choice.blocks.depth) == depth


def test_parts_of_sums_are_taken_where_they_save_a_quarter():
  """Of one shape in the table: Mixtral's gradient of rows through gate and up, whose sums are the deepest."""
  for device, shape, N, leg in itertools.product(benchmark.DEVICES, benchmark.SHAPES, benchmark.ROWS, benchmark.LEGS):
    job, chip = benchmark.job_of(shape, N, leg), benchmark.chip_of(device)
    if choice := tpu_blocks.choose(job, chip):
      assert (choice.blocks.depth < job.K) == ((shape, leg) == ("mixtral", "matmuls_transposed"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu_blocks, "PART_DEPTHS", ())
    job = benchmark.job_of("mixtral", 16_384, "matmuls_transposed")
    whole = tpu_blocks.choose(job, benchmark.chip_of("v5e"))
  parts = tpu_blocks.choose(job, benchmark.chip_of("v5e"))
  assert whole and parts and parts.bytes < tpu_blocks.WORTH_PARTS * whole.bytes


@pytest.mark.parametrize("F", [1408, 2944])
def test_odd_widths_are_served(F):
  """Whose only divisors are themselves and 128 (or 2944's 23): the last block of columns is narrower."""
  for device in tpu_devices.DEVICES:
    choice = tpu_blocks.choose(tpu_blocks.Job(65_536, 64, 2048, F, 1, 2, 3, False, 2), benchmark.chip_of(device))
    assert choice and choice.blocks.width >= 512, device


# Rows and experts, chunk of the device: most rows multiplied of the rows that there are.
PADDING = [(131_072, 8, 128, 1.01), (131_072, 64, 128, 1.05), (131_072, 128, 128, 1.05), (131_072, 256, 128, 1.1),
           (131_072, 8, 256, 1.01), (131_072, 64, 256, 1.05), (131_072, 128, 256, 1.1), (8192, 64, 128, 1.3),
           (4096, 64, 128, 1.8), (512, 256, 128, 8.5)]  # fmt: skip


@pytest.mark.parametrize("N, E, chunk, most", PADDING)
def test_padding(N, E, chunk, most):
  """Rows multiplied, by the table that the kernel goes by; never more than the compiler's tiles hold."""
  sizes = benchmark.uniform_sizes(N, E)
  for height in tpu_blocks.HEIGHTS:
    multiplied = benchmark.own_multiplied(sizes, height, chunk) / N
    assert 1 <= multiplied <= min(most, benchmark.compiler_multiplied(sizes, chunk) / N)


def test_a_visit_multiplies_as_many_rows_as_its_table_says():
  """Each row of an expert lies in its visits' rows, at multiples of 16; the kernel's matmuls have those heights."""
  rng = np.random.default_rng(0)
  for N, E, height in ((640, 7, 128), (512, 40, 512), (300, 3, 288)):
    sizes = rng.multinomial(N - 30, rng.dirichlet(np.full(E, 0.3)))
    visits = jax.tree.map(np.asarray, tpu_rows.visits_of(jnp.array(sizes, jnp.int32), N, height, 128))
    expert = np.repeat(np.arange(E), sizes)
    covered = np.zeros(N - 30, int)
    for v in range(visits.count[0]):
      first = visits.tile[v] * height + min(visits.first[v], height - min(height, visits.rows[v]))
      here = np.arange(first, min(first + visits.rows[v], N - 30))
      covered[here] += expert[here] == visits.group[v]
      assert visits.first[v] % 16 == 0 and (visits.rows[v] == 0 or visits.source[v] == visits.tile[v])
    assert (covered == 1).all()
