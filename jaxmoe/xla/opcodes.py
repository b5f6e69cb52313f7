"""What a walk over HLO knows: opcodes and custom calls by name. Whatever is missing here raises an error."""

import functools
import re

MATMULS = frozenset({"dot", "scaled-dot", "ragged-dot", "convolution"})

COLLECTIVES = frozenset(
  {
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
  }
)  # fmt: skip

CALLS = frozenset({"call", "fusion", "while", "conditional", "async", "scan"})

# One result element is one evaluation of a function that takes several FLOPs.
TRANSCENDENTALS = frozenset(
  {
    "acos", "acosh", "asin", "asinh", "atan2", "atanh", "cbrt", "cosh", "cosine", "erf", "exp2", "exponential",
    "exponential-minus-one", "log", "log-plus-one", "logistic", "power", "rng", "rng-bit-generator", "rsqrt",
    "sine", "sinh", "sqrt", "tan", "tanh",
  }
)  # fmt: skip

# One result element is one FLOP, of whatever dtype.
ARITHMETIC = frozenset(
  {
    "abs", "add", "and", "bitcast-convert", "ceil", "clamp", "compare", "complex", "convert", "count-leading-zeros",
    "divide", "floor", "imag", "is-finite", "maximum", "minimum", "mulhi", "multiply", "negate", "not", "or", "popcnt",
    "real", "reduce-precision", "remainder", "round-nearest-afz", "round-nearest-even", "select", "shift-left",
    "shift-right-arithmetic", "shift-right-logical", "sign", "stochastic-convert", "subtract", "xor",
  }
)  # fmt: skip

# They apply a function of scalars, or compare, many times.
APPLYING = frozenset({"map", "reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "topk"})

# Nothing is read or written: names for buffers, and what only orders or contains other operations.
FREE = frozenset(
  {
    "add-dependency", "after-all", "bitcast", "constant", "domain", "get-dimension-size", "get-tuple-element",
    "opt-barrier", "parameter", "partition-id", "replica-id", "rng-get-and-update-state", "set-dimension-size", "tuple",
  }
)  # fmt: skip

MOVES = frozenset(
  {
    "broadcast", "concatenate", "copy", "dynamic-reshape", "dynamic-slice", "dynamic-update-slice", "gather", "iota",
    "pad", "reshape", "reverse", "shuffle", "slice", "transpose",
  }
)  # fmt: skip

# Left out on purpose, so that they raise: cholesky, triangular-solve, fft (work that nobody counts here) and
# send, recv, infeed, outfeed, collective-reduce (traffic that nobody counts here).
OTHERS = TRANSCENDENTALS | ARITHMETIC | APPLYING | FREE | MOVES

KNOWN = MATMULS | COLLECTIVES | CALLS | OTHERS | {"custom-call"}

MATMUL_CUSTOM_CALLS = frozenset({"__onednn$matmul", "__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"})

OTHER_CUSTOM_CALLS = frozenset(
  {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart", "ConcatBitcast",
    "GatherScatterIndicesBitpacked", "GatherSortedIndicesOrders", "LayoutConstraint", "MoveToDevice", "MoveToHost",
    "SPMDFullToShardShape", "SPMDShardToFullShape", "Sharding", "SliceId", "TopK", "ZeroCrop",
    "annotate_device_placement",
  }
)  # fmt: skip

# Of these, the ones that only name a buffer or say something about it.
FREE_CUSTOM_CALLS = frozenset(
  {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart", "ConcatBitcast",
    "LayoutConstraint", "SPMDFullToShardShape", "SPMDShardToFullShape", "Sharding", "annotate_device_placement",
  }
)  # fmt: skip

# Kernels that XLA adds of its own, by op name: TPU's table of tiles for a ragged dot. They multiply nothing.
HELPER_KERNELS = frozenset({"ragged-dot-metadata"})

# In the backend_config of a custom call: gathers and scatters that libtpu (seen with 0.0.51) gives to the TPU's
# SparseCores, which have no matrix unit.
OFFLOADED = re.compile(r'"offload":"OFFLOAD_(GATHER|SCATTER)"')

# In the attributes of a send or a receive: traffic between TPU slices, which hosts pass on; between_slices.py
# counts it. Others raise.
BETWEEN_SLICES = re.compile(r'_xla_host_transfer_handler_name="xla_megascale_runtime"')

_ASYNC_SUFFIXES = ("-start", "-update", "-done")


@functools.cache
def base(opcode: str) -> str:
  """The operation that an asynchronous spelling stands for: `all-gather-start` -> `all-gather`."""
  for suffix in _ASYNC_SUFFIXES:
    opcode = opcode.removesuffix(suffix)
  return opcode


def is_listed(target: str) -> bool:
  """Whether a custom call's work is known by its target."""
  return target in MATMUL_CUSTOM_CALLS or target in OTHER_CUSTOM_CALLS


@functools.cache
def executes(opcode: str) -> bool:
  """False for the halves of an asynchronous operation that only wait for it."""
  return not opcode.endswith(("-update", "-done"))
