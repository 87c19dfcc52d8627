"""`docs/` as a site: staged for Zensical, which `make docs` runs in between, and checked once it is built.

    python scripts/make_site.py .site            # stage: pages, files that they lead to, the list of them
    python scripts/make_site.py .site --finish   # search from a file; links lead somewhere, nothing is fetched

The pages stay as people read them in a checkout. For the site, links that leave `docs/` lead to a copy of the file; a
list right below a paragraph gets the empty line that Python-Markdown wants; words behind a code block's language,
which are the tests', go.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(\s*)(```+|~~~+)(\w*)[^`]*$")
ITEM = re.compile(r"^\s{0,3}([-*+]|\d+\.)\s")
ELSEWHERE = "https://unpkg.com/iframe-worker/shim"
"""What Zensical's pages load so that their search works from a file; ours lies beside them instead."""
WORKER = """// Browsers start no Worker for a page that is a file: the search runs in a hidden frame there.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.documentElement.append(this.frame)
      const inside = this.frame.contentWindow
      // Both sides get copies, as from a Worker: neither may change what the other holds.
      inside.postMessage = told => {
        const event = new MessageEvent("message", { data: structuredClone(told) })
        setTimeout(() => {
          this.dispatchEvent(event)
          if (this.onmessage) this.onmessage(event)
        })
      }
      const script = inside.document.createElement("script")
      script.src = new URL(url, document.baseURI)
      script.onload = () => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      }
      inside.document.documentElement.append(script)
    }
    postMessage(data) {
      const inside = this.frame.contentWindow
      if (this.waiting) this.waiting.push(data)
      else setTimeout(() => inside.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
"""
SETTINGS = """# Made by scripts/make_site.py.
[project]
site_name = "Breakeven"
site_description = "Mixture-of-Experts or dense: which language model should I run here?"
docs_dir = "docs"
site_dir = "site"
use_directory_urls = false
nav = [
{nav}
]

[project.theme]
font = false
features = ["navigation.indexes", "navigation.top", "search.highlight"]

[project.plugins.offline]

[project.validation]
invalid_links = true
invalid_link_anchors = true
"""


def staged(text: str, page: Path, target: Path) -> tuple[str, list[Path]]:
    """A page as the site wants it, and files outside `docs/` that it leads to.

    `page`: where it lies; `target`: where all pages will lie.
    """
    files: list[Path] = []

    def moved(found: re.Match[str]) -> str:
        there = Path(os.path.normpath(page.parent / found[2]))
        if there.is_relative_to(DOCS):
            return found[0]
        files.append(there)
        copy = target / "files" / there.relative_to(ROOT)
        here = target / page.relative_to(DOCS)
        return f"{found[1]}{os.path.relpath(copy, here.parent)}{found[3]}"

    out: list[str] = []
    fence = ""
    for line in text.splitlines():
        if (mark := FENCE.match(line)) is not None and (not fence or mark[2].startswith(fence)):
            fence = "" if fence else mark[2]
            out.append(f"{mark[1]}{mark[2]}{mark[3]}")
            continue
        if not fence:
            before = out[-1] if out else ""
            begins = ITEM.match(line) and before.strip() and not ITEM.match(before)
            if begins and not before.startswith((" ", "|", "#")):
                out.append("")
            line = LINK.sub(moved, line)
        out.append(line)
    return "\n".join(out) + "\n", files


def title_of(page: Path) -> str:
    """The first heading."""
    title = next(line[2:] for line in page.read_text("utf-8").splitlines() if line.startswith("# "))
    return title.replace("`", "").replace('"', "'")


def nav_of(pages: list[Path]) -> str:
    """Verbs in the order of the first page's table, then everything else by folder."""
    named = {page.relative_to(DOCS).as_posix(): title_of(page) for page in pages}
    first = (DOCS / "index.md").read_text("utf-8")
    verbs = re.findall(r"^\| \[\w+\]\(([\w-]+\.md)\) \|", first, re.MULTILINE)
    rest = sorted(name for name in named if "/" not in name and name not in (*verbs, "index.md"))
    groups = {"Verbs": verbs, "Underneath": rest}
    for folder, title in (("policies", "Routing policies"), ("rooms", "Rooms"), ("decisions", "Decisions")):
        inside = sorted(name for name in named if name.startswith(f"{folder}/"))
        groups[title] = sorted(inside, key=lambda name: not name.endswith("index.md"))
    lines = ['  { "Breakeven" = "index.md" },']
    for title, names in groups.items():
        lines += [f'  {{ "{title}" = [', *(f'    {{ "{named[name]}" = "{name}" }},' for name in names), "  ] },"]
    return "\n".join(lines)


def stage(site: Path) -> None:
    """Write `site/docs` and the settings beside it; what a build before left there goes."""
    target = site / "docs"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(DOCS, target)
    pages = sorted(DOCS.rglob("*.md"))
    for page in pages:
        text, files = staged(page.read_text("utf-8"), page, target)
        (target / page.relative_to(DOCS)).write_text(text, encoding="utf-8")
        for file in files:
            copy = target / "files" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    (site / "zensical.toml").write_text(SETTINGS.replace("{nav}", nav_of(pages)), encoding="utf-8")


def finish(built: Path) -> None:
    """Take out what a built site would fetch from elsewhere, and the page that only a server shows."""
    (built / "404.html").unlink(missing_ok=True)
    worker = built / "assets" / "javascripts" / "worker.js"
    worker.write_text(WORKER, encoding="utf-8")
    for page in built.rglob("*.html"):
        there = Path(os.path.relpath(worker, page.parent)).as_posix()
        page.write_text(page.read_text("utf-8").replace(ELSEWHERE, there), encoding="utf-8")


class Page(HTMLParser):
    """What a built page leads to, what it loads, and what can be led to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.anchors |= {told[name] for name in ("id", "name") if told.get(name)}
        if tag == "a" and told.get("href"):
            self.links.append(told["href"])
        elif tag in ("script", "img", "iframe", "source") and told.get("src"):
            self.loads.append(told["src"])
        elif tag == "link" and "canonical" not in told.get("rel", "") and told.get("href"):
            self.loads.append(told["href"])


def faults(built: Path) -> list[str]:
    """Links and anchors that lead nowhere, and what a page would fetch from elsewhere."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(built.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(built).as_posix()
        found += [f"{name}: loads {each} from elsewhere" for each in page.loads if urlsplit(each).netloc]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = path if not parts.path else Path(os.path.normpath(path.parent / unquote(parts.path)))
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                found.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors:
                found.append(f"{name}: {link} has no such place")
    return found


def main() -> None:
    """Stage, or finish what was built and check it; exit status 1 when something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--finish", action="store_true")
    given = parser.parse_args()
    if not given.finish:
        stage(given.site)
        return
    finish(given.site / "site")
    wrong = faults(given.site / "site")
    pages = len(list((given.site / "site").rglob("*.html")))
    print("\n".join([*wrong, f"{pages} pages, {len(wrong)} faults: {given.site / 'site' / 'index.html'}"]))
    sys.exit(1 if wrong or pages == 0 else 0)


if __name__ == "__main__":
    main()
