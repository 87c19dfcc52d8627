"""The admin listener: who may look, by what name, with what secret; and that nothing else is reached."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import aiohttp
import msgspec
import pytest
from gateway_seen_fixtures import World
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.live.admin import COOKIE, ROUTES, SESSION_S, admin_handler
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.seen.metrics import render
from breakeven.gateway.seen.snapshot import SNAPSHOT_SCHEMA, Snapshot
from breakeven.wire.listen import open_sockets
from breakeven.wire.message import Handler, Headers, Request
from breakeven.wire.server import HttpServer

SECRET = "canary-9f1c-secret"
GUARDED = [route for route in ROUTES if route not in ("/health", "/login")]
STRANGE = [
    "//admin/state",
    "/admin//state",
    "/admin%2fstate",
    "/admin/state/",
    "/ADMIN/STATE",
    "/./admin/state",
    "http://127.0.0.1/admin/state",
    "/admin",
    "/page.js",
    "/../etc/passwd",
    "",
    "*",
]


@dataclass
class Sent:
    """A responder that keeps what it was told."""

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.answers.append((status, {name.decode(): value.decode() for name, value in headers}, body))


class Clock:
    """Time that stands still until it is told to pass."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def later(self, wait_s: float, then: Callable[[], None]) -> None:
        self.due.append((self.now_s + wait_s, then))

    def run(self) -> float:
        """Until nothing is waited for; how long that took."""
        began_s = self.now_s
        while self.due:
            self.due.sort(key=lambda each: each[0], reverse=True)
            self.now_s, then = self.due.pop()
            then()
        return self.now_s - began_s


def ask(
    handler: Handler,
    path: str,
    *,
    method: str = "GET",
    host: str | None = "127.0.0.1:8001",
    peer: str = "127.0.0.1",
    body: bytes = b"",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """The one answer to one request."""
    sent = Sent()
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    if host is not None:
        named.append((b"host", host.encode()))
    handler(Request(method, path, "", named, body, peer, 0), sent)  # type: ignore[arg-type]
    assert len(sent.answers) == 1
    return sent.answers[0]


def handler_of(secret: str | None = None, now_s: float = 1000.0, clock: Clock | None = None) -> Handler:
    """`clock`: by default hours pass between two requests, so that nobody is slowed."""
    world = World()
    world.pass_s(2, 3, 0.5)
    hours = count(0, 7200)
    return admin_handler(
        world.snapshot,
        lambda: render(world.block, world.plan, world.rows),
        secret,
        now_s=lambda: now_s,
        clock_s=(lambda: float(next(hours))) if clock is None else (lambda: clock.now_s),
        later=None if clock is None else clock.later,
    )


@pytest.mark.parametrize("route", GUARDED)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong-secret"}, 401),
        ({"authorization": f"Basic {SECRET}"}, 401),
        ({"authorization": SECRET}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {SECRET}x"}, 401),
        ({"cookie": f"{COOKIE}={SECRET}"}, 401),
        ({"cookie": f"{COOKIE}=99999999999.{'0' * 64}"}, 401),
        ({"x-api-key": SECRET}, 401),
        ({"authorization": f"Bearer {SECRET}"}, 200),
        ({"authorization": f"bearer {SECRET}"}, 200),
    ],
)
def test_a_secret_opens_and_nothing_else_does(route: str, headers: dict[str, str], status: int) -> None:
    found, sent, body = ask(handler_of(SECRET), route, **headers)
    assert found == status
    assert SECRET.encode() not in body
    assert SECRET not in str(sent)
    if status == 401:
        assert b"llama-8b" not in body, "whoever may not look is told no backend's name"


@pytest.mark.parametrize("path", STRANGE)
@pytest.mark.parametrize("secret", [None, SECRET])
def test_other_spellings_of_a_path_reach_nothing(path: str, secret: str | None) -> None:
    assert ask(handler_of(secret), path)[0] == (404 if secret is None else 401)
    if secret is not None:
        assert ask(handler_of(secret), path, authorization=f"Bearer {secret}")[0] == 404


@pytest.mark.parametrize("route", GUARDED)
@pytest.mark.parametrize(
    ("host", "peer", "status"),
    [
        ("127.0.0.1:8001", "127.0.0.1", 200),
        ("localhost", "::1", 200),
        ("LOCALHOST.:8001", "127.0.0.1", 200),
        ("[::1]:8001", "::1", 200),
        ("[::ffff:127.0.0.1]:1", "::ffff:127.0.0.1", 200),
        ("evil.example", "127.0.0.1", 403),
        ("127.0.0.1.evil.example", "127.0.0.1", 403),
        ("localhost.evil.example:8001", "127.0.0.1", 403),
        ("evil.example:127.0.0.1", "127.0.0.1", 403),
        ("0.0.0.0:8001", "127.0.0.1", 403),
        ("", "127.0.0.1", 403),
        (None, "127.0.0.1", 403),
        ("localhost", "192.168.0.9", 403),
        ("localhost", "", 403),
    ],
)
def test_without_a_secret_only_this_machine_by_its_loopback_name(
    route: str, host: str | None, peer: str, status: int
) -> None:
    assert ask(handler_of(), route, host=host, peer=peer)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_nothing_can_be_changed(method: str) -> None:
    for route in [*GUARDED, "/health"]:
        status, headers, _ = ask(handler_of(SECRET), route, method=method, authorization=f"Bearer {SECRET}")
        assert status == 405
        assert headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("secret", [None, SECRET])
def test_health_is_open_and_tells_nothing(secret: str | None) -> None:
    assert ask(handler_of(secret), "/health", host="anything", peer="10.0.0.1")[::2] == (200, b'{"status":"ok"}')


def login(handler: Handler, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return ask(handler, "/login", method="POST", body=body, **headers)


def test_a_login_is_a_cookie_that_ends() -> None:
    status, headers, body = login(handler_of(SECRET), f"secret={SECRET}".encode())
    assert (status, headers["location"], body) == (303, "/", b"")
    cookie = headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert SECRET not in cookie
    value = cookie.split(";")[0]
    assert ask(handler_of(SECRET), "/admin/state", cookie=f"other=1; {value}")[0] == 200
    assert ask(handler_of(SECRET, now_s=1000.0 + SESSION_S + 1), "/admin/state", cookie=value)[0] == 401
    assert ask(handler_of("another-secret"), "/admin/state", cookie=value)[0] == 401, "a new secret ends old sessions"
    longer = re.sub(r"=(\d+)", lambda found: f"={int(found[1]) + 9999}", value)
    assert ask(handler_of(SECRET), "/admin/state", cookie=longer)[0] == 401


def test_a_wrong_login_and_one_from_elsewhere_are_refused() -> None:
    handler = handler_of(SECRET)
    for body in (b"", b"secret=", b"secret=wrong", b"secret=%ff%fe", b"\xff", b"a=1&" * 50 + b"secret=x"):
        status, headers, page = login(handler, body)
        assert status == 401
        assert "set-cookie" not in headers
        assert b"That is not the secret." in page
    status, headers, _ = login(handler, f"secret={SECRET}".encode(), origin="http://evil.example")
    assert status == 403
    assert "set-cookie" not in headers
    assert login(handler, f"secret={SECRET}".encode(), origin="http://127.0.0.1:8001")[0] == 303


def guess(handler: Handler, secret: str, peer: str = "192.0.2.1", *, form: bool = False) -> Sent:
    sent = Sent()
    host = (b"host", b"h")
    if form:
        request = Request("POST", "/login", "", [host], f"secret={secret}".encode(), peer, 0)
    else:
        request = Request("GET", "/metrics", "", [host, (b"authorization", f"Bearer {secret}".encode())], b"", peer, 0)
    handler(request, sent)  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize("form", [False, True])
def test_wrong_secrets_are_answered_more_and_more_slowly(form: bool) -> None:
    clock = Clock()
    handler = handler_of(SECRET, clock=clock)
    took = []
    for _ in range(12):
        sent = guess(handler, "wrong", form=form)
        took.append(clock.run())
        assert [status for status, _, _ in sent.answers] == [401]
    assert took == [0, 0, 0, 0, 0.25, 0.5, 1, 2, 4, 8, 8, 8]
    # Another address, and whoever comes when it is heard again, is not slowed; the right one is forgiven.
    assert guess(handler, "wrong", "192.0.2.2").answers
    right = 303 if form else 200
    assert guess(handler, SECRET, form=form).answers[0][0] == right
    assert guess(handler, "wrong", form=form).answers[0][0] == 401


def test_guesses_at_once_are_heard_one_after_the_other_or_not_at_all() -> None:
    clock = Clock()
    handler = handler_of(SECRET, clock=clock)
    wrong = [guess(handler, "wrong", form=bool(k % 2)) for k in range(100)]
    right = guess(handler, SECRET)
    statuses = [sent.answers[0][0] for sent in (*wrong, right) if sent.answers]
    assert statuses.count(429) > 80
    assert statuses.count(401) == 4
    assert right.answers[0][0] == 429, "an answer for the right one alone would tell"
    assert int(right.answers[0][1]["retry-after"]) > 8
    assert guess(handler, SECRET, "2001:db8::1").answers[0][0] == 200
    clock.run()
    assert all(sent.answers for sent in wrong)
    # Keys and cookies go by; so does whoever waited.
    clock.now_s += 20
    assert guess(handler, SECRET).answers[0][0] == 200


def test_who_guessed_is_remembered_within_bounds() -> None:
    clock = Clock()
    handler = handler_of(SECRET, clock=clock)
    for network in range(3000):
        for _ in range(5):
            guess(handler, "wrong", f"2001:db8:{network:x}::{network:x}")
    guesses = handler.__self__.guesses  # type: ignore[attr-defined]
    assert len(guesses._known) <= 1024
    clock.run()
    clock.now_s += 1000
    assert guess(handler, "wrong", "2001:db8:bb7::1").answers, "forgotten after a while"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "file://", "chrome-extension://a", "ftp://127.0.0.1"]
)
def test_pages_of_others_do_not_look_without_a_secret(origin: str) -> None:
    assert ask(handler_of(), "/admin/state", origin=origin)[0] == 403
    assert ask(handler_of(), "/admin/state", origin="http://127.0.0.1:8001")[0] == 200


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_key_that_may_look_opens_it_from_anywhere(secret: str | None) -> None:
    world = World()
    handler = admin_handler(world.snapshot, lambda: b"", secret, admits=lambda sent: sent == b"Bearer bek-admin")
    for key, status in (("bek-admin", 200), ("bek-other", 403 if secret is None else 401)):
        found = ask(handler, "/admin/state", host="elsewhere", peer="10.0.0.1", authorization=f"Bearer {key}")[0]
        assert found == status
    assert ask(handler, "/admin", authorization="Bearer bek-admin")[0] == 404
    assert ask(handler, "/", method="POST", authorization="Bearer bek-admin")[0] == 405


@given(st.binary(max_size=200), st.binary(max_size=80), st.binary(max_size=80))
def test_no_bytes_open_it(body: bytes, cookie: bytes, authorization: bytes) -> None:
    handler = handler_of_once()
    for method, path in (("POST", "/login"), ("GET", "/admin/state")):
        sent = Sent()
        named = [(b"host", b"h"), (b"cookie", COOKIE.encode() + b"=" + cookie), (b"authorization", authorization)]
        handler(Request(method, path, "", named, body, "", 0), sent)  # type: ignore[arg-type]
        assert [status for status, _, _ in sent.answers] == [401]


_once: list[Handler] = []


def handler_of_once() -> Handler:
    if not _once:
        _once.append(handler_of(SECRET))
    return _once[0]


def test_a_short_secret_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="openssl rand"):
        handler_of("1234567")
    with pytest.raises(UserError):
        handler_of("")


@pytest.mark.parametrize("secret", [None, SECRET])
def test_the_page_lets_in_only_itself(secret: str | None) -> None:
    """Nothing comes from elsewhere, and what is inside is named by its digest, so that nothing else runs."""
    _, headers, body = ask(handler_of(secret), "/")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    inside = re.findall(rb"<(?:script|style)>(.*?)</(?:script|style)>", body, re.DOTALL)
    assert len(inside) == (2 if secret is None else 1)
    for text in inside:
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in policy
    # Names of XML spaces are no addresses to be asked.
    assert re.findall(rb"https?://(?!www\.w3\.org/2000/svg)", body) == []
    assert b" style=" not in body
    assert b"%SCRIPT%" not in body
    assert (headers["x-frame-options"], headers["cache-control"]) == ("DENY", "no-store")


def test_state_and_experiments_are_read_back() -> None:
    shown = msgspec.json.decode(ask(handler_of(), "/admin/state")[2], type=Snapshot)
    assert shown.schema == SNAPSHOT_SCHEMA
    assert len(shown.backends) == 4
    experiments = msgspec.json.decode(ask(handler_of(), "/admin/experiments")[2])
    assert [each["name"] for each in experiments["experiments"]] == ["dense-or-moe"]
    assert b"SECRET PROMPT" not in ask(handler_of(), "/admin/state")[2]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """The handler behind a real socket; its address."""
    sockets = open_sockets("127.0.0.1", 0, 1)
    server = HttpServer(handler, Limits())
    await server.start(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop_accepting()
        await server.drain(1.0)


async def test_over_a_socket() -> None:
    async with served(handler_of(SECRET)) as url, aiohttp.ClientSession() as session:
        async with session.get(url + "/metrics", headers={"authorization": f"Bearer {SECRET}"}) as answer:
            assert answer.status == 200
            assert "breakeven_gateway_requests_total" in await answer.text()
        async with session.post(url + "/login", data={"secret": SECRET}, allow_redirects=False) as answer:
            assert answer.status == 303
            cookie = answer.headers["set-cookie"].split(";")[0]
        async with session.head(url + "/", headers={"cookie": cookie}) as answer:
            assert answer.status == 200
            assert await answer.read() == b""
        answers = await asyncio.gather(*(session.get(url + path) for path in ("/", "/admin/state", "/metrics")))
        # The session of aiohttp keeps no cookie of an address that is a number.
        assert [answer.status for answer in answers] == [401, 401, 401]
        for answer in answers:
            answer.release()


async def test_over_a_socket_a_wrong_secret_waits_and_nobody_else_does() -> None:
    handler = admin_handler(World().snapshot, lambda: b"", SECRET)
    async with served(handler) as url, aiohttp.ClientSession() as session:

        async def status(secret: str) -> int:
            async with session.get(url + "/metrics", headers={"authorization": f"Bearer {secret}"}) as answer:
                return answer.status

        assert [await status("wrong") for _ in range(4)] == [401] * 4
        slow = asyncio.ensure_future(status("wrong"))
        async with session.get(url + "/health") as answer:
            assert (answer.status, slow.done()) == (200, False)
        assert await slow == 401
        assert await status(SECRET) == 200
