"""The admin listener and the page it shows.

The live page as one file: its parts are put together once, so that it asks for nothing but its own data.

The admin listener: the live page, its data, metrics, health. Its own port, its own secret, nothing that changes.

Who may look. With a secret: whoever sends it as `Authorization: Bearer`, or has the cookie of the login form. A key of
the gateway's that was made for it opens it too. Without a secret: callers from this machine that name it by a loopback
name, which keeps out pages of other origins whose name was pointed at this machine (DNS rebinding). `/health` tells
nothing and is open.

Whoever guesses is slowed: after a few wrong secrets an address is heard more and more seldom, right or wrong, and
whatever it says in between is not looked at. Keys and cookies, which nobody can guess, are not slowed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable
from functools import cache
from html import escape
from importlib.resources import files
from urllib.parse import parse_qs

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.experts.report import ExpertsSeen
from breakeven.gateway.route.view import REASONS
from breakeven.gateway.seen.metrics import CONTENT_TYPE
from breakeven.gateway.seen.snapshot import SNAPSHOT_SCHEMA, Snapshot
from breakeven.version import __version__
from breakeven.wire.bounds import neighbours
from breakeven.wire.listen import is_loopback_address, names_here, sent_from_here, without_port
from breakeven.wire.message import Handler, Headers, Request, Responder, error_body

SCRIPTS = ("history.js", "words.js", "draw.js", "charts.js", "tables.js", "experts.js", "decisions.js", "page.js")
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


LEAST_SECRET = 8
"""NIST SP 800-63B asks for 8 characters at least of a secret that a person chose."""
SESSION_S = 12 * 3600
COOKIE = "breakeven_admin"
ROUTES = ("/", "/admin/state", "/admin/experiments", "/admin/experts", "/metrics", "/health", "/login")
SAFE: tuple[tuple[bytes, bytes], ...] = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
BARE_POLICY = b"default-src 'none'; frame-ancestors 'none'"


def admin_handler(
    state: Callable[[], Snapshot],
    metrics: Callable[[], bytes],
    secret: str | None,
    *,
    experts: Callable[[], ExpertsSeen] | None = None,
    admits: Callable[[bytes | None], bool] | None = None,
    now_s: Callable[[], float] = time.time,
    clock_s: Callable[[], float] = time.monotonic,
    later: Callable[[float, Callable[[], None]], object] | None = None,
) -> Handler:
    """What answers on the admin port. `admits`: whether an Authorization header holds a key that may look as well.

    `experts`: what is seen of the backends' experts; None: nothing. `later` calls something after so many seconds of
    `clock_s`; by default the running loop does. Raises UserError for a secret that is too short to be one.
    """
    if secret is not None and len(secret) < LEAST_SECRET:
        raise UserError(
            f"the admin secret has {len(secret)} characters; give it at least {LEAST_SECRET}, "
            "such as the output of `openssl rand -hex 32`"
        )
    return _Admin(state, metrics, experts, secret, admits, now_s, clock_s, later).answer


def takes_body(request: Request) -> bool:
    """Whether a request's body is worth keeping, by its head: that of the login form alone."""
    return request.path == "/login" and request.method == "POST"


class _Guesses:
    """How often each address was wrong of late, and when it is heard again. The one longest silent is forgotten."""

    _FREE = 4
    _FIRST_S, _LONGEST_S = 0.25, 8.0
    _FORGOTTEN_S = 900.0
    _MOST_ADDRESSES = 1024

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, float]] = {}
        """Wrong ones, and when the address is heard next."""

    def turn(self, address: str, now_s: float) -> tuple[float, float | None]:
        """How long a secret's answer must wait, and how much longer if it is wrong, which it counts as until `right`.

        None instead of the latter: so long that it is not looked at.
        """
        wrong, free_s = self._known.pop(address, (0, 0.0))
        if now_s - free_s > self._FORGOTTEN_S:
            wrong, free_s = 0, now_s
        wait_s, more_s = max(0.0, free_s - now_s), 0.0
        if wrong >= self._FREE:
            more_s = min(self._LONGEST_S, self._FIRST_S * 2.0 ** min(20, wrong - self._FREE))
        heard = wait_s <= self._LONGEST_S
        self._known[address] = (wrong + 1, now_s + wait_s + more_s) if heard else (wrong, free_s)
        if len(self._known) > self._MOST_ADDRESSES:
            del self._known[next(iter(self._known))]
        return wait_s, more_s if heard else None

    def right(self, address: str) -> None:
        """It knows the secret."""
        self._known.pop(address, None)


class _Admin:
    """Holds what was made once: pages, their policies, and the digest of the secret."""

    def __init__(
        self,
        state: Callable[[], Snapshot],
        metrics: Callable[[], bytes],
        experts: Callable[[], ExpertsSeen] | None,
        secret: str | None,
        admits: Callable[[bytes | None], bool] | None,
        now_s: Callable[[], float],
        clock_s: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object] | None,
    ) -> None:
        self.clock_s, self.later = clock_s, later
        self.guesses = _Guesses()
        self.state, self.metrics, self.admits, self.now_s = state, metrics, admits, now_s
        self.experts = experts or (lambda: ExpertsSeen(version=__version__, time_s=now_s(), backends=[]))
        self.digest = None if secret is None else hashlib.sha256(secret.encode()).digest()
        self.page = whole_page()
        self.page_policy = page_policy(self.page)

    def answer(self, request: Request, responder: Responder) -> None:
        """One request. The path is compared as it came: anything encoded, doubled or absolute is unknown here."""
        path = request.path
        if path == "/health":
            return self._get(request, responder, lambda: (b'{"status":"ok"}', b"application/json", BARE_POLICY))
        if self.admits is not None and self.admits(request.header(b"authorization")):
            return self._show(request, responder)
        if self.digest is None and not (
            is_loopback_address(without_port(request.peer))
            and names_here(request.header(b"host"))
            and sent_from_here(request.header(b"origin"))
        ):
            return _error(
                responder,
                403,
                "without an admin secret only this machine may look, by the name 127.0.0.1 or localhost; set "
                "BREAKEVEN_ADMIN_SECRET, or what `admin: secret_env` names, to open it to others",
                "forbidden",
            )
        if self.digest is not None:
            if path == "/login":
                return self._login(request, responder, self.digest)
            if not self._has_session(request, self.digest):
                scheme, _, given = (request.header(b"authorization") or b"").partition(b" ")
                if scheme.lower() != b"bearer" or not given.strip():
                    return self._refuse(request, responder)
                show, refuse = self._show, self._refuse
                return self._weigh(
                    request, responder, given.strip(), lambda right: (show if right else refuse)(request, responder)
                )
        return self._show(request, responder)

    def _weigh(self, request: Request, responder: Responder, given: bytes, then: Callable[[bool], None]) -> None:
        """Whether a secret is right, told when its address may be told. Compared in constant time."""
        address = neighbours(without_port(request.peer))
        wait_s, more_s = self.guesses.turn(address, self.clock_s())
        if more_s is None:
            retry = (b"retry-after", str(math.ceil(wait_s)).encode())
            return _error(responder, 429, "too many wrong secrets came from there; wait", "too_many_guesses", retry)
        assert self.digest is not None
        right = hmac.compare_digest(hashlib.sha256(given).digest(), self.digest)
        if right:
            self.guesses.right(address)
        else:
            wait_s += more_s
        if wait_s:
            (self.later or asyncio.get_running_loop().call_later)(wait_s, lambda: then(right))
        else:
            then(right)
        return None

    def _show(self, request: Request, responder: Responder) -> None:
        """To somebody who may look."""
        path = request.path
        if path == "/":
            return self._get(request, responder, lambda: (self.page, b"text/html; charset=utf-8", self.page_policy))
        if path == "/admin/state":
            return self._get(request, responder, lambda: _json(msgspec.json.encode(self.state())))
        if path == "/admin/experiments":
            return self._get(
                request,
                responder,
                lambda: _json(
                    msgspec.json.encode({"schema": SNAPSHOT_SCHEMA, "experiments": self.state().experiments})
                ),
            )
        if path == "/admin/experts":
            return self._get(request, responder, lambda: _json(msgspec.json.encode(self.experts())))
        if path == "/metrics":
            return self._get(request, responder, lambda: (self.metrics(), CONTENT_TYPE, BARE_POLICY))
        return _error(responder, 404, "no such page; there are " + ", ".join(ROUTES[:-1]), "not_found")

    def _get(self, request: Request, responder: Responder, made: Callable[[], tuple[bytes, bytes, bytes]]) -> None:
        if request.method not in ("GET", "HEAD"):
            return _error(responder, 405, "use GET", "method_not_allowed", (b"allow", b"GET, HEAD"))
        body, kind, policy = made()
        responder.respond(200, [(b"content-type", kind), (b"content-security-policy", policy), *SAFE], body)
        return None

    def _has_session(self, request: Request, digest: bytes) -> bool:
        """Compared in constant time."""
        for part in (request.header(b"cookie") or b"").split(b";"):
            name, _, value = part.strip().partition(b"=")
            if name == COOKIE.encode() and _session_holds(value, digest, self.now_s()):
                return True
        return False

    def _refuse(self, request: Request, responder: Responder) -> None:
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return _login_page(responder, "")
        return _error(
            responder,
            401,
            "send the admin secret as `Authorization: Bearer SECRET`, or open / and log in",
            "unauthorized",
            (b"www-authenticate", b"Bearer"),
        )

    def _login(self, request: Request, responder: Responder, digest: bytes) -> None:
        if request.method in ("GET", "HEAD"):
            return _login_page(responder, "")
        if request.method != "POST":
            return _error(responder, 405, "use POST", "method_not_allowed", (b"allow", b"GET, HEAD, POST"))
        origin = request.header(b"origin")
        # A form on somebody else's page must not log this browser in.
        host = request.header(b"host") or b""
        if origin is not None and origin not in (b"http://" + host, b"https://" + host):
            return _error(responder, 403, "log in from this page itself", "forbidden")
        try:
            fields = parse_qs(request.body[:4096].decode("ascii"), max_num_fields=4)
        except ValueError:
            fields = {}
        given = (fields.get("secret") or [""])[0]
        self._weigh(request, responder, given.encode(), lambda right: self._logged_in(responder, digest, right))
        return None

    def _logged_in(self, responder: Responder, digest: bytes, right: bool) -> None:
        if not right:
            return _login_page(responder, "That is not the secret.")
        cookie = f"{COOKIE}={_session(digest, int(self.now_s()) + SESSION_S)}; HttpOnly; SameSite=Strict; Path=/"
        cookie += f"; Max-Age={SESSION_S}"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), *SAFE]
        return responder.respond(303, headers, b"")


def _session(digest: bytes, until_s: int) -> str:
    """A cookie's value that proves the secret was known and says how long it holds; the secret is not in it."""
    return f"{until_s}.{hmac.new(digest, str(until_s).encode(), hashlib.sha256).hexdigest()}"


def _session_holds(value: bytes, digest: bytes, now_s: float) -> bool:
    until, _, _ = value.partition(b".")
    if not until.isdigit() or len(until) > 12:
        return False
    return hmac.compare_digest(value, _session(digest, int(until)).encode()) and now_s < int(until)


def _json(body: bytes) -> tuple[bytes, bytes, bytes]:
    return body, b"application/json", BARE_POLICY


def _login_page(responder: Responder, message: str) -> None:
    body = login_page(message)
    headers: Headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", page_policy(body)),
        (b"www-authenticate", b"Bearer"),
        *SAFE,
    ]
    responder.respond(401, headers, body)


def _error(responder: Responder, status: int, message: str, kind: str, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-security-policy", BARE_POLICY), *more, *SAFE]
    responder.respond(status, headers, error_body(status, message, code=kind))
