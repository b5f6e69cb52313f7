"""One check of a claim: what it is compared with, how, and whom a disagreement contradicts."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Literal

from jaxmoe.planner.amount import Amount, shown
from jaxmoe.planner.book import Book

# What the claim must be, beside the recomputed number; `whole` asks only that it has no fraction.
Relation = Literal["equal", "at_least", "at_most", "whole"]
Compute = Callable[[Book], Amount]


class Basis(enum.StrEnum):
  """What a recomputed number rests on."""

  DOCUMENT = "document"  # other statements of the same document
  MODEL = "model"  # the model, strategy, job and cluster as they were read
  PHYSICS = "physics"  # the cluster's own rates, or counting


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
  """`hint(book, claim, recomputed)` may say what a wrong number would come from."""

  basis: Basis
  compute: Compute
  relation: Relation = "equal"
  hint: Callable[[Book, Amount, Amount], str] = lambda book, claim, recomputed: ""

  def holds(self, claim: Amount, recomputed: Amount) -> bool:
    match self.relation:
      case "equal":
        return claim.agrees_with(recomputed)
      case "at_least":
        return claim.may_reach(recomputed)
      case "at_most":
        return recomputed.may_reach(claim)
      case "whole":
        return float(claim.value).is_integer()


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
  """What a full check of the claim would need and no document has."""

  what: str


Rule = tuple[Check | Missing, ...]


def document(compute: Compute, relation: Relation = "equal", **more: Callable[[Book, Amount, Amount], str]) -> Check:
  return Check(Basis.DOCUMENT, compute, relation, **more)


def model(compute: Compute, relation: Relation = "equal", **more: Callable[[Book, Amount, Amount], str]) -> Check:
  return Check(Basis.MODEL, compute, relation, **more)


def physics(compute: Compute, relation: Relation, **more: Callable[[Book, Amount, Amount], str]) -> Check:
  return Check(Basis.PHYSICS, compute, relation, **more)


def left_out(*names: str) -> Callable[[Book, Amount, Amount], str]:
  """A hint: the claim is what comes out without this factor or divisor, itself a claim."""

  def hint(book: Book, claim: Amount, recomputed: Amount) -> str:
    for factor in (book.said(name) for name in names if book.says(name)):
      if claim.agrees_with(recomputed * factor) or claim.agrees_with(recomputed / factor):
        return f"the claim leaves out {factor.text}"
    return ""

  return hint


def counted_twice(*names: str) -> Callable[[Book, Amount, Amount], str]:
  """A hint: the claim is the sum with this term, itself a claim, added once more."""

  def hint(book: Book, claim: Amount, recomputed: Amount) -> str:
    for name in filter(book.says, names):
      again = recomputed + book.said(name)
      if claim.agrees_with(again):
        return f"with {name} counted twice it is {shown(again.value, book.claims[name].unit)}"
    return ""

  return hint
