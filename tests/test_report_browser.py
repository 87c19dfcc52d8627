"""The page in a real browser: what it shows, that it fits a phone, that it asks nothing of a network."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import load_report_fixtures as made_load
import pytest
import report_fixtures as made

from breakeven.pages.html import write_capacity_report, write_load_report, write_report
from breakeven.results.comparison import Comparison
from breakeven.results.load import CapacityStudy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here, so the page was not looked at: apt-get install chromium"
)


class Page:
    """One tab, driven over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return (await self._until(lambda message: message.get("id") == number))["result"]

    async def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            if wanted(message):
                return message

    async def open(self, file: Path, width: int = 1200, dark: bool = False, paper: bool = False) -> None:
        for domain in ("Page", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme])
        await self.call("Page.navigate", url=file.resolve().as_uri())
        await self._until(lambda message: message.get("method") == "Page.loadEventFired")

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def screenshot(self, file: Path) -> None:
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    async def print(self, file: Path) -> None:
        printed = await self.call("Page.printToPDF", preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)
        file.write_bytes(base64.b64decode(printed["data"]))


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A Chromium with one empty tab; ended, and waited for, on the way out."""
    profile.mkdir(parents=True, exist_ok=True)
    log = (profile / "chromium.log").open("wb")
    # Chromium keeps its profile locked by home directory too, so it gets one of its own.
    environment = os.environ | {"HOME": str(profile)}
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        port = await _port(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = await answer.json()
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        log.close()


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        if process.poll() is not None:
            break
        await asyncio.sleep(0.1)
    raise AssertionError(f"Chromium did not start: {(file.parent / 'chromium.log').read_text()[-500:]}")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pages of the made-up comparisons by name, each written once."""
    folder = tmp_path_factory.mktemp("pages")

    def page(name: str) -> Path:
        file = folder / f"{name}.html"
        if not file.exists():
            result: Comparison = getattr(made, name)()
            write_report(result, file)
        return file

    return page


@pytest.fixture(scope="module")
def load_pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pages of the made-up runs under load by name, each written once."""
    folder = tmp_path_factory.mktemp("load-pages")

    def page(name: str) -> Path:
        file = folder / f"{name}.html"
        if not file.exists():
            study = getattr(made_load, name)()
            (write_capacity_report if isinstance(study, CapacityStudy) else write_load_report)(study, file)
        return file

    return page


def visit(profile: Path, act: Callable[[Page], Awaitable[None]]) -> None:
    async def run() -> None:
        async with browser(profile) as page:
            await act(page)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["two_models", "three_models", "same_twice", "urls_only", "hostile"])
def test_fits_a_phone_and_shows_the_verdict(name: str, pages: Callable[[str], Path], tmp_path: Path) -> None:
    headline = getattr(made, name)().verdict.headline

    async def act(page: Page) -> None:
        for width in (360, 1200):
            await page.open(pages(name), width)
            assert await page.evaluate("document.querySelector('h1').innerText") == headline
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate("document.querySelectorAll('script').length") == 0
        assert {request.split(":")[0] for request in page.requests} == {"file"}
        assert page.complaints == []

    visit(tmp_path, act)


def test_charts_fit_and_are_drawn_once_at_each_width(pages: Callable[[str], Path], tmp_path: Path) -> None:
    shown = "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().width > 0)"

    async def act(page: Page) -> None:
        for width, kind in ((360, "narrow"), (1200, "wide")):
            await page.open(pages("two_models"), width)
            figures = await page.evaluate("document.querySelectorAll('figure').length")
            assert figures == 6
            assert await page.evaluate(f"{shown}.length") == figures
            assert await page.evaluate(f"{shown}.every(s => s.getBoundingClientRect().right <= {width})")
            assert await page.evaluate(f"{shown}.every(s => s.parentElement.classList.contains('{kind}'))")
            # Letters keep a size that can be read: drawings are made for the width, not shrunk to it.
            smallest = f"Math.min(...{shown}.map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width))"
            assert await page.evaluate(smallest) > 0.9

    visit(tmp_path, act)


def test_theme_follows_the_reader(pages: Callable[[str], Path], tmp_path: Path) -> None:
    brightness = (
        "(element => getComputedStyle(element){}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)({})"
    )
    ground = brightness.format(".backgroundColor", "document.body")
    chart_text = brightness.format(".fill", "document.querySelector('figure svg text')")

    async def act(page: Page) -> None:
        await page.open(pages("two_models"), dark=False)
        assert await page.evaluate(ground) > 200 > 150 > await page.evaluate(chart_text)
        await page.open(pages("two_models"), dark=True)
        assert await page.evaluate(ground) < 60 < 140 < await page.evaluate(chart_text)

    visit(tmp_path, act)


def test_prints_on_paper(pages: Callable[[str], Path], tmp_path: Path) -> None:
    async def act(page: Page) -> None:
        await page.open(pages("two_models"), width=680, dark=True, paper=True)
        # Paper is light, whatever the screen is, and no table is cut where nobody can scroll.
        assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 27, 26)"
        overflow = "[...document.querySelectorAll('.scroll')].map(s => s.firstElementChild.scrollWidth - s.clientWidth)"
        assert max(await page.evaluate(overflow)) <= 0
        await page.print(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")

    visit(tmp_path, act)


LOAD_PAGES = ("crossing", "level", "one_endpoint", "one_point", "trace", "none_answered", "hostile", "capacity")
SHOWN = "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().width > 0)"
RIGHTS = f"{SHOWN}.flatMap(s => [...s.querySelectorAll('text')].map(t => t.getBoundingClientRect().right))"
# Boxes of all texts of a drawing that reach into each other by more than a hair.
OVERLAPS = f"""{SHOWN}.flatMap(drawing => {{
  const boxes = [...drawing.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4).map(([other, _]) => one + ' / ' + other));
}})"""


def test_load_pages_fit_every_window_and_their_charts_are_whole(
    load_pages: Callable[[str], Path], tmp_path: Path
) -> None:
    async def act(page: Page) -> None:
        for name in LOAD_PAGES:
            headline = getattr(made_load, name)().headline
            for width, kind in ((360, "narrow"), (1200, "wide")):
                await page.open(load_pages(name), width)
                await page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert await page.evaluate("document.querySelector('h1').textContent") == headline
                assert await page.evaluate("document.documentElement.scrollWidth") <= width
                figures = await page.evaluate("document.querySelectorAll('figure').length")
                assert await page.evaluate(f"{SHOWN}.length") == figures
                assert await page.evaluate(f"{SHOWN}.every(s => s.parentElement.classList.contains('{kind}'))")
                # No letter is cut off at the window's edge, covered by another, or shrunk.
                rights = (
                    f"{SHOWN}.flatMap(s => [...s.querySelectorAll('text')].map(t => t.getBoundingClientRect().right))"
                )
                assert await page.evaluate(f"Math.max(0, ...{rights})") <= width
                assert await page.evaluate(OVERLAPS) == [], f"{name} at {width}"
                scale = f"{SHOWN}.map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
                assert await page.evaluate(f"Math.min(1, ...{scale})") > 0.9
        assert {request.split(":")[0] for request in page.requests} == {"file"}
        assert page.complaints == []

    visit(tmp_path, act)


def test_load_pages_follow_the_theme_and_print_whole(load_pages: Callable[[str], Path], tmp_path: Path) -> None:
    fill = "getComputedStyle(document.querySelector('figure svg text')).fill"
    overflow = "[...document.querySelectorAll('.scroll')].map(s => s.firstElementChild.scrollWidth - s.clientWidth)"

    async def act(page: Page) -> None:
        for name in ("crossing", "capacity"):
            await page.open(load_pages(name), dark=False)
            light = await page.evaluate(fill)
            await page.open(load_pages(name), dark=True)
            assert await page.evaluate(fill) != light
            await page.open(load_pages(name), width=680, dark=True, paper=True)
            assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 27, 26)"
            assert max(await page.evaluate(overflow)) <= 0

    visit(tmp_path, act)
