"""Promises of the page in a real browser: drawn, quiet, offline, within the screen, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Browser, chromium
from tests.report.conftest import Trained
from tests.report.test_page import spoiled

WIDTHS = {"phone": 390, "desktop": 1280}
DRAWN = "[...document.querySelectorAll('.plot')].filter(plot => plot.querySelector('.scatterlayer .trace')).length"
UNFOLDED = "[...document.querySelectorAll('.plot')].filter(plot => !plot.closest('details:not([open])')).length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_is_drawn_within_the_screen_without_a_complaint_or_a_request(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value(DRAWN) == browser.value(UNFOLDED) > 10
    assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
    paper, ink = (browser.value(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert is_dark(paper) == dark
    assert is_dark(ink) != dark
    assert is_dark(browser.value("getComputedStyle(document.querySelector('.xtick text')).fill")) != dark


def test_folded_figures_are_drawn_when_they_are_opened(browser: Browser, page: Path) -> None:
    browser.open(page, width=WIDTHS["desktop"])
    before = browser.value(DRAWN)
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    wait_for(browser, f"{DRAWN} === document.querySelectorAll('.plot').length")
    assert browser.value(DRAWN) > before
    assert browser.value("document.documentElement.scrollWidth") == WIDTHS["desktop"]
    assert browser.complaints == []


def test_a_button_hides_its_group_in_every_figure_and_shows_it_again(browser: Browser, page: Path) -> None:
    shown = "[...document.querySelectorAll('.plot[data-drawn]')].flatMap(p => p.data).filter(t => t.visible !== false)"
    of_group = f"{shown}.filter(trace => trace.legendgroup === 'no-imc').length"
    browser.open(page, width=WIDTHS["phone"])
    before, others = browser.value(of_group), browser.value(f"{shown}.length")
    browser.value("document.querySelector('button[data-group=no-imc]').click()")
    assert browser.value(of_group) == 0
    assert browser.value(f"{shown}.length") == others - before
    browser.value("document.querySelector('button[data-group=no-imc]').click()")
    assert browser.value(of_group) == before > 10


def test_a_button_shows_each_seed_and_hides_it_again(browser: Browser, page: Path) -> None:
    drawn = "[...document.querySelectorAll('.plot[data-drawn]')].flatMap(p => p.data)"
    seeds = f"{drawn}.filter(trace => trace.meta?.seeds_of !== undefined)"
    shown = f"{seeds}.filter(trace => trace.visible !== false)"
    browser.open(page, width=WIDTHS["phone"])
    assert browser.value(f"{seeds}.length") > 5
    assert browser.value(f"{shown}.length") == 0
    browser.value("document.querySelector('button[data-seeds]').click()")
    assert browser.value(f"{shown}.length") == browser.value(f"{seeds}.length")
    assert browser.value(f"{seeds}.every(trace => trace.x.length === trace.y.length && trace.x[0] > 0)")
    browser.value("document.querySelector('button[data-group=no-imc]').click()")
    assert browser.value(f"{shown}.filter(trace => trace.legendgroup === 'no-imc').length") == 0
    browser.value("document.querySelector('button[data-group=no-imc]').click()")
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    wait_for(browser, f"{DRAWN} === document.querySelectorAll('.plot').length")
    assert browser.value(f"{shown}.length") == browser.value(f"{seeds}.length")  # also of those drawn since
    browser.value("document.querySelector('button[data-seeds]').click()")
    assert browser.value(f"{shown}.length") == 0


def test_an_open_page_follows_the_reader_into_the_dark(browser: Browser, page: Path) -> None:
    color = "getComputedStyle(document.querySelector('.xtick text')).fill"
    browser.open(page, width=WIDTHS["desktop"], dark=False)
    assert is_dark(browser.value(color))
    browser.prefer(dark=True)
    wait_for(browser, f"{color} !== 'rgb(27, 33, 41)'")
    assert not is_dark(browser.value(color))


def test_hostile_words_stay_words(browser: Browser, trained: Trained, tmp_path: Path) -> None:
    page = spoiled(trained, tmp_path)
    browser.open(page, width=WIDTHS["phone"])
    assert browser.value("document.title") != "hacked"
    assert browser.complaints == []
    assert browser.value("document.querySelectorAll('img:not([src^=\"data:image/jpeg\"])').length") == 0
    assert browser.value("document.documentElement.scrollWidth") == WIDTHS["phone"]


def wait_for(browser: Browser, condition: str) -> None:
    """For at most ten seconds."""
    browser.value(
        "new Promise((done, failed) => { const began = Date.now(); (function look() {"
        f"if ({condition}) done(); else if (Date.now() - began > 10000) failed(new Error('never')); else setTimeout(look, 20);"
        "})(); })"
    )


def is_dark(color: str) -> bool:
    """Of `rgb(r, g, b)`."""
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) < 3 * 128
