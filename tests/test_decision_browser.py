"""The page of a decision in a real browser: whole at every width, in both themes, on paper, without a network."""

from __future__ import annotations

from pathlib import Path

import decision_fixtures as made
import pytest
from test_report_browser import CHROMIUM, OVERLAPS, RIGHTS, SHOWN, Page, visit

from breakeven.pages.decision_html import write_decision_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here, so the page was not looked at: apt-get install chromium"
)
PAGES = ("full", "no_difference", "nobody", "both", "many", "one_load", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every made-up decision's page by name."""
    folder = tmp_path_factory.mktemp("decisions")
    return {name: write_decision_report(getattr(made, name)(), folder / f"{name}.html") for name in PAGES}


def test_pages_fit_every_window_and_their_charts_are_whole(pages: dict[str, Path], tmp_path: Path) -> None:
    async def act(page: Page) -> None:
        for name, file in pages.items():
            sentence = getattr(made, name)().verdict.sentence
            for width, kind in ((360, "narrow"), (1200, "wide")):
                await page.open(file, width)
                await page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                where = f"{name} at {width}"
                assert await page.evaluate("document.querySelector('h1').textContent") == sentence, where
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, where
                figures = await page.evaluate("document.querySelectorAll('figure').length")
                assert await page.evaluate(f"{SHOWN}.length") == figures, where
                assert await page.evaluate(f"{SHOWN}.every(s => s.parentElement.classList.contains('{kind}'))"), where
                # No letter is cut off at the window's edge, covered by another, or shrunk.
                assert await page.evaluate(f"Math.max(0, ...{RIGHTS})") <= width, where
                assert await page.evaluate(OVERLAPS) == [], where
                scale = f"{SHOWN}.map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
                assert await page.evaluate(f"Math.min(1, ...{scale})") > 0.9, where
        assert {request.split(":")[0] for request in page.requests} == {"file"}
        assert page.complaints == []

    visit(tmp_path, act)


def test_pages_follow_the_theme_and_print_whole(pages: dict[str, Path], tmp_path: Path) -> None:
    fill = "getComputedStyle(document.querySelector('figure svg text')).fill"
    overflow = "[...document.querySelectorAll('.scroll')].map(s => s.firstElementChild.scrollWidth - s.clientWidth)"

    async def act(page: Page) -> None:
        for name in ("full", "many"):
            await page.open(pages[name], dark=False)
            light = await page.evaluate(fill)
            await page.open(pages[name], dark=True)
            assert await page.evaluate(fill) != light
            await page.open(pages[name], width=680, dark=True, paper=True)
            assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 27, 26)"
            assert max(await page.evaluate(overflow)) <= 0
        await page.print(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")

    visit(tmp_path, act)
