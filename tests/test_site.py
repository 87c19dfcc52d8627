"""`docs/` as the pages of a site: what is staged for it, and what its check finds. `make docs` builds it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "scripts" / "make_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_staged_and_no_link_leaves_the_site(site: ModuleType, tmp_path: Path) -> None:
    site.stage(tmp_path / "made")
    docs = tmp_path / "made" / "docs"
    names = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md") if "files" not in path.parts}
    assert names == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    dead = []
    for page in docs.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            there = Path(os.path.normpath(page.parent / link))
            if "://" not in link and not (there.is_relative_to(docs) and there.exists()):
                dead.append(f"{page.name}: {link}")
    assert dead == []
    project = tomllib.loads((tmp_path / "made" / "zensical.toml").read_text("utf-8"))["project"]
    listed = re.findall(r"'([\w./-]+\.md)'", str(project["nav"]))
    assert sorted(listed) == sorted(names), "each page stands once in the site's list"
    assert project["theme"]["font"] is False


def test_pages_are_made_what_python_markdown_reads(site: ModuleType) -> None:
    page = ROOT / "docs" / "x.md"
    text = "Words:\n- one\n  more\n- two\n\n```python notest\na\n- b\n```\n[x](../examples/gateway.yaml) [y](z.md#a)\n"
    made, files = site.staged(text, page, Path("/site/docs"))
    assert made.startswith("Words:\n\n- one\n  more\n- two\n\n```python\na\n- b\n```\n")
    assert made.endswith("[x](files/examples/gateway.yaml) [y](z.md#a)\n")
    assert files == [ROOT / "examples" / "gateway.yaml"]


def test_the_check_finds_what_leads_nowhere_and_what_is_fetched(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text("<h1 id='top'>b</h1>")
    good = "<a href='b.html#top'>x</a><a href='https://elsewhere.example'>y</a><script src='a.js'></script>"
    (tmp_path / "a.html").write_text(good)
    assert site.faults(tmp_path) == []
    bad = "<a href='c.html'></a><a href='b.html#none'></a><link href='https://fonts.example/a.css' rel='stylesheet'>"
    (tmp_path / "a.html").write_text(bad)
    found = site.faults(tmp_path)
    assert len(found) == 3
    assert {line.rpartition(" ")[2] for line in found} == {"nowhere", "place", "elsewhere"}


ASKS = """<script src="worker.js"></script><script>
const asked = { words: ["a"] }
const worker = new Worker("answers.js")
worker.onmessage = event => { document.title = JSON.stringify([event.data.words, asked.words]) }
worker.postMessage(asked)
</script>"""
ANSWERS = """addEventListener("message", event => {
  event.data.words.push("b")
  postMessage(event.data)
})"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
async def test_the_search_of_a_page_that_is_a_file_has_a_worker(site: ModuleType, tmp_path: Path) -> None:
    """Chromium starts none for a file. What crosses is copied: the search's page keeps what was typed in it."""
    api = pytest.importorskip("playwright.async_api", reason="playwright is not installed (extra test)")
    for name, text in (("index.html", ASKS), ("answers.js", ANSWERS), ("worker.js", site.WORKER)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    async with api.async_playwright() as player:
        browser = await player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto((tmp_path / "index.html").as_uri())
        await page.wait_for_function("document.title !== ''")
        assert await page.title() == '[["a","b"],["a"]]'
        await browser.close()
