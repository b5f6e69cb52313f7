"""The HTML page says what the JSON says, is whole by itself, and harms nobody; its figures obey their formulas."""

import collections
import dataclasses
import os
import re
from importlib import resources

import pytest
import tiny
from html_pages import SECTIONS, Page

from jaxmoe.cli.exit_codes import ExitCode
from jaxmoe.cli.main import main
from jaxmoe.config.catalogue import deployment_names, load_deployment
from jaxmoe.config.deployment import Reading
from jaxmoe.cost.estimate import estimate
from jaxmoe.meshes.strategy import Strategy
from jaxmoe.report import html_pipeline, html_placement, html_roofline
from jaxmoe.report.html import page, sections
from jaxmoe.report.html_parts import Number
from jaxmoe.report.rules import FAULTS, REWRITES, RULES
from jaxmoe.report.verification import document
from jaxmoe.xla.compare import compare
from jaxmoe.xla.compiled import compile_step

VERDICTS = {True: "ok", False: "FAILS"}


def test_every_tag_is_closed_and_every_section_is_there(tiny_step):
  found = Page(page(*tiny_step))
  assert found.faults == []
  assert [attributes["id"] for tag, attributes in found.elements if tag == "section"] == list(SECTIONS)


def test_nothing_comes_from_outside_and_nothing_runs(tiny_step):
  text = page(*tiny_step)
  elements = Page(text).elements
  assert not {tag for tag, _ in elements} & {"script", "iframe", "object", "embed", "img", "link", "base", "form"}
  names = [name for _, attributes in elements for name in attributes]
  assert [name for name in names if name.startswith("on") or name in ("src", "xlink:href", "srcset")] == []
  ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
  assert {attributes["href"].removeprefix("#") for _, attributes in elements if "href" in attributes} <= ids
  assert not re.search(r"https?:|url\(|@import|javascript:", text)


def test_every_check_and_its_numbers_are_those_of_the_json(tiny_step):
  rows = Page(page(*tiny_step)).tables["Predicted and compiled"][1:]
  expected = [
    [c["name"], c["axis"] or "-", c["predicted"], c["program"], c["compiled"], c["relative_error"], VERDICTS[c["ok"]]]
    for c in document(tiny_step[0])["checks"]
  ]
  shown = [[*row[:6], row[7]] for row in rows]
  assert [[None if cell == "-" and place == 3 else cell for place, cell in enumerate(row)] for row in shown] == expected


def test_memory_rewrites_and_flops_are_those_of_the_json(tiny_step):
  tables, json = Page(page(*tiny_step)).tables, document(tiny_step[0])
  memory = {f"{name}_bytes": size for name, size, _ in tables["As the compiler allocates"][1:]}
  assert {name: memory[name] for name in json["memory_bytes"] if name != "needed_is"} == {
    name: size for name, size in json["memory_bytes"].items() if name != "needed_is"
  }
  classes = {name: compiled for name, _, compiled, _ in tables["Classes"][1:] if compiled != "-"}
  assert classes == json["class_bytes"]
  rewrites = [(r["kind"], r["axis"], r["planned_bytes"], r["executed_bytes"]) for r in json["rewrites"]]
  assert [tuple(row[:4]) for row in tables["What the backend made of the collectives"][1:]] == rewrites
  total = {row[0]: row[1:] for row in tables["Matmul FLOPs"]}["all matmuls"]
  assert total[1:] == [json["flops"]["executed"], json["flops"]["useful"]]


def test_every_table_of_numbers_says_whose_they_are(tiny_step):
  words = ("source", "formula", "program", "compiled", "measured", "document")
  for section in sections(*tiny_step):
    for table in section.tables:
      if any(isinstance(cell, Number) for row in table.rows for cell in row):
        assert any(word in header for header in table.headers for word in words), table.title


def test_the_same_input_gives_the_same_page(tiny_step):
  """Also where a set's order decided that of a dictionary."""
  c, e = tiny_step
  classes = {**c.fit.class_bytes, "one": 1, "other": 1}

  def with_classes(ordered):
    return dataclasses.replace(c, fit=dataclasses.replace(c.fit, class_bytes=dict(ordered)))

  assert page(with_classes(classes.items()), e) == page(with_classes(reversed(classes.items())), e)


HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>&amp;"


def test_hostile_names_stay_text(tiny_step):
  c, e = tiny_step
  reading = Reading(statement=HOSTILE, reading=HOSTILE)
  model = dataclasses.replace(c.deployment.model, name=HOSTILE)
  cluster = dataclasses.replace(c.deployment.cluster, name=HOSTILE, assumptions={HOSTILE: HOSTILE})
  named = {"name": HOSTILE, "title": HOSTILE, "document": HOSTILE, "model": model, "cluster": cluster}
  d = dataclasses.replace(c.deployment, **named, readings=(reading,))
  step = dataclasses.replace(c.compiled, versions={HOSTILE: HOSTILE}, notes=(HOSTILE,))
  found = Page(page(dataclasses.replace(c, deployment=d, target=HOSTILE, compiled=step), estimate(d)))
  assert found.faults == []
  harmless = Page(page(c, e))
  assert {tag for tag, _ in found.elements} == {tag for tag, _ in harmless.elements}
  assert found.text.count(HOSTILE) > 10


JOBS = {
  "one device": (Strategy(), {}),
  "prefill": (Strategy(stage=2, tensor=2), {"kind": "prefill"}),
  "decode": (Strategy(expert=2), {"kind": "decode", "microbatches": 1}),
  "gather": (Strategy(expert=4), {"transport": "gather"}),
}


@pytest.mark.parametrize("name", JOBS)
def test_every_kind_of_job_has_a_page(name):
  strategy, job = JOBS[name]
  d = tiny.deployment(strategy, **job)
  c = compare(d, "cpu", compile_step(d))
  found = Page(page(c, estimate(d)))
  assert found.faults == []
  assert len(found.tables["Predicted and compiled"]) == 1 + len(c.checks)
  assert ("No device speaks to another." in found.text) == (name == "one device")


def test_the_verdict_comes_first(tiny_step):
  c, e = tiny_step
  agreeing = page(c, e)
  assert '<strong class="good">agrees</strong>' in agreeing
  assert agreeing.index("<strong") < agreeing.index("<section")
  wrong = dataclasses.replace(c, checks=[dataclasses.replace(c.checks[0], compiled=1.0), *c.checks[1:]])
  text = page(wrong, e)
  assert '<strong class="bad">disagrees</strong>' in text
  assert '<td class="bad">FAILS</td>' in text and f"Check fails: {c.checks[0].name}" in text
  assert Page(text).tables["Where the disagreements lie"][1][:3] == [c.checks[0].name, "-", "compiler"]
  assert f"Lies in compiler: {FAULTS['compiler']}" in text and "Lies in" not in agreeing
  small = dataclasses.replace(c, fit=dataclasses.replace(c.fit, capacity_bytes=1000))
  assert '<strong class="bad">does not fit</strong>' in page(small, e)


def test_a_collective_that_nobody_planned_is_a_warning(tiny_step):
  c, e = tiny_step
  first = dataclasses.replace(c.rewrites[0], names=("unplanned",))
  assert "Unplanned collective: " in page(dataclasses.replace(c, rewrites=[first, *c.rewrites[1:]]), e)


def test_every_check_falls_under_one_rule_with_its_tolerance(tiny_step):
  for check in tiny_step[0].checks:
    rules = [rule for rule in RULES if rule.covers(check)]
    assert [(rule.tolerance, rule.at_least) for rule in rules] == [(check.tolerance, check.at_least)], check.name


def test_every_rewrite_of_a_comparison_has_a_meaning(tiny_step):
  assert {name for rewrite in tiny_step[0].rewrites for name in rewrite.names} <= REWRITES.keys()


SCHEDULES = {"gpipe": {}, "1f1b": {}, "interleaved": {"chunks": 2}, "zero_bubble": {}}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_timeline_idles_as_the_estimate_says(name):
  """The figure lays out a table of work; the estimate uses facts measured on it."""
  job = {"schedule": name, "microbatches": 4, "remat": "full", **SCHEDULES[name]}
  e = estimate(tiny.deployment(Strategy(stage=2, expert=2), **job))
  timeline = html_pipeline.timed(e.deployment)
  assert max(timeline.idle) == pytest.approx(e.time.bubble)
  (figure,) = html_pipeline.pipeline(e).figures
  kinds = 3 if name == "zero_bubble" else 2
  assert [len(lane) for lane in figure.lanes] == [4 * kinds * e.deployment.job.chunks] * 2


@pytest.mark.parametrize("name", deployment_names())
def test_figures_of_every_document_stay_inside(name):
  e = estimate(load_deployment(name))
  timelines, d = html_pipeline.pipeline(e).figures, e.deployment
  passes = 2 if d.train else 1
  assert len(timelines) == (passes * d.strategy.stage * d.microbatches <= 2048)  # beyond, they are not drawn
  for lanes in timelines:
    assert max(left + width for lane in lanes.lanes for _, _, left, width, _ in lane) == pytest.approx(100, abs=0.01)
  (roofline,) = html_roofline.roofline(e).figures
  corners = [corner for _, line in roofline.roofs for corner in line]
  assert all(0 <= place <= 100 for corner in corners for place in corner)
  assert all(0 < x < 100 and 0 < y < 100 for _, _, x, y, _ in roofline.points)
  for grid in html_placement.placement(e.deployment).figures:
    assert len(grid.cells) == e.deployment.strategy.devices


def test_roofline_by_hand():
  """At peak 1e12, half reached, and 1e12 B/s, half reached: the ridge is at 1 FLOP a byte, and points keep under it."""
  e = estimate(tiny.deployment())
  for part in html_roofline.parts(e.deployment):
    assert part.flops / part.seconds <= 0.5e12 * min(1, part.intensity) * (1 + 1e-9)
  (figure,) = html_roofline.roofline(e).figures
  powers = {text: x for x, text in figure.x_ticks}
  assert [corners[1][0] for _, corners in figure.roofs] == [powers["1"]] * 2


def test_too_many_stages_are_said_and_not_drawn():
  section = html_pipeline.pipeline(estimate(tiny.deployment(Strategy(stage=32), sizes={"num_layers": 32})))
  assert not section.figures
  assert section.text[0] == "32 stages and 2 microbatches are too many to draw."


def test_of_many_devices_the_first_are_drawn():
  tier = dataclasses.replace(tiny.CLUSTER.tiers[1], devices=2048)
  cluster = dataclasses.replace(tiny.CLUSTER, devices=2048, tiers=(tier,))
  wide = dataclasses.replace(tiny.deployment(batch=4096), cluster=cluster, strategy=Strategy(data=2048))
  section = html_placement.placement(wide)
  assert section.text[1] == "The first 1,024 of 2,048 devices are drawn."
  assert [len(grid.cells) for grid in section.figures] == [1024]


def test_terms_of_time_fill_the_bar(tiny_step):
  section = next(section for section in sections(*tiny_step) if section.id == "time")
  ((_, pieces),) = section.figures[0].rows
  assert pieces[-1].left + pieces[-1].width == pytest.approx(100, abs=0.01)
  assert sum(piece.number.value for piece in pieces) == pytest.approx(tiny_step[1].time.total_s)


def test_colours_can_be_told_from_the_ground_and_read_on():
  """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what is drawn."""
  css = (resources.files("jaxmoe.report") / "templates" / "report.css").read_text()
  light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in css.split("@media screen")[:2])
  for scheme in (light, {**light, **dark}):
    for text in ("text", "quiet", "good", "bad", "link"):
      assert contrast(scheme[text], scheme["back"]) >= 4.5, text
    for series in range(8):
      assert contrast(scheme[f"s{series}"], scheme["back"]) >= 3
      assert contrast("#000000", scheme[f"s{series}"]) >= 4.5
  assert collections.Counter(light).keys() >= dark.keys()


def contrast(one, other):
  high, low = sorted((luminance(one), luminance(other)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def luminance(colour):
  channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
  return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.fixture
def verified(tiny_step, monkeypatch):
  """`verify` that compiles nothing; how often it ran."""
  runs = []
  monkeypatch.setattr("jaxmoe.xla.verify.verify", lambda *arguments: runs.append(arguments) or tiny_step[0])
  monkeypatch.setattr("jaxmoe.cli.verify.deployment_of", lambda name: tiny_step[0].deployment)
  return runs


def test_the_option_writes_the_page_beside_the_answer(tiny_step, verified, tmp_path, capsys):
  file = tmp_path / "report.html"
  file.write_text("old")
  assert main(["verify", "tiny", "--json", "--html", str(file)]) == ExitCode.DONE
  assert file.read_text() == page(*tiny_step)
  assert capsys.readouterr().out.startswith("{")
  assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["", ".", "missing/report.html", "n" * 300, "pipe"])
def test_a_place_that_cannot_be_written_is_refused_before_the_compile(name, verified, tmp_path, monkeypatch, capsys):
  os.mkfifo(tmp_path / "pipe")
  monkeypatch.chdir(tmp_path)
  assert main(["verify", "tiny", "--html", name]) == ExitCode.USAGE
  assert capsys.readouterr().err.count("\n") == 1
  assert verified == []
  assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_a_write_that_fails_leaves_the_old_page(verified, tmp_path, monkeypatch, capsys):
  file = tmp_path / "report.html"
  file.write_text("old")

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("jaxmoe.cli.whole_file.os.fsync", full)
  assert main(["verify", "tiny", "--html", str(file)]) == ExitCode.USAGE
  assert "no space left" in capsys.readouterr().err
  assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])
