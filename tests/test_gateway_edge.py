"""The edge on real sockets: answers, order, limits, clients that leave or take nothing, draining."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time

import pytest

from breakeven.gateway.plan.limits import Limits
from breakeven.wire.accepted import ServerConnection
from breakeven.wire.listen import open_sockets
from breakeven.wire.message import Request, Responder, error_body
from breakeven.wire.server import HttpServer
from tests.gateway_edge_fixtures import TEXT, Loop, both_loops, echo, on, replies, serving, talk

pytestmark = both_loops
HOST = b"Host: x\r\n"
CLOSE = b"Connection: close\r\n"


def get(path: bytes, *, last: bool = False) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + (CLOSE if last else b"") + b"\r\n"


def code(data: bytes) -> tuple[int, str]:
    """Status and code of the one refusal that `data` is."""
    (reply,) = replies(data)
    assert reply.whole
    assert reply.headers[b"connection"] == b"close"
    error = json.loads(reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return reply.status, error["code"]


class Held:
    """A handler that keeps every request for the test to answer."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[Request, Responder]] = asyncio.Queue()
        self.calls = 0

    def __call__(self, request: Request, responder: Responder) -> None:
        self.calls += 1
        self.got.put_nowait((request, responder))


def never(request: Request, responder: Responder) -> None:
    raise AssertionError("this request should not have been handed on")


# Answers.


def test_requests_on_one_connection_are_answered_in_order(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo) as (_, port):
            data = await talk(port, b"".join(get(b"/%d?q=%d" % (i, i), last=i == 9) for i in range(10)))
            assert [reply.body for reply in replies(data)] == [b"GET /%d q=%d " % (i, i) for i in range(10)]

    on(loop, work)


def test_a_pipelined_request_waits_for_the_answer_before_it(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            sent = asyncio.ensure_future(talk(port, [get(b"/1") + get(b"/2"), get(b"/3", last=True)], pause_s=0.05))
            first, answer = await held.got.get()
            await asyncio.sleep(0.15)
            assert (first.path, held.calls, server.under_way) == ("/1", 1, 1)
            answer.start(200, TEXT)
            answer.write(b"one")
            answer.finish()
            for body in (b"two", b"three"):
                _, answer = await held.got.get()
                answer.respond(200, TEXT, body)
            assert [reply.body for reply in replies(await sent)] == [b"one", b"two", b"three"]

    on(loop, work)


def test_more_pipelined_bytes_than_are_kept_wait_in_the_socket(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (_, port):
            body = b"x" * 40_000
            post = b"POST /%d HTTP/1.1\r\n" + HOST + b"Content-Length: 40000\r\n\r\n" + body
            posts = b"".join(post % i for i in range(20))
            sent = asyncio.ensure_future(talk(port, [get(b"/first"), posts, get(b"/last", last=True)]))
            await asyncio.sleep(0.1)
            for _ in range(22):
                request, answer = await held.got.get()
                answer.respond(200, TEXT, request.path.encode())
            paths = [reply.body for reply in replies(await sent)]
            assert paths == [b"/first", *(b"/%d" % i for i in range(20)), b"/last"]

    on(loop, work)


def test_a_client_that_pipelines_without_end_is_closed_after_a_bounded_number(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo) as (_, port):
            data = await talk(port, get(b"/") * 500)
            found = replies(data)
            assert 0 < len(found) <= 500
            assert found[-1].headers.get(b"connection") == b"close"

    on(loop, work)


def test_head_has_the_length_and_no_body(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo) as (_, port):
            data = await talk(port, b"HEAD / HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
            assert b"content-length: 8\r\n" in data
            assert data.endswith(b"\r\n\r\n")

    on(loop, work)


def test_a_stream_comes_in_chunks_and_keeps_the_connection(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(get(b"/"))
                _, answer = await held.got.get()
                answer.start(200, ((b"content-type", b"text/event-stream"),))
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"transfer-encoding: chunked" in head
                answer.write(b"data: 1\n\n")
                assert await reader.readexactly(14) == b"9\r\ndata: 1\n\n\r\n"  # before the stream's end
                answer.write(b"")
                answer.write(b"y" * 20_000)
                answer.finish()
                assert await reader.readexactly(20_008) == b"4e20\r\n" + b"y" * 20_000 + b"\r\n"
                assert await reader.readexactly(5) == b"0\r\n\r\n"
            writer.close()

    on(loop, work)


@pytest.mark.parametrize(
    ("given", "written", "whole"), [(b"4", b"four", True), (b"4", b"thr", False), (b"4", b"fifth", False)]
)
def test_an_answer_of_known_length_is_whole_or_cut(loop: Loop, given: bytes, written: bytes, whole: bool) -> None:
    def handler(request: Request, responder: Responder) -> None:
        responder.start(200, ((b"content-length", given),))
        responder.write(written)
        responder.finish()

    async def work() -> None:
        async with serving(handler) as (_, port):
            (reply,) = replies(await talk(port, get(b"/", last=True)))
            assert reply.whole is whole
            assert len(reply.body) <= 4
            assert b"transfer-encoding" not in reply.headers

    on(loop, work)


def test_http_1_0_gets_no_chunks_and_is_kept_only_when_it_asks(loop: Loop) -> None:
    def handler(request: Request, responder: Responder) -> None:
        if request.path == "/whole":
            responder.respond(200, TEXT, b"whole")
            return
        responder.start(200, TEXT)
        responder.write(b"a")
        responder.write(b"b")
        responder.finish()

    async def work() -> None:
        async with serving(handler) as (_, port):
            data = await talk(port, b"GET /s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert data.endswith(b"\r\n\r\nab")
            assert b"connection: close" in data
            assert (await talk(port, b"GET /whole HTTP/1.0\r\n\r\n")).endswith(b"whole")
            kept = b"GET /whole HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
            found = replies(await talk(port, kept + b"GET /whole HTTP/1.0\r\n\r\n"))
            assert [reply.headers[b"connection"] for reply in found] == [b"keep-alive", b"close"]

    on(loop, work)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_cut_answer_can_be_told_from_a_whole_one(loop: Loop, version: bytes) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/" + version + b"\r\n" + HOST + b"\r\n")
            _, answer = await held.got.get()
            answer.start(200, TEXT)
            answer.write(b"part")
            await reader.readuntil(b"part")
            answer.abort()
            assert server.under_way == 0
            if version == b"1.0":  # the end of such an answer is the connection's
                with pytest.raises(ConnectionResetError):
                    await reader.read(-1)
            else:
                assert b"0\r\n\r\n" not in await reader.read(-1)
            writer.close()

    on(loop, work)


def test_what_an_answer_says_after_its_end_reaches_nobody(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            sent = asyncio.ensure_future(talk(port, get(b"/1") + get(b"/2", last=True)))
            _, first = await held.got.get()
            first.start(200, TEXT)
            first.finish()
            _, second = await held.got.get()
            first.write(b"late")
            first.finish()
            first.abort()
            first.respond(500, TEXT, b"late")
            assert server.under_way == 1
            second.respond(200, TEXT, b"second")
            assert [reply.body for reply in replies(await sent)] == [b"", b"second"]

    on(loop, work)


def test_a_handler_that_fails_is_a_500_or_a_cut(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: Request, responder: Responder) -> None:
        if request.path == "/begun":
            responder.start(200, TEXT)
        raise ValueError("secret detail")

    async def work() -> None:
        async with serving(handler) as (_, port):
            early = await talk(port, get(b"/early", last=True))
            assert replies(early)[0].status == 500
            assert b"secret" not in early
            assert not replies(await talk(port, get(b"/begun")))[0].whole

    on(loop, work)
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\ny", b"a\rb"])
def test_no_header_of_an_answer_can_bring_another(loop: Loop, value: bytes) -> None:
    def handler(request: Request, responder: Responder) -> None:
        responder.respond(200, ((b"x-backend", value),), b"")

    async def work() -> None:
        async with serving(handler) as (_, port):
            (reply,) = replies(await talk(port, get(b"/", last=True)))
            assert reply.status == 500
            assert b"x-backend" not in reply.headers

    on(loop, work)


def test_framing_headers_are_the_edges_own(loop: Loop) -> None:
    def handler(request: Request, responder: Responder) -> None:
        theirs = ((b"content-length", b"99"), (b"transfer-encoding", b"chunked"), (b"connection", b"upgrade"))
        responder.respond(200, (*theirs, (b"x-kept", b"1")), b"body")

    async def work() -> None:
        async with serving(handler) as (_, port):
            (reply,) = replies(await talk(port, get(b"/", last=True)))
            assert reply.body == b"body"
            assert reply.headers[b"content-length"] == b"4"
            assert reply.headers[b"x-kept"] == b"1"
            assert b"transfer-encoding" not in reply.headers

    on(loop, work)


# Expect: 100-continue.


def test_continue_is_said_when_the_body_is_waited_for(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /1 HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"ok")
            assert (await reader.readuntil(b"POST /1  ok")).startswith(b"HTTP/1.1 200")
            writer.close()

    on(loop, work)


def test_continue_comes_after_the_answer_before_it(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            post = b"POST /2 HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
            writer.write(get(b"/1") + post)
            _, answer = await held.got.get()
            answer.respond(200, TEXT, b"first")
            data = await reader.readuntil(b"100 Continue\r\n\r\n")
            assert data.index(b"first") < data.index(b"100 Continue")
            writer.write(b"ok")
            request, answer = await held.got.get()
            assert request.body == b"ok"
            answer.respond(200, TEXT, b"")
            writer.close()

    on(loop, work)


def test_continue_is_not_said_to_who_did_not_wait(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo) as (_, port):
            head = b"POST /1 HTTP/1.1\r\n" + HOST + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
            assert [reply.status for reply in replies(await talk(port, [head + b"o", b"k"], pause_s=0.02))] == [200]

    on(loop, work)


def test_nothing_is_invited_that_would_be_refused(loop: Loop) -> None:
    async def work() -> None:
        async with serving(never, body_bytes=10) as (_, port):
            expect = b"POST / HTTP/1.1\r\n" + HOST + b"Expect: %b\r\nContent-Length: %d\r\n\r\n"
            assert code(await talk(port, expect % (b"100-continue", 11))) == (413, "body_too_large")
            assert code(await talk(port, expect % (b"200-maybe", 1))) == (417, "bad_request")

    on(loop, work)


# Limits.


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n", (413, "body_too_large")),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001,
            (413, "body_too_large"),
        ),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 3000 + b"\r\n\r\n", (431, "headers_too_large")),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 3000, (431, "headers_too_large")),
        (b"GET /" + b"a" * 3000, (431, "headers_too_large")),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * 300 + b"\r\n", (431, "headers_too_large")),
    ],
    ids=["length", "chunked", "header", "header without end", "path without end", "many headers"],
)
def test_what_is_too_large_is_refused(loop: Loop, sent: bytes, expected: tuple[int, str]) -> None:
    async def work() -> None:
        async with serving(never, body_bytes=1000, header_bytes=2000) as (_, port):
            assert code(await talk(port, sent)) == expected

    on(loop, work)


def test_a_refusal_arrives_though_the_client_is_still_sending(loop: Loop) -> None:
    async def work() -> None:
        async with serving(never, body_bytes=1000) as (_, port):
            head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3000000\r\n\r\n"
            assert code(await talk(port, [head, *[b"x" * 100_000] * 30])) == (413, "body_too_large")

    on(loop, work)


def test_a_last_answer_arrives_though_the_client_is_still_sending(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (_, port):
            sent = asyncio.ensure_future(talk(port, [get(b"/", last=True), *[b"x" * 100_000] * 30]))
            _, answer = await held.got.get()
            await asyncio.sleep(0.05)
            answer.respond(200, TEXT, b"y" * 500_000)
            (reply,) = replies(await sent)
            assert (reply.whole, len(reply.body)) == (True, 500_000)

    on(loop, work)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"Content-Length: 1001\r\n\r\n", 413),
        (b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n", 413),
        (b"A: " + b"a" * 3000 + b"\r\n\r\n", 431),
        (b"A: " + b"a" * 3000, 431),
        (b"a:\r\n" * 300 + b"\r\n", 431),
        (b"Content-Encoding: br\r\nContent-Length: 9\r\n\r\n", 415),
        (b"Expect: x\r\n\r\n", 417),
        (b"Content-Length: 9\r\n\r\nx", 408),
        (b"Content-Len", 408),
    ],
)
def test_a_page_may_read_what_is_refused_before_it_is_a_request(loop: Loop, sent: bytes, status: int) -> None:
    """Else a browser tells its page of a network that failed, and not why."""

    def shared_with(origin: bytes) -> list[tuple[bytes, bytes]]:
        return [(b"access-control-allow-origin", origin)] if origin == b"https://a.example" else []

    async def work() -> None:
        async with serving(never, body_bytes=1000, header_bytes=2000, read_s=0.3) as (server, port):
            server.shared_with = shared_with
            for page, told in ((b"https://a.example", b"https://a.example"), (b"https://b.example", None)):
                head = b"POST / HTTP/1.1\r\n" + HOST + b"Origin: " + page + b"\r\n"
                found = replies(await talk(port, head + sent))[0]
                assert (found.status, found.headers.get(b"access-control-allow-origin")) == (status, told)
                assert found.whole
                assert json.loads(found.body)["error"]["message"]
            bare = replies(await talk(port, b"POST / HTTP/1.1\r\n" + HOST + sent))[0]
            assert (bare.status, b"access-control-allow-origin" in bare.headers) == (status, False)

    on(loop, work)


def test_slow_requests_get_408(loop: Loop) -> None:
    post = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n"

    async def work() -> None:
        async with serving(never, read_s=0.2) as (_, port):
            assert code(await talk(port, b"GET / HT")) == (408, "request_timeout")
            assert code(await talk(port, [post, *[b"x"] * 8], pause_s=0.03)) == (408, "request_timeout")

    on(loop, work)


class Wire:
    """Enough of a transport for a connection that is driven by hand."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.closed = True

    close = write_eof


def test_a_server_that_was_away_itself_takes_that_time_from_nobody(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 10**12
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)

    async def work() -> None:
        """Nothing is awaited, so that no timer of the loop looks as well."""
        nonlocal now_ns
        server = HttpServer(echo, Limits(read_s=30.0, idle_s=75.0, unasked_s=75.0, write_s=60.0))
        pairs = [(ServerConnection(server), Wire()) for _ in range(3)]
        (idle, first), (half, second), (upload, third) = pairs

        def look(after_s: float) -> list[bool]:
            nonlocal now_ns
            now_ns += round(after_s * 1e9)
            server._tick()
            return [wire.closed for _, wire in pairs]

        for connection, wire in pairs:
            connection.connection_made(wire)  # type: ignore[arg-type]
        look(0.0)
        idle.data_received(get(b"/one"))
        half.data_received(b"GET / HT")
        upload.data_received(b"POST /three HTTP/1.1\r\n" + HOST + b"Content-Length: 40\r\n\r\n")
        assert look(1.0) == [False] * 3
        assert look(600.0) == [False] * 3, "what was sent meanwhile is not read yet"
        idle.data_received(get(b"/two"))
        half.data_received(b"TP/1.1\r\n" + HOST + b"\r\n")
        assert [reply.body for reply in replies(first.written)] == [b"GET /one  ", b"GET /two  "]
        assert [reply.status for reply in replies(second.written)] == [200]
        for _ in range(20):
            upload.data_received(b"x")
            assert look(1.0) == [False] * 3, "it has as long as it had before"
        upload.data_received(b"x" * 20)
        assert replies(third.written)[0].status == 200
        for _ in range(80):
            closed = look(1.0)
        assert closed == [True] * 3, "who is silent while it is here is late"
        server.stop_looking()
        for connection, _ in pairs:
            connection.connection_lost(None)

    on(loop, work)


def test_idle_connections_close_without_a_word(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo, idle_s=1.0) as (_, port):
            assert await talk(port, b"") == b""
            assert len(replies(await talk(port, get(b"/")))) == 1

    on(loop, work)


def refused_head(request: Request, responder: Responder) -> None:
    """Only /good is served."""
    status = 200 if request.path == "/good" else 401
    responder.respond(status, TEXT, b"%d" % len(request.body))


def is_good(request: Request) -> bool:
    return request.path == "/good"


def post(path: bytes, length: int, *lines: bytes) -> bytes:
    more = b"".join(line + b"\r\n" for line in lines)
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + more + b"Content-Length: %d\r\n\r\n" % length


@pytest.mark.parametrize(
    "head",
    [
        post(b"/bad", 30_000_000),
        post(b"/bad", 10, b"Expect: 100-continue"),
        b"POST /bad HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST /bad HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 900000\r\n\r\n",
    ],
    ids=["large", "expect", "chunked", "upgrade"],
)
def test_a_head_that_is_enough_is_answered_at_once_and_ends_the_connection(loop: Loop, head: bytes) -> None:
    async def work() -> None:
        async with serving(refused_head, judge=is_good) as (server, port):
            data = await talk(port, [post(b"/good", 2) + b"ok" + head])
            good, bad = replies(data)
            assert (good.status, good.body, bad.status) == (200, b"2", 401)
            assert bad.headers[b"connection"] == b"close"
            assert b"100 Continue" not in data
            # Its answer arrives though the client goes on sending, and nothing of that is kept.
            (bad,) = replies(await talk(port, [head, *[b"1\r\nx\r\n" * 20_000] * 20]))
            assert (bad.status, server.bodies.held) == (401, 0)

    on(loop, work)


def test_a_small_body_that_nobody_keeps_is_dropped_and_the_connection_goes_on(loop: Loop) -> None:
    async def work() -> None:
        async with serving(refused_head, judge=is_good, read_s=2.0) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(b"/bad", 6) + b"abc")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401")
            assert b"connection: close" not in head
            assert await reader.readexactly(1) == b"0"
            writer.write(b"def" + post(b"/good", 3) + b"abc")
            assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")
            # What never comes is waited for no longer than any request, and not answered twice.
            writer.write(post(b"/bad", 6) + b"abc")
            assert [reply.status for reply in replies(await reader.read(-1))] == [401]
            writer.close()

    on(loop, work)


def test_bodies_of_all_connections_are_bounded_together(loop: Loop) -> None:
    large = 100_000

    async def work() -> None:
        held = Held()
        async with serving(held, bodies_bytes=3 * large, body_bytes=2 * large) as (server, port):
            clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in clients:
                writer.write(post(b"/", large) + b"x" * (large - 1))
            while server.bodies.held < 2 * (large - 1):
                await asyncio.sleep(0.01)
            # By its length at once, by its bytes when they come; one client leaves a quarter to others.
            chunks = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % large + b"x" * large
            for sent in (post(b"/", large, b"Expect: 100-continue"), chunks):
                data = await talk(port, sent)
                assert code(data) == (503, "too_many_bodies")
                assert replies(data)[0].headers[b"retry-after"] == b"1"
            small = asyncio.ensure_future(talk(port, post(b"/small", 60_000, b"Connection: close") + b"x" * 60_000))
            assert (await held.got.get())[0].path == "/small"
            clients[0][1].write(b"x")
            request, answer = await held.got.get()
            assert (len(request.body), server.bodies.held) == (large, 2 * large - 1)  # as long as it is under way
            answer.respond(200, TEXT, b"")
            clients[1][1].transport.abort()
            while server.bodies.held:
                await asyncio.sleep(0.01)
            small.cancel()
            clients[0][1].close()

    on(loop, work)


async def opened(port: int, sent: bytes = b"", address: str = "127.0.0.1") -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    # The loop holds the transport and that the protocol; a writer that nobody holds closes when garbage is collected.
    writer.transport.get_protocol().held = reader, writer  # type: ignore[union-attr]
    writer.write(sent)
    # The server is on this loop, so a few rounds of it are enough for what was sent to be seen, however long they take.
    for _ in range(20):
        await asyncio.sleep(0.001)
    return reader


def test_who_is_idle_makes_room_and_who_is_at_work_does_not(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held, connections=4, connections_per_address=4) as (server, port):
            kept = await opened(port, get(b"/kept"))
            (await held.got.get())[1].respond(200, TEXT, b"")
            await kept.readuntil(b"\r\n\r\n")
            half, silent, later = await opened(port, b"GET / HT"), await opened(port), await opened(port)
            for gone in (silent, later, kept, half):
                await opened(port, get(b"/busy"))
                await held.got.get()
                assert await gone.read(-1) == b""
            assert code(await talk(port, get(b"/"))) == (503, "too_many_connections")
            assert (held.calls, server.under_way) == (5, 4)

    on(loop, work)


def test_one_address_leaves_room_for_another(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held, connections=6) as (_, port):
            for _ in range(3):
                await opened(port, get(b"/busy"))
                await held.got.get()
            data = await talk(port, get(b"/"))
            assert code(data) == (503, "too_many_connections")
            assert replies(data)[0].headers[b"retry-after"] == b"1"
            for _ in range(2):
                await opened(port, get(b"/other"), "127.0.0.2")
                await held.got.get()
            assert held.calls == 5
            idle = await opened(port, b"", "127.0.0.2")
            await opened(port, get(b"/other"), "127.0.0.2")  # its own idle one makes room
            await held.got.get()
            assert await idle.read(-1) == b""
            assert held.calls == 6

    on(loop, work)


def test_who_never_asked_is_waited_for_less(loop: Loop) -> None:
    async def work() -> None:
        async with serving(echo, idle_s=20.0, unasked_s=1.0) as (server, port):
            kept = await opened(port, get(b"/"))
            assert await (await opened(port)).read(-1) == b""
            assert server.connections == 1
            assert not kept.at_eof()

    on(loop, work)


def test_a_client_that_sips_is_as_late_as_one_that_sleeps(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held, write_s=0.3) as (server, port):
            client = slow_client(port)
            running = asyncio.get_running_loop()
            await running.sock_sendall(client, get(b"/"))
            (await held.got.get())[1].respond(200, TEXT, b"x" * 20_000_000)
            while server.connections:
                with contextlib.suppress(ConnectionResetError):
                    await running.sock_recv(client, 1)
                await asyncio.sleep(0.02)
            client.close()

    on(loop, work)


# Clients that leave, or take nothing.


@pytest.mark.parametrize("how", ["close", "end half", "reset"])
def test_a_client_that_leaves_is_noticed_once(loop: Loop, how: str) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get(b"/1") + get(b"/2"))
            _, answer = await held.got.get()
            answer.start(200, TEXT)
            told: asyncio.Queue[bool] = asyncio.Queue()
            answer.on_gone = lambda: told.put_nowait(answer.gone)
            if how == "close":
                writer.close()
            elif how == "end half":
                writer.write_eof()
            else:
                writer.transport.abort()
            assert await told.get() is True
            assert server.under_way == 0
            answer.write(b"x")
            answer.finish()
            while server.connections:
                await asyncio.sleep(0.01)
            assert told.empty()
            assert held.calls == 1  # what was pipelined behind is for nobody
            writer.close()

    on(loop, work)


def slow_client(port: int) -> socket.socket:
    """Connects with a small window and reads nothing by itself."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


def test_a_client_that_reads_slowly_pauses_the_answer(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (_, port):
            client = slow_client(port)
            running = asyncio.get_running_loop()
            await running.sock_sendall(client, get(b"/", last=True))
            _, answer = await held.got.get()
            steps: asyncio.Queue[str] = asyncio.Queue()
            answer.on_pause = lambda: steps.put_nowait(f"pause {answer.paused}")
            answer.on_resume = lambda: steps.put_nowait(f"resume {answer.paused}")
            answer.start(200, TEXT)
            sent = 0
            while steps.empty():
                answer.write(b"x" * 50_000)
                sent += 50_000
                await asyncio.sleep(0)
            assert await steps.get() == "pause True"
            data = b""
            while steps.empty():
                data += await running.sock_recv(client, 65536)
            assert await steps.get() == "resume False"
            answer.finish()
            while piece := await running.sock_recv(client, 65536):
                data += piece
            (reply,) = replies(data)
            assert reply.whole
            assert reply.body == b"x" * sent
            client.close()

    on(loop, work)


def test_a_client_that_leaves_with_bytes_still_to_take_is_noticed(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            client = slow_client(port)
            await asyncio.get_running_loop().sock_sendall(client, get(b"/"))
            _, answer = await held.got.get()
            gone = asyncio.Event()
            answer.on_gone = gone.set
            answer.start(200, TEXT)
            answer.write(b"x" * 20_000_000)
            client.shutdown(socket.SHUT_WR)
            await gone.wait()
            assert server.under_way == 0
            client.close()

    on(loop, work)


@pytest.mark.parametrize("whole", [True, False])
def test_a_client_that_takes_nothing_is_dropped(loop: Loop, whole: bool) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held, write_s=0.3) as (server, port):
            client = slow_client(port)
            await asyncio.get_running_loop().sock_sendall(client, get(b"/"))
            _, answer = await held.got.get()
            gone = asyncio.Event()
            answer.on_gone = gone.set
            if whole:
                answer.respond(200, TEXT, b"x" * 20_000_000)
            else:
                answer.start(200, TEXT)
                answer.write(b"x" * 20_000_000)
                await gone.wait()
            while server.connections:
                await asyncio.sleep(0.01)
            assert server.under_way == 0
            client.close()

    on(loop, work)


# Draining.


def test_draining_lets_answers_end_and_closes_the_rest(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            idle = asyncio.ensure_future(talk(port, b""))
            streamed = asyncio.ensure_future(talk(port, get(b"/stream")))
            _, stream = await held.got.get()
            waited = asyncio.ensure_future(talk(port, get(b"/wait")))
            _, wait = await held.got.get()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get(b"/half")[:10])
            while not any(connection._reader.begun_ns for connection in server._connections):
                await asyncio.sleep(0.01)
            while server.connections < 4:
                await asyncio.sleep(0.01)
            stream.start(200, TEXT)
            drained = asyncio.ensure_future(server.drain(20.0))
            assert await idle == b""
            writer.write(get(b"/half")[10:])
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            stream.write(b"end")
            stream.finish()
            wait.respond(200, TEXT, b"waited")
            _, answer = await held.got.get()
            answer.respond(200, TEXT, b"half")
            assert await drained == 0
            assert replies(await streamed)[0].body == b"end"
            for data, body in ((await waited, b"waited"), (await reader.read(-1), b"half")):
                (reply,) = replies(data)
                assert (reply.body, reply.headers[b"connection"]) == (body, b"close")
            writer.close()

    on(loop, work)


def test_what_does_not_end_is_cut_and_counted(loop: Loop) -> None:
    async def work() -> None:
        held = Held()
        async with serving(held) as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get(b"/"))
            _, answer = await held.got.get()
            gone = asyncio.Event()
            answer.on_gone = gone.set
            assert await server.drain(0.05) == 1
            assert gone.is_set()
            assert (server.connections, server.under_way) == (0, 0)
            writer.close()

    on(loop, work)


def test_a_socket_that_another_process_holds_goes_on_accepting(loop: Loop) -> None:
    async def work() -> None:
        (first,) = open_sockets("127.0.0.1", 0, 1)
        second = first.dup()
        port = first.getsockname()[1]
        before, after = HttpServer(never, Limits()), HttpServer(echo, Limits())
        await before.start([first])
        await before.drain(1.0)
        queued = asyncio.ensure_future(talk(port, get(b"/", last=True)))  # connected while nobody accepts
        await asyncio.sleep(0.05)
        await after.start([second])
        assert replies(await queued)[0].status == 200
        await after.drain(1.0)

    on(loop, work)


def test_an_error_has_openais_shape(loop: Loop) -> None:
    kinds = {status: json.loads(error_body(status, "m"))["error"]["type"] for status in (400, 401, 429, 500, 503)}
    assert kinds == {
        400: "invalid_request_error",
        401: "authentication_error",
        429: "rate_limit_error",
        500: "server_error",
        503: "server_error",
    }
    assert json.loads(error_body(404, "no such model", "k", "c")) == {
        "error": {"message": "no such model", "type": "k", "param": None, "code": "c"}
    }
