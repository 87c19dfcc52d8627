"""The live page in a real browser, on a gateway whose numbers change: what it says, and that it stays readable."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from experts_seen_fixtures import backend_seen, seen
from gateway_seen_fixtures import API, DENSE, MOE, World

from breakeven.gateway.experts.report import ExpertsSeen
from breakeven.gateway.live.admin import admin_handler
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.seen.metrics import render
from breakeven.gateway.seen.record import Attempt
from breakeven.gateway.shared.layout import Count, Global, Known, State, UnderWay
from breakeven.wire.listen import open_sockets
from breakeven.wire.message import Request, Responder
from breakeven.wire.server import HttpServer

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

playwright = pytest.importorskip("playwright.async_api", reason="without playwright the page was not looked at")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium here, so the page was not looked at: apt-get install chromium"
    ),
]
RIGHTS = """[...document.querySelectorAll('main svg text')]
  .filter(t => t.getClientRects().length && !t.closest('.scroll')).map(t => t.getBoundingClientRect().right)"""
BARE = """[...document.querySelectorAll('main svg[role=img]')].filter(s => !s.getAttribute('aria-label')).length
  + [...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"""
CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (colour) => (Math.max(light(colour), paper) + 0.05) / (Math.min(light(colour), paper) + 0.05);
  const texts = [...document.querySelectorAll('main *')].filter(e => e.getClientRects().length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const colour = (e) => e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color;
  return Math.min(...texts.map(e => ratio(colour(e))));
})()"""
SHAPES = """[...document.querySelectorAll('#predicted-ttft .dot')]
  .map(p => p.getAttribute('d')).join('').split('M').length - 1"""


@dataclass
class Visit:
    """A page on a made-up gateway whose clock the test holds."""

    page: Page
    world: World
    url: str
    server: HttpServer
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    away: bool = False

    async def pass_s(self, seconds: float, rate: float, share: float, step: float = 10.0) -> None:
        """Time passes in the gateway and in the page alike."""
        for _ in range(round(seconds / step)):
            self.world.pass_s(step, rate, share)
            # Answers come over a real socket and take real time, while the page's clock stands.
            async with self.page.expect_response("**/admin/state"):
                await self.page.clock.fast_forward(step * 1000)

    async def text(self, selector: str) -> str:
        return await self.page.inner_text(selector)

    async def until(self, selector: str, part: str) -> None:
        """Wait until it says so; the page asks once a second of its own clock."""
        for _ in range(200):
            if part in await self.page.text_content(selector):
                return
            await self.page.clock.run_for(1000)
            await asyncio.sleep(0.02)
        raise AssertionError(f"{selector} says {await self.page.text_content(selector)!r} and never {part!r}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests; each has a context of its own in it."""
    async with playwright.async_playwright() as player:
        made = await player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        await made.close()


@asynccontextmanager
async def visit(
    browser: Browser, world: World, *, width: int = 1200, secret: str | None = None
) -> AsyncIterator[Visit]:
    sockets = open_sockets("127.0.0.1", 0, 1)
    answer = admin_handler(
        world.snapshot,
        lambda: render(world.block, world.plan, world.rows),
        secret,
        experts=lambda: world.experts or ExpertsSeen(version="0", time_s=world.now_s, backends=[]),
    )
    made: list[Visit] = []

    def handler(request: Request, responder: Responder) -> None:
        if made and made[0].away:
            responder.abort()
        else:
            answer(request, responder)

    server = HttpServer(handler, Limits())
    await server.start(sockets)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    context = await browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light")
    page = await context.new_page()
    made.append(Visit(page, world, url, server))
    page.on("request", lambda request: made[0].asked.append(request.url))
    page.on("console", lambda message: made[0].complaints.append(message.text))
    page.on("pageerror", lambda error: made[0].complaints.append(str(error)))
    await page.clock.install()
    await page.goto(url + "/")
    try:
        yield made[0]
    finally:
        await context.close()
        server.stop_accepting()
        await server.drain(1.0)


async def test_the_verdict_follows_the_traffic(browser: Browser) -> None:
    async with visit(browser, World()) as here:
        await here.until("#verdict", "No requests since the gateway started.")
        assert "Point an OpenAI client at it" in await here.text("#because")
        await here.pass_s(120, rate=3, share=0.02)
        await here.until("#verdict", f"Traffic goes to the dense model {DENSE}")
        why = await here.text("#because")
        assert f"To {DENSE}: the cheapest that is predicted to keep what was asked for with room" in why
        assert "took over" not in why
        assert "asked for a latency got it in the last minute" in why
        assert "all of it at the other architecture would cost" in why
        await here.pass_s(120, rate=10, share=0.97)
        await here.until("#verdict", MOE)
        assert "Mixture-of-Experts took over about" in await here.text("#because")
        assert "when traffic rose from" in await here.text("#because")
        assert await here.page.locator("#traffic path.bar").count() >= 2
        assert await here.page.locator("#predicted-ttft .dot").count() >= 2
        assert await here.page.evaluate(SHAPES) > 100
        # Only its own origin was asked, and nothing complained: no script, style or picture was blocked.
        assert {url.removeprefix(here.url).partition("?")[0] for url in here.asked} <= {"/", "/admin/state", "data:,"}
        assert here.complaints == []


async def test_a_gateway_that_is_away_or_started_again_loses_nothing(browser: Browser) -> None:
    async with visit(browser, World()) as here:
        await here.pass_s(60, rate=4, share=0.5)
        await here.until("#verdict", "Traffic is split")
        bars = await here.page.locator("#traffic path.bar").count()
        here.away = True
        await here.until("#banner", "The gateway cannot be reached, trying again.")
        await here.page.clock.run_for(3000)
        assert "Last seen" in await here.text("#banner")
        assert "Traffic is split" in await here.text("#verdict")
        assert await here.page.locator("#traffic path.bar").count() == bars
        # Counts begin at 0 again, and must not come out negative or as everything at once.
        again = World()
        again.now_s = here.world.now_s + 10
        again.block.everywhere.put(0, 0, Global.STARTED_S, again.now_s)
        for name in ("plan", "block", "rows", "recent", "now_s", "number"):
            setattr(here.world, name, getattr(again, name))
        here.away = False
        await here.pass_s(30, rate=4, share=0.0)
        await here.page.wait_for_selector("#banner", state="hidden")
        rates = await here.page.evaluate(
            "[...document.querySelectorAll('#traffic text')].map(t => parseFloat(t.textContent))"
        )
        assert max(rate for rate in rates if rate == rate) <= 60
        counted = f"{again.block.count.total(0, Count.REQUESTS):.0f} in all"
        assert counted in await here.text("#backends tbody tr:first-child")


async def test_breakers_engines_and_warnings_are_said(browser: Browser) -> None:
    world = World()
    world.warnings = ["A warning with <b>markup</b> in it."]
    world.block.load.put(1, 2, UnderWay.BREAKER, 2)
    world.block.load.put(1, 0, UnderWay.IN_FLIGHT, 64)
    world.block.known.put(0, 3, Known.STATE, State.LOADING)
    world.block.known.put(0, 3, Known.PROGRESS, 0.42)
    world.block.worker.put(1, 0, 1, 12)
    async with visit(browser, world) as here:
        await here.until("#warnings", "A warning with <b>markup</b> in it.")
        said = await here.text("#warnings")
        assert f"{API} fails, so it gets no requests but a probe now and then." in said
        assert f"{DENSE} has as many requests as its limit allows (64)." in said
        assert "12 lines of the decision log were not written." in said
        assert "loading 42 %" in await here.text("#backends")
        assert "held off" in await here.text("#backends")
        assert await here.page.locator("#warnings b").count() == 0
        # An experiment: means, a ratio with its interval, one that is open at the top, a difference of shares.
        shown = await here.text("#experiments")
        assert "The comparison is running; 50 % of chat goes to the treatment." in shown
        assert "0.550 to 0.770" in shown
        assert "at least 1.10" in shown
        assert "−0.20 points" in shown
        assert await here.page.locator("#experts rect.bar").count() == 8


async def test_decisions_are_filtered_and_opened(browser: Browser) -> None:
    world = World()
    world.pass_s(4, rate=5, share=0.5)
    odd = world.request(API, world.now_s)
    odd.id, odd.status, odd.error, odd.ttft_s = "odd-one", 502, "<img src=x onerror=alert(1)>", 9.0
    odd.attempts = [Attempt(backend=each, outcome="reset", start_s=0, seconds=1) for each in (DENSE, API)]
    async with visit(browser, world) as here:
        await here.until("#shown", "21 kept in this page")
        rows = here.page.locator("#decisions > tbody > tr")
        await here.page.select_option("#by-outcome", "failed")
        assert await rows.count() == 1
        assert "status 502" in await rows.first.inner_text()
        await here.page.click("#decisions tbody button")
        opened = await here.text("#decisions tr.more")
        assert "odd-one" in opened
        assert "<img src=x onerror=alert(1)>" in opened
        assert f"{DENSE}: reset after 1.0 s" in opened
        await here.page.select_option("#by-outcome", "moved")
        assert await rows.count() == 2
        # It stays open, and keeps the focus, while the page goes on.
        await here.page.focus("#decisions tbody button")
        await here.pass_s(10, rate=2, share=0.5)
        assert await rows.count() == 2
        assert await here.page.evaluate("document.activeElement.dataset.id") == "odd-one"
        await here.page.select_option("#by-outcome", "")
        await here.page.fill("#filter", "TEAM-A")
        assert 5 < await rows.count() < 30
        await here.page.select_option("#by-backend", MOE)
        texts = await rows.all_inner_texts()
        assert texts
        assert all(MOE in text and "team-a" in text for text in texts)
        await here.page.click("#pause")
        before = await here.text("#now")
        await here.pass_s(120, rate=1, share=0.5, step=60)
        assert await here.text("#now") == before
        await here.page.click("#pause")
        assert await here.text("#now") != before


async def test_it_is_readable_on_a_phone_and_in_both_themes(browser: Browser) -> None:
    world = World()
    world.pass_s(30, rate=4, share=0.4)
    world.warnings = ["Something to look at."]
    async with visit(browser, world, width=360) as here:
        await here.pass_s(60, rate=4, share=0.4)
        await here.until("#verdict", "Traffic")
        await here.page.click("#decisions tbody button")
        for width in (360, 768, 1200):
            await here.page.set_viewport_size({"width": width, "height": 900})
            await here.page.clock.run_for(1100)
            assert await here.page.evaluate("document.documentElement.scrollWidth") <= width
            assert max(await here.page.evaluate(RIGHTS)) <= width
        for scheme, paper in (("light", "rgb(253, 252, 249)"), ("dark", "rgb(23, 23, 21)")):
            await here.page.emulate_media(color_scheme=scheme)
            assert await here.page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
            # WCAG 2.2: 4.5 to 1 for text.
            assert await here.page.evaluate(CONTRAST) >= 4.5
        assert await here.page.evaluate(BARE) == 0, "every picture and field has a name"
        assert await here.page.evaluate("document.getAnimations().length") == 0
        assert here.complaints == []


async def test_experts_are_a_map_with_words_numbers_and_a_box_of_its_own(browser: Browser) -> None:
    world = World()
    world.pass_s(30, rate=4, share=0.4)
    large, small = backend_seen("large", 48, 128, 8), backend_seen("small", 2, 8, 2)
    world.experts = seen(msgspec.structs.replace(large, backend=MOE), msgspec.structs.replace(small, backend=API))
    async with visit(browser, world) as here:
        await here.until("#heat", "times the mean")
        words = await here.text("#heat figure:first-child")
        worst = max(large.layers, key=lambda layer: layer.imbalance)
        assert f"Layer {worst.layer}’s busiest expert" in words
        assert "2 of 6,144 experts have seen nothing" in words
        assert "Drift since last week: 4.1 % of the choices go elsewhere (1.2 % would by chance)." in words
        assert "Looking took 1.0 % of the engine’s CPU time." in words
        assert "Not looked at: to keep its share of the CPU (12)." in words
        assert "imbalance 3.10 of layer 7 is above 3" in words
        # Every cell of a layer that saw all its experts has a shade, and there are few elements however many cells.
        cells = "[...document.querySelectorAll('#heat figure:first-child .heat .shade')].map(p => p.getAttribute('d'))"
        drawn = "".join(await here.page.evaluate(cells))
        assert drawn.count("M") == 48 * 128 - 2
        assert await here.page.locator("#heat figure:first-child .heat *").count() < 100
        # Bars stand only where a map does not: of this backend the engine's totals are known too.
        assert await here.page.locator("#experts rect.bar").count() == 0
        # A cell says its numbers to a mouse and to a keyboard, and the reader keeps both place and focus.
        svg = here.page.locator(f"svg[data-heat='{MOE}']")
        await svg.hover(position={"x": 44 + 3, "y": 18 + 3})
        said = here.page.locator("#heat figure:first-child .heat-said")
        assert (await said.inner_text()).startswith("Layer 0, expert 0: ")
        await svg.focus()
        await here.page.keyboard.press("ArrowDown")
        await here.page.keyboard.press("ArrowRight")
        assert (await said.inner_text()).startswith("Layer 1, expert 1: ")
        asked = sum("/admin/experts" in url for url in here.asked)
        world.experts = msgspec.structs.replace(world.experts, time_s=world.experts.time_s + 10)
        await here.page.click("#heat figure:first-child summary >> nth=0")
        await svg.focus()
        await here.pass_s(20, rate=2, share=0.5)
        await here.page.wait_for_function("document.activeElement.dataset.heat !== undefined")
        assert (await said.inner_text()).startswith("Layer 1, expert 1: ")
        assert await here.page.locator("#heat details[open]").count() == 1
        assert await here.page.locator("#heat details[open] tbody tr").count() == 48
        assert 1 <= sum("/admin/experts" in url for url in here.asked) - asked <= 2
        for width in (360, 768, 1200):
            await here.page.set_viewport_size({"width": width, "height": 900})
            await here.page.clock.run_for(1100)
            assert await here.page.evaluate("document.documentElement.scrollWidth") <= width
            assert max(await here.page.evaluate(RIGHTS)) <= width
        for scheme in ("light", "dark"):
            await here.page.emulate_media(color_scheme=scheme)
            assert await here.page.evaluate(CONTRAST) >= 4.5
        assert await here.page.evaluate(BARE) == 0
        assert here.complaints == []


async def test_with_a_secret_the_page_comes_after_the_form(browser: Browser) -> None:
    async with visit(browser, World(), secret="canary-9f1c-secret") as here:
        assert "needs the admin secret" in await here.text("h1")
        await here.page.fill("#secret", "wrong")
        await here.page.click("button")
        await here.page.wait_for_selector("text=That is not the secret.")
        await here.page.fill("#secret", "canary-9f1c-secret")
        await here.page.click("button")
        await here.page.wait_for_selector("#verdict")
        await here.until("#verdict", "No requests")
        assert "canary" not in "".join(here.asked)
        assert await here.page.evaluate("document.cookie") == "", "no script can read the session"
        await here.page.context.clear_cookies()
        await here.until("#banner", "Reload this page to log in")
