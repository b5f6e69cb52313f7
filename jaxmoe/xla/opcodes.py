"""What a walk over HLO knows: opcodes and custom calls by name. Whatever is missing here raises an error."""

import re

MATMULS = frozenset({"dot", "scaled-dot", "ragged-dot", "convolution"})

COLLECTIVES = frozenset(
  {
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
  }
)  # fmt: skip

CALLS = frozenset({"call", "fusion", "while", "conditional", "async"})

# Neither matmuls nor communication. Left out on purpose, so that they raise: cholesky, triangular-solve, fft,
# scan (work that nobody counts here) and send, recv, infeed, outfeed, collective-reduce (traffic that nobody
# counts here).
OTHERS = frozenset(
  {
    "abs", "acos", "acosh", "add", "add-dependency", "after-all", "and", "asin", "asinh", "atan2", "atanh",
    "bitcast", "bitcast-convert", "broadcast", "cbrt", "ceil", "clamp", "compare", "complex", "concatenate",
    "constant", "convert", "copy", "cosh", "cosine", "count-leading-zeros", "divide", "domain",
    "dynamic-reshape", "dynamic-slice", "dynamic-update-slice", "erf", "exp2", "exponential",
    "exponential-minus-one", "floor", "gather", "get-dimension-size", "get-tuple-element", "imag", "iota",
    "is-finite", "log", "log-plus-one", "logistic", "map", "maximum", "minimum", "mulhi", "multiply",
    "negate", "not", "opt-barrier", "or", "pad", "parameter", "partition-id", "popcnt", "power", "real",
    "reduce", "reduce-precision", "reduce-window", "remainder", "replica-id", "reshape", "reverse", "rng",
    "rng-bit-generator", "rng-get-and-update-state", "round-nearest-afz", "round-nearest-even", "rsqrt",
    "scatter", "select", "select-and-scatter", "set-dimension-size", "shift-left", "shift-right-arithmetic",
    "shift-right-logical", "shuffle", "sign", "sine", "sinh", "slice", "sort", "sqrt", "stochastic-convert",
    "subtract", "tan", "tanh", "topk", "transpose", "tuple", "xor",
  }
)  # fmt: skip

KNOWN = MATMULS | COLLECTIVES | CALLS | OTHERS | {"custom-call"}

MATMUL_CUSTOM_CALLS = frozenset({"__onednn$matmul", "__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"})

OTHER_CUSTOM_CALLS = frozenset(
  {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "GatherScatterIndicesBitpacked", "MoveToDevice",
    "MoveToHost", "SPMDFullToShardShape", "SPMDShardToFullShape", "Sharding", "TopK", "annotate_device_placement",
  }
)  # fmt: skip

# Kernels that XLA adds of its own, by op name: TPU's table of tiles for a ragged dot. They multiply nothing.
HELPER_KERNELS = frozenset({"ragged-dot-metadata"})

# In the backend_config of a custom call: gathers and scatters that libtpu (seen with 0.0.51) gives to the TPU's
# SparseCores, which have no matrix unit.
OFFLOADED = re.compile(r'"offload":"OFFLOAD_(GATHER|SCATTER)"')

_ASYNC_SUFFIXES = ("-start", "-update", "-done")


def base(opcode: str) -> str:
  """The operation that an asynchronous spelling stands for: `all-gather-start` -> `all-gather`."""
  for suffix in _ASYNC_SUFFIXES:
    opcode = opcode.removesuffix(suffix)
  return opcode


def executes(opcode: str) -> bool:
  """False for the halves of an asynchronous operation that only wait for it."""
  return not opcode.endswith(("-update", "-done"))
