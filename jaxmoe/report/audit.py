"""An audit as counts, tables that fit 100 columns, and one JSON document."""

import collections
import textwrap
from collections.abc import Sequence
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.planner.amount import brief
from jaxmoe.planner.audit import Finding, Requirement, Verdict, audit, requirements
from jaxmoe.planner.checks import Basis
from jaxmoe.planner.own_plan import OwnPlans
from jaxmoe.report import own_plan
from jaxmoe.report.table import Table

# Of the claim and of the arithmetic; with numbers and gaps, 100 columns.
CLAIM_WIDTH = 28
ARITHMETIC_WIDTH = 40
# Of the arithmetic in the summary.
BRIEF_WIDTH = 53
# No reading of the model or the cluster mends these.
GRAVE = (Verdict.IMPOSSIBLE, Verdict.CONTRADICTS_DOCUMENT)

_BOUND = {"at_least": ">= ", "at_most": "<= "}


def counts(deployments: Sequence[Deployment]) -> Table:
  """How many claims of each document, and of all, got which verdict."""
  columns = {d.name: audit(d) for d in deployments}
  if len(deployments) > 1:
    columns["all"] = tuple(finding for findings in columns.values() for finding in findings)
  found = [_by_verdict(findings) for findings in columns.values()]
  rows = [(verdict.value, *(str(number[verdict.value]) for number in found)) for verdict in Verdict]
  return Table("Verdicts", ["verdict", *columns], [*rows, ("claims", *(str(len(f)) for f in columns.values()))])


def tables(deployments: Sequence[Deployment], own: Sequence[OwnPlans]) -> list[Table]:
  """Verdict counts, the findings of each document, the documents' own requirements, then the planner's own plans."""
  claiming = [d for d in deployments if d.claims]
  limits = [requirement for d in deployments for requirement in requirements(d)]
  found = [*_counts(claiming), *map(_findings, claiming), *([_requirements(limits)] if limits else [])]
  return [*found, *map(own_plan.table, own), *filter(None, [own_plan.unsearched(own)])]


def summary(deployments: Sequence[Deployment], own: Sequence[OwnPlans]) -> list[Table]:
  """Verdict counts, what is impossible or at odds with its own document, and the planner's own plans."""
  claiming = [d for d in deployments if d.claims]
  return [*_counts(claiming), *([_gravest(claiming)] if claiming else []), own_plan.summary(own)]


def unclaimed(deployments: Sequence[Deployment]) -> list[str]:
  """A line for each deployment whose document states nothing that could be recomputed."""
  return [f"{d.name}: no claims" for d in deployments if not d.claims]


def _counts(claiming: Sequence[Deployment]) -> list[Table]:
  return [counts(claiming)] if claiming else []


def document(deployments: Sequence[Deployment], own: Sequence[OwnPlans]) -> dict[str, Any]:
  """Values in the claim's unit; shares as fractions of one."""
  findings = [finding for d in deployments for finding in audit(d)]
  return {
    "deployments": [
      {"deployment": d.name, "document": d.document, "counts": _by_verdict(audit(d)), **own_plan.document(plans)}
      for d, plans in zip(deployments, own, strict=True)
    ],
    "counts": _by_verdict(findings),
    "findings": [_finding(finding) for finding in findings],
    "requirements": [_requirement(requirement) for d in deployments for requirement in requirements(d)],
  }


def _by_verdict(findings: Sequence[Finding]) -> dict[str, int]:
  found = collections.Counter(finding.verdict for finding in findings)
  return {verdict.value: found[verdict] for verdict in Verdict}


def _findings(d: Deployment) -> Table:
  """Gravest first; a verdict stands above its claims, and what needs more than a line goes on in the next row."""
  rows: list[tuple[str, ...]] = []
  for verdict in Verdict:
    found = [finding for finding in audit(d) if finding.verdict == verdict]
    rows += [(verdict.value, "", "", "")] if found else []
    rows += [line for finding in found for line in _lines(finding)]
  title = f"{d.name}: {d.document or 'no document'}"
  return Table(title, ["claim", "document", "recomputed", "arithmetic"], rows)


def _gravest(deployments: Sequence[Deployment]) -> Table:
  """What no other reading of the model or the cluster can mend."""
  rows: list[tuple[str, ...]] = []
  for d in deployments:
    found = [finding for finding in audit(d) if finding.verdict in GRAVE]
    rows += [(d.name, "", "")] if found else []
    for finding in sorted(found, key=lambda f: -f.verdict.gravity):
      rows += _in_brief(finding)
  return Table("Impossible (!), or at odds with the document itself", ["claim", "document", "arithmetic"], rows)


def _in_brief(f: Finding) -> list[tuple[str, ...]]:
  mark = "!" if f.verdict == Verdict.IMPOSSIBLE else ""
  first, *rest = textwrap.wrap("; ".join(filter(None, (f.arithmetic, f.hint))), BRIEF_WIDTH)
  return [(f"  {f.claim}", f"{brief(f.document, f.unit)}{mark}", first), *(("", "", line) for line in rest)]


def _lines(f: Finding) -> list[tuple[str, ...]]:
  recomputed = "-" if f.recomputed is None else _BOUND.get(f.relation, "") + brief(f.recomputed, f.unit)
  why = f"missing: {f.missing}" if f.missing else "; ".join(filter(None, (f.arithmetic, f.hint)))
  return _wrapped(f.claim, brief(f.document, f.unit), recomputed, why)


def _wrapped(claim: str, document: str, recomputed: str, why: str) -> list[tuple[str, ...]]:
  names = [line.replace(" ", "_") for line in textwrap.wrap(claim.replace("_", " "), CLAIM_WIDTH - 3)]
  names = [f"  {name}_" for name in names[:-1]] + [f"  {names[-1]}"]
  texts = textwrap.wrap(why, ARITHMETIC_WIDTH)
  lines = max(len(names), len(texts))
  numbers = [(document, recomputed)] + [("", "")] * (lines - 1)
  padded = (names + [""] * (lines - len(names)), texts + [""] * (lines - len(texts)))
  return [(name, *pair, text) for name, pair, text in zip(padded[0], numbers, padded[1], strict=True)]


def _requirements(own: Sequence[Requirement]) -> Table:
  rows: list[tuple[str, ...]] = []
  for name in dict.fromkeys(requirement.deployment for requirement in own):
    rows.append((name, "", "", ""))
    for r in own:
      if r.deployment == name:
        verdict = "holds" if r.holds else "does not hold"
        limit = ("<= " if r.relation == "at_least" else ">= ") + brief(r.limit, r.unit)
        rows += _wrapped(r.claim, limit, brief(r.estimated, r.unit), f"{verdict}: {r.arithmetic}")
  return Table(
    "The documents' own requirements, by estimate", ["requirement", "limit", "estimated", "arithmetic"], rows
  )


def _finding(f: Finding) -> dict[str, Any]:
  return {
    "deployment": f.deployment,
    "claim": f.claim,
    "quote": f.quote,
    "document": f.document,
    "recomputed": f.recomputed,
    "relation": f.relation,
    "unit": f.unit,
    "arithmetic": f.arithmetic,
    "hint": f.hint,
    "verdict": f.verdict.value,
    "missing": f.missing,
    "sources": {"document": "document", "recomputed": _source(f.basis)},
  }


def _requirement(r: Requirement) -> dict[str, Any]:
  return {
    "deployment": r.deployment,
    "claim": r.claim,
    "quote": r.quote,
    "limit": r.limit,
    "estimated": r.estimated,
    "unit": r.unit,
    "arithmetic": r.arithmetic,
    "holds": r.holds,
    "sources": {"limit": "document", "estimated": "formula"},
  }


def _source(basis: Basis | None) -> str | None:
  """Whose numbers a recomputed one was made of."""
  return None if basis is None else "document" if basis is Basis.DOCUMENT else "formula"
