"""A page of a step that ran: prediction, compiler and clock side by side; and the compiler's own estimate of time."""

import dataclasses

from html_pages import SECTIONS, Page

from jaxmoe.report.html import page, sections
from jaxmoe.report.verification import document, tables
from jaxmoe.xla.measured import Measured

CLOCK = Measured(
  device="TPU v5p", platform="tpu", devices=8, seconds=(0.5, 0.25, 0.125), warm_up=2, versions={"jax": "9"},
  shares={"compute": 0.5, "collective": 0.25, "idle": 0.25}, peak_bytes=3 * 2**20,
)  # fmt: skip


def test_a_measured_step_stands_beside_prediction_and_compiler(tiny_step):
  """By hand: 16 sequences of 16 tokens in a quarter of a second."""
  c, e = tiny_step
  c = dataclasses.replace(c, compiled=dataclasses.replace(c.compiled, optimal_s=0.0625))
  text = page(c, e, CLOCK)
  found = Page(text)
  assert found.faults == []
  assert [a["id"] for tag, a in found.elements if tag == "section"] == ["measured", *SECTIONS]
  header, *rows = found.tables["Predicted, compiled and measured"]
  assert header == ["what", "predicted (formula)", "compiled", "measured"]
  sides = {row[0]: row[1:] for row in rows}
  assert sides["one step"] == [e.time.total_s, 0.0625, 0.25]
  assert sides["tokens"] == [e.tokens_per_s, "-", 16 * 16 / 0.25]
  assert sides["useful matmuls of a device"][2] == c.useful_flops / 0.25
  assert sides["memory of a device"] == [e.memory.total, c.compiled.memory.total_bytes, 3 * 2**20]
  assert sides["matmuls of a device"] == [c.compiled.traced.flops, c.compiled.flops, "-"]
  assert sides["share of collectives"] == [e.time.network_s / e.time.total_s, "-", 0.25]
  assert sum(row[2] for name, row in sides.items() if name.startswith("share")) == 1
  assert "250 ms a step on 8 TPU v5p" in text
  for section in sections(c, e, CLOCK)[:1]:
    assert all({"source", "measured"} & set(table.headers) for table in section.tables)


def test_a_step_without_a_prediction_of_time_has_a_page(tiny_step):
  """A reduced copy computes in float32, for which a cluster may state no peak."""
  c, _ = tiny_step
  found = Page(page(c, None, dataclasses.replace(CLOCK, peak_bytes=None, shares={})))
  assert found.faults == []
  assert [a["id"] for tag, a in found.elements if tag == "section"] == ["measured", "checks", "notes", "versions"]
  rows = {row[0]: row[1:] for row in found.tables["Predicted, compiled and measured"][1:]}
  assert rows["one step"] == ["-", "-", 0.25] and rows["memory of a device"][2] == "-"
  assert rows["matmuls of a device"][0] == c.compiled.traced.flops


def test_the_compilers_own_time_stands_beside_the_planners(tiny_step):
  c, e = tiny_step
  said = dataclasses.replace(c, compiled=dataclasses.replace(c.compiled, optimal_s=0.0625))
  name = "the compiler's estimate, loops counted once"
  rates = {row[0]: row[1:] for row in Page(page(said, e)).tables["Rates"]}
  assert rates[name] == [0.0625, "compiled"]
  assert name not in {row[0] for row in Page(page(c, e)).tables["Rates"]}
  assert document(said)["step_s"] == {"predicted": e.time.total_s, "compiled": 0.0625}
  assert document(c)["step_s"]["compiled"] is None
  rows = {row[0]: row[1:] for row in tables(said)[-1].rows}
  assert rows["step, by the compiler's estimate"][0] == "62.5 ms"
  assert rows["step on lab, by the planner"][1] == "formula"
