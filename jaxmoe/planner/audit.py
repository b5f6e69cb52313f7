"""Every number that a deployment document states, recomputed: what agrees, and what contradicts what."""

import dataclasses
import enum
import math
import re

from jaxmoe.config.deployment import Claim, Deployment
from jaxmoe.planner import audit_counts, audit_memory, audit_places, audit_speed
from jaxmoe.planner.amount import Amount, exact, shown
from jaxmoe.planner.book import Book, Unsaid
from jaxmoe.planner.checks import Basis, Check, Missing, Relation, Rule, physics
from jaxmoe.planner.limits import LIMITS

RULES: dict[str, Rule] = {**audit_counts.RULES, **audit_places.RULES, **audit_memory.RULES, **audit_speed.RULES}
_WHOLE_SHARE = physics(lambda book: exact(1, "a share of the whole, 100 %"), "at_most")


class Verdict(enum.StrEnum):
  """Gravest first."""

  IMPOSSIBLE = "impossible"
  CONTRADICTS_DOCUMENT = "contradicts_document"
  CONTRADICTS_MODEL = "contradicts_model"
  NOT_CHECKABLE = "not_checkable"
  CONSISTENT = "consistent"

  @property
  def gravity(self) -> int:
    return -list(Verdict).index(self)


_FAILED = {
  Basis.PHYSICS: Verdict.IMPOSSIBLE,
  Basis.DOCUMENT: Verdict.CONTRADICTS_DOCUMENT,
  Basis.MODEL: Verdict.CONTRADICTS_MODEL,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
  """One claim, judged.

  Attributes:
    document: its value, in `unit`.
    recomputed: what it should be, or (by `relation`) what it may at least or at most be; None if nothing computes it.
    arithmetic: how `recomputed` came about, in one line.
    hint: what a wrong number would come from, and which reading of MB it takes.
    basis: what `recomputed` rests on.
    missing: what a full check would need.
  """

  deployment: str
  claim: str
  quote: str
  unit: str
  document: float
  verdict: Verdict
  recomputed: float | None = None
  relation: Relation = "equal"
  arithmetic: str = ""
  hint: str = ""
  basis: Basis | None = None
  missing: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
  """A limit that a document sets itself, and whether the estimate keeps it."""

  deployment: str
  claim: str
  quote: str
  unit: str
  limit: float
  relation: Relation
  estimated: float
  arithmetic: str
  holds: bool


def audit(deployment: Deployment) -> tuple[Finding, ...]:
  """A finding for each claim, in the document's order."""
  decimal, binary = Book(deployment), Book(deployment, binary=True)
  return tuple(_finding(decimal, binary, claim) for claim in deployment.claims)


def requirements(deployment: Deployment) -> tuple[Requirement, ...]:
  """What the estimate says of every limit among the claims that it can say something of."""
  book = Book(deployment)
  kept: list[Requirement] = []
  for claim in deployment.claims:
    check = LIMITS.get(claim.name)
    recomputed = _computed(book, check) if check else None
    if check and recomputed:
      kept.append(_requirement(book, claim, check, recomputed))
  return tuple(kept)


def rule_of(name: str) -> Rule:
  """The checks of claims with this name; `stage_3_last_layer` has those of `stage_#_last_layer` for 3."""
  numbered = re.search(r"(?<=_)\d+(?=_)", name)
  if numbered:
    make = audit_places.NUMBERED_RULES.get(f"{name[: numbered.start()]}#{name[numbered.end() :]}")
    return make(int(numbered[0])) if make else (Missing(f"a rule for claims named {name}"),)
  return RULES.get(name, (Missing(f"a rule for claims named {name}"),))


def _finding(decimal_book: Book, binary_book: Book, claim: Claim) -> Finding:
  """Judged with MB as 10^6 bytes, or as 2^20 where the claim is right or explained only so."""
  decimal = _judged(decimal_book, claim)
  if decimal.verdict == Verdict.CONSISTENT:
    return decimal
  binary = _judged(binary_book, claim)
  milder = binary.verdict.gravity < decimal.verdict.gravity
  explained = binary.verdict == decimal.verdict and binary.hint and not decimal.hint
  if not (milder or explained):
    return decimal
  return dataclasses.replace(binary, hint="; ".join(filter(None, (binary.hint, "MB as 2^20 bytes"))))


def _judged(book: Book, claim: Claim) -> Finding:
  """The gravest failure of the claim's checks, or the first that holds."""
  rule, said = rule_of(claim.name), book.said(claim.name)
  outcomes = _outcomes(book, (*rule, _WHOLE_SHARE) if claim.unit == "share" else rule)
  failed = [(check, recomputed) for check, recomputed in outcomes if not check.holds(said, recomputed)]
  blank = Finding(
    deployment=book.d.name, claim=claim.name, quote=claim.quote, unit=claim.unit, document=claim.value,
    verdict=Verdict.NOT_CHECKABLE,
  )  # fmt: skip
  if failed:
    check, recomputed = max(failed, key=lambda outcome: _FAILED[outcome[0].basis].gravity)
    return _with(blank, check, recomputed, _FAILED[check.basis], check.hint(book, said, recomputed))
  conclusive = [(check, recomputed) for check, recomputed in outcomes if check is not _WHOLE_SHARE]
  missing = [part.what for part in rule if isinstance(part, Missing)]
  if missing or not conclusive:
    return dataclasses.replace(blank, missing="; ".join(missing) or _unsaid(book, rule))
  check, recomputed = min(conclusive, key=lambda outcome: outcome[0].basis is Basis.PHYSICS)
  return _with(blank, check, recomputed, Verdict.CONSISTENT, "")


def _outcomes(book: Book, rule: Rule) -> list[tuple[Check, Amount]]:
  """What each check computes, where it can."""
  computed = [(check, _computed(book, check)) for check in rule if isinstance(check, Check)]
  return [(check, recomputed) for check, recomputed in computed if recomputed is not None]


def _with(blank: Finding, check: Check, recomputed: Amount, verdict: Verdict, hint: str) -> Finding:
  return dataclasses.replace(
    blank, verdict=verdict, recomputed=recomputed.value, relation=check.relation, basis=check.basis,
    arithmetic=_line(check, recomputed, blank.unit), hint=hint,
  )  # fmt: skip


def _line(check: Check, recomputed: Amount, unit: str) -> str:
  """`at least 57.26 TFLOP a batch / (128 devices x 400 TFLOP/s) = 1.118 ms`, or `stated: PP 16`."""
  bound = {"at_least": "at least ", "at_most": "at most ", "equal": "", "whole": ""}[check.relation]
  if recomputed.shape == "leaf":
    origin = {Basis.DOCUMENT: "stated: ", Basis.MODEL: "as read: ", Basis.PHYSICS: ""}[check.basis]
    return f"{origin}{bound}{recomputed.text}"
  return bound + _sum(recomputed, unit)


def _sum(recomputed: Amount, unit: str) -> str:
  return recomputed.text if recomputed.shape == "leaf" else f"{recomputed.text} = {shown(recomputed.value, unit)}"


def _computed(book: Book, check: Check) -> Amount | None:
  """None if the document lacks what the check needs, or divides by zero."""
  try:
    recomputed = check.compute(book)
  except Unsaid:
    return None
  return recomputed if math.isfinite(recomputed.value) else None


def _unsaid(book: Book, rule: Rule) -> str:
  """What the checks looked for in vain."""
  names: list[str] = []
  for check in rule:
    try:
      if isinstance(check, Check):
        check.compute(book)
    except Unsaid as missing:
      names.append(str(missing))
  return ", ".join(dict.fromkeys(names))


def _requirement(book: Book, claim: Claim, check: Check, recomputed: Amount) -> Requirement:
  return Requirement(
    deployment=book.d.name, claim=claim.name, quote=claim.quote, unit=claim.unit, limit=claim.value,
    relation=check.relation, estimated=recomputed.value, arithmetic=_sum(recomputed, claim.unit),
    holds=check.holds(book.said(claim.name), recomputed),
  )  # fmt: skip
