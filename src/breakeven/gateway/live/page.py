"""The live page as one file: its parts are put together once, so that it asks for nothing but its own data."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from html import escape
from importlib.resources import files

import msgspec

from breakeven.gateway.route.view import REASONS
from breakeven.version import __version__

SCRIPTS = ("history.js", "words.js", "draw.js", "charts.js", "tables.js", "decisions.js", "page.js")
"""In the order in which they build on each other; one scope holds them all."""


def whole_page() -> bytes:
    """The page with its style and scripts inside."""
    scripts = "\n".join(_part(name) for name in SCRIPTS)
    known = msgspec.json.encode({"reasons": REASONS, "version": __version__}).decode()
    script = f'"use strict";\n(() => {{\nconst KNOWN = {known};\n{scripts}\n}})();'
    return _part("page.html").replace("%CSS%", _part("page.css")).replace("%SCRIPT%", script).encode()


def login_page(message: str) -> bytes:
    """The form that asks for the secret. `message`: what went wrong before, or nothing."""
    return _part("login.html").replace("%CSS%", _part("page.css")).replace("%MESSAGE%", escape(message)).encode()


def page_policy(page: bytes) -> bytes:
    """The Content-Security-Policy that lets through what stands in `page`, by its digest, and asking our own port."""
    styles = " ".join(_digests(page, b"style")) or "'none'"
    scripts = " ".join(_digests(page, b"script")) or "'none'"
    return (
        f"default-src 'none'; style-src {styles}; script-src {scripts}; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ).encode()


def _digests(page: bytes, tag: bytes) -> list[str]:
    found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found]


@cache
def _part(name: str) -> str:
    return files("breakeven.gateway.live").joinpath(name).read_text(encoding="utf-8")
