"""The rules that judge a comparison: what is compared, how far the two sides may differ, and why that far."""

import dataclasses
from collections.abc import Callable

from jaxmoe.report import units
from jaxmoe.xla.compare import EXACT, ONE_PERCENT, Check, Fault


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
  """One kind of check.

  Attributes:
    tolerance: largest relative difference of the compiled number from the predicted one.
    covers: whether a check is of this kind.
    at_least: more than predicted is no error.
  """

  what: str
  tolerance: float
  reason: str
  covers: Callable[[Check], bool]
  at_least: bool = False


def allowed(judge: Check | Rule) -> str:
  """`exact`, `1.00 %`, or `more`."""
  if judge.at_least:
    return "more"
  return units.percent(judge.tolerance) if judge.tolerance else "exact"


RULES = (
  Rule(
    "bytes of arguments, by class and in sum",
    EXACT,
    "Shapes, dtypes and shardings fix them; padding of tiles is counted apart.",
    lambda check: check.unit == "bytes" and not (check.axis or check.at_least or check.name == "updated in place"),
  ),
  Rule(
    "bytes updated in place",
    EXACT,
    "A result that does not reuse its argument's buffer takes that memory twice.",
    lambda check: check.name == "updated in place",
  ),
  Rule(
    "matmul FLOPs, by part and in sum",
    ONE_PERCENT,
    "The partitioner may reshape small matmuls; one that is missing or done twice shows at once.",
    lambda check: check.unit == "FLOPs",
  ),
  Rule(
    "payload of each collective over each group of mesh axes",
    ONE_PERCENT,
    "The partitioner may merge scalars and small sums into others; a collective that nobody planned has no allowance.",
    lambda check: bool(check.axis),
  ),
  Rule(
    "memory traffic",
    EXACT,
    "Weights, cache and optimizer state cannot be left where they are; how much more moves is the backend's affair.",
    lambda check: check.at_least and check.name.startswith("memory traffic"),
    at_least=True,
  ),
  Rule(
    "temporaries, with results that are no updated arguments",
    EXACT,
    "What must exist at one moment is derived; what a backend adds is shown buffer by buffer, by class, and judged only"
    " by whether it fits.",
    lambda check: check.at_least and check.name.startswith("temporaries"),
    at_least=True,
  ),
)

# Where a check that fails lies, by `Check.fault`, and why there.
FAULTS: dict[Fault, str] = {
  "formula or program": "The compiler did what the traced program says, and the formula says otherwise: one of the two"
  " describes another model.",
  "compiler": "Formula and traced program agree; the compiler made more, less or something else of it.",
  "formula or program, and compiler": "No two of formula, traced program and compiler agree.",
  "unknown": "The traced program says nothing of it.",
}

# What a rewrite of a backend's passes is, by its name in `jaxmoe.xla.rewrites`.
REWRITES = {
  "same": "as partitioned",
  "widened": "sent in twice the bits that the program has",
  "narrowed": "sent in fewer bits, converted after",
  "packed": "several elements of 8 or 16 bits in a word of 32",
  "padded": "filled up to equal shares or whole tiles",
  "combined": "the same in fewer operations",
  "split": "the same in more operations",
  "peeled": "iterations of a loop written out",
  "async": "started early, awaited later",
  "removed": "fewer elements: dead or merged into another",
  "reduce_scatter_as_all_reduce": "a reduce-scatter done as an all-reduce, of which each keeps its part",
  "all_reduce_as_reduce_scatter": "an all-reduce of which each keeps only its part, done as a reduce-scatter",
  "reordered": "an all-reduce moved across a reduce-scatter",
  "halo": "neighbours hand on what equal shares of a padded array hold for each other",
  "recomputed": "done again, for its result takes too much memory to keep",
  "hierarchical": "one within each TPU slice and one between them",
  "unplanned": "no rewrite explains it, which fails the comparison",
}
