"""A page's memory: classes and allocation, predicted and compiled, against what a device has."""

import dataclasses

from jaxmoe.cost.estimate import SOURCE, Estimate
from jaxmoe.report import temporaries, units
from jaxmoe.report.html_parts import Bars, Measure, Section, Stacks, bars, of_bytes, of_share, percent, stack
from jaxmoe.report.table import Table
from jaxmoe.xla.compare import Comparison

COMPILED, DOCUMENT = "compiled", "document"


def memory(c: Comparison, e: Estimate) -> Section:
  """Classes of memory against what a device has."""
  predicted = {name: size for name, size in dataclasses.asdict(e.memory).items() if size}
  compiled, room = c.compiled.memory, c.fit.capacity_bytes
  parts = {
    "arguments": compiled.argument_bytes,
    "results beside them": compiled.output_bytes - compiled.alias_bytes,
    "temporaries": compiled.temp_bytes,
  }
  whole = max(room, e.memory.total, compiled.total_bytes)
  rows = [
    (f"predicted by class ({SOURCE}): {units.bytes_(e.memory.total)}", stack(_measures(predicted, SOURCE), whole)),
    (f"{COMPILED}: {units.bytes_(compiled.total_bytes)}", stack(_measures(parts, COMPILED), whole)),
  ]
  name = f"capacity {units.bytes_(room)} ({DOCUMENT})"
  return Section(
    "memory",
    "Memory of one device",
    _memory_text(c),
    [Stacks("Against capacity", rows, percent(room, whole), name), _classes_figure(c, predicted)],
    [_classes_table(c, predicted), *temporaries.tables(c), _allocation(c)],
  )


def _measures(sizes: dict[str, int], source: str) -> list[Measure]:
  return [(name, of_bytes(size), source) for name, size in sizes.items()]


def _memory_text(c: Comparison) -> list[str]:
  fit = c.fit
  fits = "fits" if fit.ok else f"does not fit, by {units.bytes_(fit.excess_bytes)}"
  needed = f"At least {units.bytes_(fit.needed_bytes)} ({COMPILED}: {fit.counted})"
  text = [f"{needed} of {units.bytes_(fit.capacity_bytes)} ({DOCUMENT}): {fits}."]
  if c.compiled.platform == "cpu":
    text.append("The CPU backend widens 8 and 16 bits to 32, so its temporaries are shown and not judged.")
  return text


def _classes_figure(c: Comparison, predicted: dict[str, int]) -> Bars:
  """Classes that both sides know, side by side; what is only predicted is temporary to the compiler."""
  groups = []
  for name in _classes(c, predicted):
    group = [("predicted", of_bytes(predicted[name]), SOURCE)] if name in predicted else []
    if name in c.fit.class_bytes:
      group.append((COMPILED, of_bytes(c.fit.class_bytes[name]), COMPILED))
    groups.append((name, group))
  return bars("By class, to the scale of the largest", groups)


def _classes(c: Comparison, predicted: dict[str, int]) -> list[str]:
  """Those of the plan in its order, then the compiler's others."""
  return list(dict.fromkeys([*predicted, *sorted(c.fit.class_bytes)]))


def _classes_table(c: Comparison, predicted: dict[str, int]) -> Table:
  rows = [
    (
      name,
      of_bytes(predicted[name]) if name in predicted else "-",
      of_bytes(c.fit.class_bytes[name]) if name in c.fit.class_bytes else "-",
      of_share(max(predicted.get(name, 0), c.fit.class_bytes.get(name, 0)) / c.fit.capacity_bytes),
    )
    for name in _classes(c, predicted)
  ]
  return Table("Classes", ["class", f"predicted ({SOURCE})", COMPILED, "of capacity"], rows)


def _allocation(c: Comparison) -> Table:
  sizes = {
    **dataclasses.asdict(c.compiled.memory),
    "total_bytes": c.compiled.memory.total_bytes,
    "needed_bytes": c.fit.needed_bytes,
    "padding of arguments": c.compiled.argument_padding_bytes,
    "padding of aliases": c.compiled.alias_padding_bytes,
  }
  rows = [(name.removesuffix("_bytes"), of_bytes(size), COMPILED) for name, size in sizes.items()]
  return Table("As the compiler allocates", ["what", "size", "source"], rows)
