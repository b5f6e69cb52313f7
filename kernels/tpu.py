"""Grouped matmuls on TPU: the compiler's `ragged_dot` where it copies nothing, an own kernel for what it does not fuse.

`ragged_dot` writes gate and up apart from the hidden rows, and copies all weights transposed before it multiplies with
them. The own kernel serves bfloat16 with lanes of 128 where `tpu_blocks.choose` finds blocks with which it needs fewer
bytes; all else is `ragged_dot`'s.
"""

import functools

import jax.numpy as jnp

from jaxmoe.kernels import activations, tpu_ragged
from jaxmoe.kernels.activations import Activation
from jaxmoe.kernels.tpu_blocks import LANES, Job, choose
from jaxmoe.kernels.tpu_chip import chip_in_use
from jaxmoe.kernels.tpu_ragged import matmul, matmul_scaled, up, weight_gradient
from jaxmoe.kernels.tpu_rows import grouped_rows

__all__ = ["gated_up", "matmul", "matmul_scaled", "matmul_transposed", "matmuls_transposed", "up", "weight_gradient"]


def gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation: Activation):
  job = _job([x_ND], gate_EDF, beside=2, outputs=3, transposed=False)
  chip = chip_in_use()
  choice = _serves(job, x_ND) and choose(job, chip)
  if not choice:
    return tpu_ragged.gated_up(x_ND, gate_EDF, up_EDF, sizes_E, activation)

  def epilogue(gate, up):
    return activations.gated(activation, gate, up), gate, up

  return tuple(grouped_rows([(x_ND, [gate_EDF, up_EDF])], sizes_E, epilogue, job, choice.blocks, chip))


def matmul_transposed(y_NF, w_EDF, sizes_E):
  return matmuls_transposed([y_NF], [w_EDF], sizes_E)


def matmuls_transposed(rows_NF, weights_EDF, sizes_E):
  job, chip = _job(rows_NF, weights_EDF[0], beside=1, outputs=1, transposed=True), chip_in_use()
  choice = _serves(job, rows_NF[0]) and choose(job, chip)
  if not choice:
    return tpu_ragged.matmuls_transposed(rows_NF, weights_EDF, sizes_E)
  terms = [(y_NF, [w_EDF]) for y_NF, w_EDF in zip(rows_NF, weights_EDF, strict=True)]

  def run(terms):
    one = job._replace(terms=len(terms))
    return grouped_rows(terms, sizes_E, lambda sum_: (sum_,), one, choice.blocks, chip)[0]

  return functools.reduce(jnp.add, (run([term]) for term in terms)) if choice.apart else run(terms)


def _job(rows, w_EDF, *, beside: int, outputs: int, transposed: bool) -> Job:
  (N, K), (E, *_), size = rows[0].shape, w_EDF.shape, rows[0].dtype.itemsize
  return Job(N, E, K, w_EDF.shape[1 if transposed else 2], len(rows), beside, outputs, transposed, size)


def _serves(job: Job, x_NK) -> bool:
  return x_NK.dtype == jnp.bfloat16 and all(width > 0 and width % LANES == 0 for width in (job.K, job.F))
