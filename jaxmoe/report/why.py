"""Why one plan differs from another: tables, a verdict and one JSON document."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.planner.why import Term, Why, same_work, share
from jaxmoe.report import units
from jaxmoe.report.facts import axis_fact, fact, flops_fact
from jaxmoe.report.table import Table

NAMED = 3  # terms in the verdict
LEAST_SHARE = 0.05  # of what plans differ by, to be named
LEAST_RATIO = 5e-3  # less than which two decimals do not show, and percent do

type Shown = Callable[[float], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
  """How terms of one kind are shown."""

  title: str
  terms: list[Term]
  shown: Shown
  fact: Callable[[Estimate, str], str]


def kinds(w: Why) -> dict[str, Kind]:
  per_token = Kind("Time of one device for a token", w.token_time, units.seconds, fact)
  return {
    "time_s": Kind("Time of a step", w.time, units.seconds, fact),
    **({} if same_work(w.a, w.b) else {"token_time_s": per_token}),
    "memory_bytes": Kind("Memory of a device", w.memory, units.bytes_, _memory_fact),
    "flops": Kind("Matmul FLOPs of a device and step", w.flops, units.flops, flops_fact),
    "axis_bytes": Kind("Bytes of a device and step, by axis", w.axes, units.bytes_, axis_fact),
  }


def _memory_fact(e: Estimate, name: str) -> str:
  return fact(e, "stored_gradients" if name == "gradients" else name)


def verdict(w: Why) -> str:
  """Which is faster, by how much, and through which terms; by the token where steps do not do the same work."""
  whole = _compared(w)
  slow, fast = sum(term.a for term in whole), sum(term.b for term in whole)
  names = _names(w)
  ratio = max(slow, fast) / min(slow, fast)
  if ratio < 1 + 1e-9:
    return f"{names[1]} is as fast as {names[0]} ({_rates(w)}); {_memory_verdict(w)} ({SOURCE})"
  faster = "faster" if fast < slow else "slower"
  by = f"{ratio:.2f}x" if ratio >= 1 + LEAST_RATIO else units.percent(ratio - 1)
  reasons = "; ".join(_reason(w, term) for term in _named(w))
  a_what = "a step" if same_work(w.a, w.b) else "a token"
  return f"{names[1]} is {by} {faster} than {names[0]} {a_what} ({_rates(w)}): {reasons}{_offset(w)} ({SOURCE})"


def _compared(w: Why) -> list[Term]:
  return w.time if same_work(w.a, w.b) else w.token_time


def _rates(w: Why) -> str:
  """Of both steps; where they do not do the same work, tokens a second and device first."""
  seconds = "{} against {}".format(*(units.seconds(e.time.total_s) for e in (w.b, w.a)))
  if same_work(w.a, w.b):
    return seconds
  rates = (e.tokens_per_s / e.deployment.strategy.devices for e in (w.b, w.a))
  rates = "{} against {}".format(*(units.rate(rate, "tokens/s") for rate in rates))
  return f"{rates} a device; a step takes {seconds}"


def _names(w: Why) -> tuple[str, str]:
  """Of both plans, told apart where they have one name."""
  a, b = w.a.deployment.name, w.b.deployment.name
  return (a, b) if a != b else (f"A ({a})", f"B ({b})")


def _memory_verdict(w: Why) -> str:
  difference = w.b.memory.total - w.a.memory.total
  more = f"{units.bytes_(abs(difference))} {'more' if difference > 0 else 'less'}"
  return f"a device needs {more if difference else 'as much'} memory"


def _named(w: Why, along: int = 1) -> list[Term]:
  """The terms that go the verdict's way (or with -1 the other) and matter most."""
  terms = _compared(w)
  whole = sum(term.difference for term in terms)
  going = [term for term in terms if term.difference * whole * along > 0]
  most = sum(abs(term.difference) for term in terms)
  return [term for term in going if abs(term.difference) >= LEAST_SHARE * most][:NAMED]


def _offset(w: Why) -> str:
  against = ", ".join(_change(term) for term in _named(w, -1))
  return f"; against that, {against}" if against else ""


def _change(term: Term) -> str:
  return f"{_spaced(term.name)} {units.seconds(abs(term.difference))} {'less' if term.difference < 0 else 'more'}"


def _reason(w: Why, term: Term) -> str:
  return f"{_change(term)}, for {_contrast(fact(w.a, term.name), fact(w.b, term.name), bool(term.a), bool(term.b))}"


def _contrast(a: str, b: str, in_a: bool = True, in_b: bool = True) -> str:
  """`b, not a`; or what both have."""
  if not in_b:
    return f"it has none, where the other has {a}"
  if not in_a:
    return f"{b}, where the other has none"
  return f"{b}, not {a}" if a != b else f"{b} in both"


def tables(w: Why) -> list[Table]:
  found = [_plans(w)]
  for kind in kinds(w).values():
    if kind.terms:
      found.append(_numbers(kind))
    if any(term.difference for term in kind.terms):
      found.append(_reasons(w, kind))
  return found


def _plans(w: Why) -> Table:
  rows = [
    (
      letter,
      e.deployment.name,
      e.deployment.strategy.product,
      units.seconds(e.time.total_s),
      units.bytes_(e.memory.total),
      units.rate(e.tokens_per_s / e.deployment.strategy.devices, "tokens/s"),
      units.percent(e.mfu),
      SOURCE,
    )
    for letter, e in (("A", w.a), ("B", w.b))
  ]
  return Table("Plans", ["", "plan", "devices", "step", "memory", "a device", "MFU", "source"], rows)


def _numbers(kind: Kind) -> Table:
  total = Term("total", sum(t.a for t in kind.terms), sum(t.b for t in kind.terms))
  rows = [
    (
      _spaced(term.name),
      kind.shown(term.a),
      kind.shown(term.b),
      _signed(kind.shown, term.difference),
      _percent(1.0 if term is total and total.difference else share(term, kind.terms)),
      SOURCE,
    )
    for term in [*kind.terms, total]
  ]
  return Table(kind.title, ["term", "A", "B", "B - A", "of the difference", "source"], rows)


def _reasons(w: Why, kind: Kind) -> Table:
  """What lies behind each term that differs."""
  rows = [
    (_spaced(t.name), kind.fact(w.a, t.name) if t.a else "-", kind.fact(w.b, t.name) if t.b else "-")
    for t in kind.terms
    if t.difference
  ]
  return Table(f"Behind it: {kind.title[0].lower()}{kind.title[1:]}", ["term", "A", "B"], rows)


def _spaced(name: str) -> str:
  return name.replace("_", " ")


def _signed(shown: Shown, number: float) -> str:
  return shown(number) if number <= 0 else f"+{shown(number)}"


def _percent(number: float | None) -> str:
  return "-" if number is None else units.percent(number)


def document(w: Why) -> dict[str, Any]:
  """Seconds, bytes and FLOPs of both plans."""
  return {
    "verdict": verdict(w),
    "source": SOURCE,
    **{letter: _plan(e) for letter, e in (("a", w.a), ("b", w.b))},
    "terms": {name: [_term(w, kind, term) for term in kind.terms] for name, kind in kinds(w).items()},
  }


def _plan(e: Estimate) -> dict[str, Any]:
  d = e.deployment
  return {
    "deployment": d.name,
    "product": d.strategy.product,
    "step_s": e.time.total_s,
    "memory_bytes": float(e.memory.total),
    "tokens_per_s_per_device": e.tokens_per_s / d.strategy.devices,
    "mfu": e.mfu,
  }


def _term(w: Why, kind: Kind, term: Term) -> dict[str, Any]:
  return {
    "term": term.name,
    "a": term.a,
    "b": term.b,
    "difference": term.difference,
    "share_of_difference": share(term, kind.terms),
    "behind_a": kind.fact(w.a, term.name) if term.a else None,
    "behind_b": kind.fact(w.b, term.name) if term.b else None,
  }
