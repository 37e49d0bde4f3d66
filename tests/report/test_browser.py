"""A page in a real Chromium: from its file, without a request or an error, at three widths, light and dark.

One browser and two pages for all of it. Needs Chromium, and the extra `browser` (playwright and axe-core).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxprune.report.page import html
from tests.report import documents

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000.0  # milliseconds, of a machine that does much else


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
    pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed (extra browser)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    # Chromium's own sandbox refuses to run for root.
    arguments = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with api.sync_playwright() as p:
        own = p.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE)
        yield own
        own.close()


class Opened:
    """A page that was opened from a file, with what it said and asked for."""

    def __init__(self, browser: Any, text: str, path: Path) -> None:
        path.write_text(text, encoding="utf-8")
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        assert self.asked[0] == path.as_uri()

    def quiet(self) -> bool:
        """Whether nothing was said on the console, and nothing asked for but the file."""
        return not self.said and all(url.startswith("data:") for url in self.asked[1:])


def test_a_page_of_a_run(browser: Any, tmp_path: Path):
    """Fails where something is asked for or said, the keys do nothing, or a reader is kept out."""
    opened = Opened(browser, html(documents.charted()), tmp_path / "page.html")
    page = opened.page
    rows = page.locator(".net li")
    rows.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.querySelector('.name').textContent") == "/3/conv1/Conv"
    assert page.evaluate("getComputedStyle(document.activeElement.querySelector('.tip')).clipPath") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.net li:last-child .tip')).clipPath") != "none"

    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("[data-curve] svg").count() == len(documents.charted()["curves"])
    looked_over(opened)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def looked_over(opened: Opened) -> None:
    """Fits in at three widths, keeps no reader out, light or dark, and says and asks for nothing."""
    from axe_playwright_python.sync_playwright import Axe

    page = opened.page
    for width in (390, 800, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
    assert opened.quiet(), (opened.said, opened.asked)


def test_a_page_of_a_sweep(browser: Any, tmp_path: Path):
    """Fails where the slider does not begin at the best ratio, tells another point, or leaves the chart as it was."""
    opened = Opened(browser, html(documents.swept()), tmp_path / "sweep.html")
    page = opened.page
    page.wait_for_selector("[data-front] svg")
    assert page.locator("#chosen").inner_text() == "30%"
    marked = "document.querySelector('[data-front]').innerHTML"
    before = page.evaluate(marked)
    slider = page.locator("#ratio")
    slider.focus()
    for _ in range(2):
        slider.press("ArrowRight")
    assert page.locator("#chosen").inner_text() == "50%"
    assert "10.00%" in page.locator("#point").inner_text()
    assert page.evaluate(marked) != before
    assert slider.get_attribute("aria-valuetext") == "ratio 50%"
    looked_over(opened)


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path):
    """Fails where a name of the model runs, or breaks the page's own scripts."""
    opened = Opened(browser, html(documents.evil(documents.charted())), tmp_path / "hostile.html")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("[data-curve] svg").count() == len(documents.charted()["curves"])
    assert opened.quiet(), (opened.said, opened.asked)
