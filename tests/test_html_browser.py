"""The HTML page in headless Chromium: no overflow, no complaint, nothing blank, in light and dark, wide and narrow."""

import numpy as np
import pytest
from browser import CHROMIUM, Browser, pixels

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.cost.estimate import estimate
from jaxmoe.report.html import page
from jaxmoe.xla.verify import verify

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

DOCUMENTS = ("tp8_pp4_ep4_dp4", "ep256_pp16")  # all four axes and training; the deepest pipeline
GROUND = {"light": (255, 255, 255), "dark": (20, 23, 26)}

# Elements that reach beyond the window without standing in a box that scrolls.
SPILLING = """[...document.querySelectorAll("body *")].filter(x => !x.closest(".scroll, svg") &&
  x.getBoundingClientRect().right > innerWidth + 0.5).map(x => x.outerHTML.slice(0, 80))"""
# Sentences squeezed to a word a line.
SQUEEZED = """[...document.querySelectorAll("p, figcaption, caption, li")].filter(x =>
  x.getBoundingClientRect().width < Math.min(100, 6 * x.textContent.length)).map(x => x.textContent)"""
# Text drawn on a figure that reaches out of it; a figure in a box that scrolls is as wide as it needs.
CUT = """[...document.querySelectorAll("svg text")].filter(x => {
  const a = x.getBoundingClientRect(), b = x.closest("svg").getBoundingClientRect();
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).map(x => x.textContent)"""
HIDDEN = """[...document.querySelectorAll("header, section, figure, table")].filter(x =>
  !x.checkVisibility() || x.getBoundingClientRect().height < 20).map(x => x.id)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  browser = Browser(tmp_path_factory.mktemp("profile"))
  yield browser
  browser.close()


@pytest.fixture(scope="module", params=DOCUMENTS)
def url(request, tmp_path_factory):
  """The page of a document's real comparison."""
  d = load_deployment(request.param)
  file = tmp_path_factory.mktemp("page") / "report.html"
  file.write_text(page(verify(d, "cpu"), estimate(d)))
  return file.as_uri()


@pytest.mark.parametrize("scheme", GROUND)
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_fits_its_window_and_nothing_complains(browser, url, width, scheme):
  browser.open(url, width=width, scheme=scheme)
  wide, inner = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
  assert inner == width and wide <= inner
  assert browser.evaluate(SPILLING) == []
  assert browser.evaluate(SQUEEZED) == []
  assert browser.evaluate(CUT) == []
  assert browser.evaluate(HIDDEN) == []
  assert browser.evaluate("document.querySelectorAll('section').length") == 11
  assert browser.complaints() == []
  assert browser.requests() == [url]


@pytest.mark.parametrize("scheme", GROUND)
def test_the_screenshot_shows_something_on_the_right_ground(browser, url, scheme):
  browser.open(url, width=800, scheme=scheme)
  shot = pixels(browser.screenshot())
  assert shot.shape == (900, 800, 3)
  ground = (shot == GROUND[scheme]).all(axis=-1).mean()
  assert 0.5 < ground < 0.99
  assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 20


def test_paper_is_light_and_wide_enough(browser, url):
  """A4 less its margins is some 700 pixels, and has nothing to scroll."""
  browser.open(url, width=700, scheme="dark")
  browser.call(
    "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
  )
  assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
  assert browser.evaluate("document.documentElement.scrollWidth") <= 700
  browser.call("Emulation.setEmulatedMedia", media="")


def test_the_checks_catch_a_page_that_overflows_and_complains(browser, tmp_path):
  """A planted fault: else the tests above could pass on anything."""
  file = tmp_path / "bad.html"
  file.write_text("<!doctype html><section><p style='width: 5000px'>wide</p><script>nobody()</script></section>")
  browser.open(file.as_uri(), width=360)
  assert browser.evaluate("document.documentElement.scrollWidth") > 360
  assert browser.evaluate(SPILLING) != []
  assert browser.complaints() != []
