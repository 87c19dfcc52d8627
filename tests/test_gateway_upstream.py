"""The client of backends: every fault has its name, ends once, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import random
import re
import time
import weakref

import pytest
from chaos_server import BEHAVIOURS, ChaosServer, chaos_process
from gateway_upstream_fixtures import (
    CHAT,
    HASTY,
    PATIENT,
    FakeTransport,
    Memory,
    ask,
    body_of,
    on_both_loops,
    raw_server,
    until,
    upstream_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.model import Timeouts
from breakeven.wire import connection as connection_module
from breakeven.wire.client import GetError, HttpClient
from breakeven.wire.connection import ClientConnection, Exchange

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"

ENDS = dict.fromkeys(BEHAVIOURS, ("end", 200)) | {
    "reset_before_head": ("reset", 0),
    "close_before_head": ("reset", 0),
    "reset_mid_body": ("cut", 200),
    "close_mid_body": ("cut", 200),
    "stall": ("timeout", 0),
    "stall_after_head": ("timeout", 200),
    "stall_mid_body": ("timeout", 200),
    "truncate": ("cut", 200),
    "garbage": ("garbage", 0),
    "garbage_mid_body": ("garbage", 200),
    "400": ("end", 400),
    "429": ("end", 429),
    "500": ("end", 500),
    "502": ("end", 502),
    "503": ("end", 503),
    "529": ("end", 529),
    "huge_body": ("too_large", 200),
    "huge_headers": ("too_large", 0),
    "endless_header": ("too_large", 0),
    "die": ("reset", 0),
    "die_mid_body": ("cut", 200),
    "redirect": ("forbidden", 0),
    "switching": ("garbage", 0),
}
# What stalls later than its head must have come as far as that.
BEGUN = Timeouts(connect_s=20, first_byte_s=1.0, idle_s=0.2, total_s=20)
STALLS = {"stall": HASTY, "stall_after_head": BEGUN, "stall_mid_body": BEGUN}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is meant to happen within a second may take longer on a busy machine."""
    monkeypatch.setattr("breakeven.wire.connection._STALE_S", 30.0)
    monkeypatch.setattr("breakeven.wire.client._HASTY_S", 30.0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_each_fault_has_its_name_and_ends_once(name: str, stream: bool) -> None:
    @on_both_loops
    async def test() -> None:
        with ChaosServer(slow_s=0.0005) as server:
            timeouts = STALLS.get(name, PATIENT)
            async with upstream_of(server.url, timeouts, response_bytes=2**20) as upstream:
                memory = await ask(upstream, body_of("me", stream=stream, chaos=name))
                await asyncio.sleep(0.01)
                end, status = ENDS[name]
                # What has not passed on a byte when garbage comes can still go elsewhere.
                statuses = (0, 200) if name == "garbage_mid_body" else (status,)
                assert (memory.ends, memory.status in statuses) == ([end], True), memory.detail
                assert memory.calls[-1] == "last"
                assert upstream.under_way == 0
                assert upstream.open == upstream.idle
                if end != "end":
                    assert upstream.open == 0
                elif name not in ("slow", "huge_body") and status == 200:
                    assert memory.body.count(b"me ") == 8

    test()


@on_both_loops
async def test_whole_answers_are_those_of_the_server() -> None:
    """Bytes of the body as sent, whichever way they were framed."""
    with ChaosServer() as server:
        async with upstream_of(server.url) as upstream:
            plain = await ask(upstream, body_of(stream=True))
            for name in ("slow", "no_length", "interim", "trailers", "closes_after", "second_answer"):
                assert (await ask(upstream, body_of(stream=True, chaos=name))).body == plain.body
            assert plain.body.endswith(b"data: [DONE]\n\n")


@on_both_loops
async def test_hundreds_at_once_with_random_cancels_never_mix() -> None:
    """Property 8: ids in every piece; and counters end at zero (part of property 9)."""
    shares = {"ok": 10, "reset_mid_body": 1, "reset_before_head": 1, "close_mid_body": 1, "no_length": 1, "429": 1}
    shares |= {"closes_after": 1, "trailers": 1, "second_answer": 1, "stall_mid_body": 1, "garbage_mid_body": 1}
    dice = random.Random(5)
    with ChaosServer(shares, seed=3, chunk_s=0.001) as server:
        async with upstream_of(server.url, Timeouts(first_byte_s=20, idle_s=0.5)) as upstream:
            memories: dict[int, Memory] = {}
            cancelled: set[int] = set()

            async def one(index: int) -> None:
                memory = Memory()
                body = body_of(f"<{index}>", stream=bool(index % 3), max_tokens=1 + index % 12)
                exchange = upstream.send(CHAT, (), body, memory)
                memories[index] = memory
                if dice.random() < 0.3:
                    await asyncio.sleep(dice.random() * 0.02)
                    heard = len(memory.calls)
                    was_over = bool(memory.ends)
                    exchange.cancel()
                    if not was_over:
                        cancelled.add(id(memory))
                        await asyncio.sleep(0.01)
                        assert len(memory.calls) == heard  # nothing more after a cancel
                        return
                await memory.done.wait()

            queue = iter(range(800))

            async def client() -> None:
                for index in queue:
                    await one(index)

            await asyncio.gather(*(client() for _ in range(200)))
            assert len(memories) == 800
            assert len(cancelled) > 50
            for index, memory in memories.items():
                assert len(memory.ends) == (0 if id(memory) in cancelled else 1)
                assert set(re.findall(rb"<(\d+)>", memory.body)) <= {b"%d" % index}
            assert upstream.under_way == 0
            assert upstream.open == upstream.idle
            await until(lambda: server.seen.under_way == 0)
            await until(lambda: server.seen.open == upstream.open)


@on_both_loops
async def test_the_connection_used_last_is_used_next() -> None:
    with ChaosServer(first_s=0.02) as server:
        async with upstream_of(server.url) as upstream:
            await asyncio.gather(*(ask(upstream) for _ in range(5)))
            assert (server.seen.connections, upstream.idle) == (5, 5)
            for _ in range(6):
                assert (await ask(upstream)).ends == ["end"]
            assert (server.seen.connections, server.seen.requests, upstream.idle) == (5, 11, 5)


@on_both_loops
async def test_closed_kept_connections_are_no_error_and_nothing_is_asked_twice() -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url) as upstream:
            for _ in range(20):
                assert (await ask(upstream)).ends == ["end"]
                server.drop_idle()
            assert server.seen.requests == 20


@on_both_loops
async def test_a_server_that_closes_after_streams_is_learned() -> None:
    """As llama.cpp's server does, whose answers say keep-alive all the same."""
    with ChaosServer("closes_after") as server:
        async with upstream_of(server.url) as upstream:
            for index in range(60):
                memory = await ask(upstream, body_of(f"{index}", stream=True))
                assert (memory.ends, memory.body.count(b"%d " % index)) == (["end"], 8)
                if index % 2:
                    await until(lambda: upstream.open == 0)
            assert server.seen.requests == 60
            assert upstream._hasty >= 2
            await ask(upstream, body_of(stream=True))
            assert upstream.idle == 0


@on_both_loops
async def test_a_request_that_met_a_closing_connection_is_sent_once_more() -> None:
    async with raw_server(OK, then="close") as raw, upstream_of(raw.url) as upstream:
        assert (await ask(upstream)).ends == ["end"]
        raw.left = []
        memory = await ask(upstream)  # kept connection: closed; a fresh one: closed as well
        assert memory.ends == ["reset"]
        assert (raw.connections, len(raw.questions)) == (2, 3)
    stream = OK.replace(b"\r\n\r\n", b"\r\ncontent-type: text/event-stream\r\n\r\n")
    async with raw_server(stream, b"", OK) as raw, upstream_of(raw.url) as upstream:
        await ask(upstream)
        memory = Memory()
        upstream.send(CHAT, (), body_of("twice"), memory)
        await until(lambda: len(raw.questions) == 2)
        raw.peers[0].abort()
        await memory.done.wait()
        assert (memory.ends, memory.body, raw.connections) == (["end"], b"hi", 2)
        assert raw.questions[1] == raw.questions[2]
        assert upstream._hasty == 1  # a stream's connection, closed right after it


@on_both_loops
async def test_a_fresh_connection_and_a_begun_answer_are_never_tried_again() -> None:
    async with raw_server(then="close") as raw, upstream_of(raw.url) as upstream:
        assert (await ask(upstream)).ends == ["reset"]
        assert len(raw.questions) == 1
    async with raw_server(OK, b"HTTP/1.1 200 OK\r\n") as raw, upstream_of(raw.url) as upstream:
        await ask(upstream)
        memory = Memory()
        upstream.send(CHAT, (), b"{}", memory)
        await until(lambda: len(raw.questions) == 2)
        raw.peers[0].close()
        await memory.done.wait()
        assert (memory.ends, len(raw.questions)) == (["reset"], 2)


@on_both_loops
async def test_what_was_not_asked_for_is_nobodys_answer() -> None:
    """A second answer, in the same packet, later, or while the connection rests, closes the connection."""
    stray = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray"
    async with raw_server(OK + stray, OK, OK + b"H", OK) as raw, upstream_of(raw.url) as upstream:
        for _ in range(2):
            assert (await ask(upstream)).body == b"hi"
        raw.peers[-1].write(stray)
        for _ in range(2):
            assert (await ask(upstream)).body == b"hi"
        assert raw.connections == 4
        raw.peers[-1].write(stray)
        await until(lambda: upstream.open == 0)


@on_both_loops
async def test_trailers_of_one_answer_are_no_headers_of_the_next() -> None:
    with ChaosServer(["trailers", "ok"]) as server:
        async with upstream_of(server.url) as upstream:
            first, second = await ask(upstream, body_of(stream=True)), await ask(upstream)
            assert server.seen.connections == 1
            assert b"x-leak" not in dict(first.headers) | dict(second.headers)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize(
    ("start", "piece", "end"),
    [
        (CHUNKED + b"0\r\nX: ", b"a" * 4096, "garbage"),
        (CHUNKED + b"0\r\n", b"X: aaaaaaaa\r\n" * 300, "garbage"),
        (CHUNKED + b"2;x=", b"a" * 4096, "garbage"),
        (CHUNKED, b"1;" + b"a" * 20_000 + b"\r\nx\r\n", "garbage"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 200, "too_large"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100, "too_large"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"content-length: 9\r\n\r\n", b"", "too_large"),
    ],
    ids=["trailer", "trailers", "extension", "extensions", "continue", "hints", "lines"],
)
def test_what_is_nobodys_body_ends_an_answer(start: bytes, piece: bytes, end: str) -> None:
    memory = _driven([start, *[piece] * 60], lost=False)
    assert memory.ends == [end]
    taken = sum(call == "body" for call in memory.calls)
    assert taken <= 5


def test_the_smallest_pieces_are_no_burden() -> None:
    smallest = b"1;name=" + b"v" * 40 + b"\r\nx\r\n"
    memory = _driven([CHUNKED, *[smallest * 50] * 60, b"0\r\nx: y\r\n\r\n"], lost=False)
    assert (memory.ends, len(memory.body)) == (["end"], 3002)


@on_both_loops
async def test_cancelling_closes_the_connection_at_once() -> None:
    with ChaosServer(first_s=30) as server:
        async with upstream_of(server.url) as upstream:
            exchanges = [upstream.send(CHAT, (), body_of(), Memory()) for _ in range(30)]
            await until(lambda: server.seen.requests == 30)
            for exchange in exchanges:
                exchange.cancel()
                exchange.cancel()
            assert upstream.under_way == 0
            await until(lambda: server.seen.cancelled == 30 and server.seen.open == 0)
            for _ in range(30):  # before there is a connection
                upstream.send(CHAT, (), body_of(), Memory()).cancel()
            assert upstream.under_way == 0
            await until(lambda: upstream.open == 0)
            assert server.seen.requests == 30


def _cancel_at(at: str, memory: Memory) -> None:
    if memory.calls[-1] == at:
        assert memory.exchange is not None
        memory.exchange.cancel()
        memory.done.set()


@on_both_loops
async def test_a_sink_may_cancel_or_ask_again_from_any_call() -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url) as upstream:
            for at in ("head", "body"):
                memory = Memory(functools.partial(_cancel_at, at))
                memory.exchange = upstream.send(CHAT, (), body_of(stream=True), memory)
                await memory.done.wait()
                await asyncio.sleep(0.02)
                assert memory.calls[-1] == at
                assert memory.ends == []
            second = Memory()
            first = Memory(lambda m: upstream.send(CHAT, (), body_of(), second) and None if m.ends else None)
            upstream.send(CHAT, (), body_of(), first)
            await second.done.wait()
            assert (first.ends, second.ends, server.seen.connections) == (["end"], ["end"], 3)


@on_both_loops
async def test_a_paused_exchange_takes_no_more_and_is_not_late() -> None:
    with ChaosServer("huge_body", huge_bytes=32 * 2**20) as server:
        async with upstream_of(server.url, Timeouts(first_byte_s=20, idle_s=1.0, total_s=60)) as upstream:
            memory = Memory()
            exchange = upstream.send(CHAT, (), body_of(), memory)
            exchange.pause()
            await asyncio.sleep(0.3)
            assert memory.calls == []
            exchange.resume()
            await until(lambda: bool(memory.pieces))
            exchange.pause()
            taken = len(memory.body)
            await asyncio.sleep(1.5)
            assert (len(memory.body), memory.ends) == (taken, [])
            assert taken < 32 * 2**20
            exchange.resume()
            await memory.done.wait()
            assert (memory.ends, len(memory.body)) == (["end"], 32 * 2**20)
            assert (await ask(upstream, body_of(chaos="ok"))).ends == ["end"]  # the connection reads again


def test_a_pause_is_not_the_backends_silence() -> None:
    upstream = HttpClient("http://127.0.0.1:1", timeouts=PATIENT)
    connection, exchange = ClientConnection(upstream), Exchange(upstream, b"", b"", Memory(), 0)
    connection.connection_made(FakeTransport())  # type: ignore[arg-type]
    connection.send(exchange)
    now_ns, second_ns = exchange.sent_ns, 10**9
    connect_ns = round(PATIENT.connect_s) * second_ns
    exchange.issued_ns, exchange.waiting_body = now_ns, False
    exchange.heard_ns = now_ns - (round(PATIENT.idle_s) + 1) * second_ns
    assert exchange.late(now_ns, connect_ns) == "no byte for 20 s"
    exchange.pause()
    assert exchange.late(now_ns, connect_ns) == ""
    assert "not finished" in exchange.late(now_ns + (round(PATIENT.total_s) + 1) * second_ns, connect_ns)
    exchange.resume()
    assert exchange.late(now_ns, connect_ns) == ""


@on_both_loops
async def test_an_answer_to_head_has_no_body() -> None:
    async with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n") as raw, upstream_of(raw.url) as upstream:
        memory = Memory()
        upstream.send("/v1/models", (), b"", memory, b"HEAD")
        await memory.done.wait()
        assert (memory.ends, memory.body, dict(memory.headers)) == (["end"], b"", {b"content-length": b"5"})


@on_both_loops
async def test_a_connection_paused_at_its_end_serves_the_next() -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url) as upstream:
            memory = Memory(lambda m: m.exchange.pause() if m.exchange and m.pieces and not m.ends else None)
            memory.exchange = upstream.send(CHAT, (), body_of(), memory)  # its head, body and end come together
            await memory.done.wait()
            assert ((await ask(upstream)).ends, server.seen.connections) == (["end"], 1)


@on_both_loops
async def test_large_requests_arrive_whole() -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url) as upstream:
            body = body_of(padding="x" * 8_000_000)
            assert (await ask(upstream, body)).ends == ["end"]
            assert server.seen.bodies[-1] == body


@on_both_loops
async def test_an_answer_before_the_request_was_sent_ends_the_connection() -> None:
    """Else the rest of its body would be read as the next request."""
    early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"
    async with raw_server(early, then="deaf") as raw, upstream_of(raw.url) as upstream:
        memory = Memory()
        upstream.send(CHAT, (), b"x" * 30_000_000, memory)
        await memory.done.wait()
        assert (memory.status, memory.body, memory.ends, upstream.idle) == (413, b"no", ["end"], 0)


@on_both_loops
async def test_nobody_listens_and_nobody_answers() -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url, PATIENT) as upstream:
            server.down()
            memory = await ask(upstream)
            assert (memory.ends, memory.status) == (["refused"], 0)
            server.up()
            assert (await ask(upstream)).ends == ["end"]
    async with upstream_of("http://no-such-host.invalid:1") as upstream:
        assert (await ask(upstream)).ends == ["unreachable"]


class Watched(Exchange):
    """An exchange whose end can be seen: it has no slots of its own."""


@on_both_loops
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid:1"])
async def test_what_found_no_server_goes_at_once_with_what_it_held(url: str) -> None:
    gc.collect()
    gc.disable()
    try:
        async with upstream_of(url, Timeouts(connect_s=20)) as upstream:
            memory = Memory()
            exchange = Watched(upstream, b"POST / HTTP/1.1\r\n\r\n", b"x" * 1000, memory, time.monotonic_ns())
            upstream.start(exchange)
            await memory.done.wait()
            assert memory.ends in (["refused"], ["unreachable"])
            assert isinstance(exchange.failure, OSError)
            assert (exchange.head, exchange.body) == (b"", b"")
            seen = weakref.ref(exchange)
            del exchange
            await until(lambda: seen() is None)
    finally:
        gc.enable()


@on_both_loops
async def test_a_connection_that_never_comes_about_is_given_up() -> None:
    async with upstream_of("http://127.0.0.1:9", Timeouts(connect_s=0.1)) as upstream:

        async def never(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        upstream._addresses = ["127.0.0.1"]
        upstream._open_connection = never  # type: ignore[method-assign,assignment]
        memory = await ask(upstream)
        assert (memory.ends, memory.detail) == (["timeout"], "no connection within 0.1 s")
        assert upstream._addresses == []  # the next one asks for the name anew


@on_both_loops
async def test_an_answer_that_never_ends_is_given_up() -> None:
    with ChaosServer(chunk_s=0.01) as server:
        async with upstream_of(server.url, Timeouts(total_s=0.3)) as upstream:
            memory = await ask(upstream, body_of(stream=True, max_tokens=90_000))
            assert (memory.ends, memory.detail) == (["timeout"], "not finished within 0.3 s")


class Sitting:
    """A client with `count` requests under way, by a clock that stands still; `look` is what its timer calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.now_ns = 10**12
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now_ns)
        waits = Timeouts(connect_s=5, first_byte_s=10, idle_s=10, total_s=900)
        self.client = HttpClient("http://127.0.0.1:1", timeouts=waits)
        self.sinks = [Memory() for _ in range(count)]
        self.connections = [ClientConnection(self.client) for _ in self.sinks]
        for connection, sink in zip(self.connections, self.sinks, strict=True):
            connection.connection_made(FakeTransport())  # type: ignore[arg-type]
            self.client.release(connection)
            self.client.send(CHAT, (), b"{}", sink)

    def look(self, after_s: float) -> list[list[str]]:
        """How each has ended."""
        self.now_ns += round(after_s * 1e9)
        self.client._sweep()
        return [list(sink.ends) for sink in self.sinks]


async def test_who_was_away_itself_looks_once_more_before_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is awaited, so that no timer of the loop looks as well."""
    one = Sitting(monkeypatch, 2)
    assert one.look(0.5) == [[], []]
    assert one.look(100.0) == [[], []], "it was stopped, and its sockets are not read yet"
    one.connections[0].data_received(OK)
    assert one.look(0.5) == [["end"], ["timeout"]]
    assert one.sinks[1].detail == "no first byte within 10 s"
    again = Sitting(monkeypatch, 1)
    assert [again.look(100.0), again.look(100.0)] == [[[]], [["timeout"]]], "one round more, and no other"
    usual = Sitting(monkeypatch, 1)
    seen = [usual.look(0.6) for _ in range(17)]
    assert seen == [[[]]] * 16 + [[["timeout"]]], "a look that is a little late judges"
    for client in (one.client, again.client, usual.client):
        await client.close()


@on_both_loops
async def test_get() -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url, PATIENT) as upstream:
            status, page = await upstream.get("/metrics")
            assert (status, b"llamacpp:requests_processing 0\n" in page) == (200, True)
            assert (await upstream.get("/nothing"))[0] == 404
            with pytest.raises(GetError, match="larger than 10 bytes") as raised:
                await upstream.get("/metrics", limit_bytes=10)
            assert raised.value.trouble == "too_large"
            server.down()
            with pytest.raises(GetError, match="nobody listens"):
                await upstream.get("/metrics")
    async with raw_server() as raw, upstream_of(raw.url) as upstream:
        with pytest.raises(GetError, match="not finished within"):
            await upstream.get("/health", timeout_s=0.1)


@on_both_loops
async def test_a_server_in_another_process() -> None:
    with chaos_process({"ok": 1}) as url:
        async with upstream_of(url) as upstream:
            assert (await ask(upstream)).ends == ["end"]
            changed = Memory()
            upstream.send("/scripted/script", (), b'"429"', changed)
            await changed.done.wait()
            assert (await ask(upstream)).status == 429
            seen = json.loads((await upstream.get("/scripted/seen"))[1])
            assert (seen["requests"], seen["behaviours"]) == (2, {"ok": 1, "429": 1})


@on_both_loops
async def test_closing_ends_everything_in_silence() -> None:
    with ChaosServer(["ok", "stall"]) as server:
        upstream = HttpClient(server.url, timeouts=PATIENT)
        await ask(upstream)
        memories = [Memory() for _ in range(10)]
        for memory in memories:
            upstream.send(CHAT, (), body_of(), memory)
        await until(lambda: server.seen.requests == 11)
        upstream.send(CHAT, (), body_of(), Memory())  # still without a connection
        await upstream.close()
        assert (upstream.open, upstream.idle, upstream.under_way) == (0, 0, 0)
        assert all(memory.calls == [] for memory in memories)
        assert (await ask(upstream)).ends == ["unreachable"]


def _driven(data: list[bytes], *, lost: bool = True) -> Memory:
    """What a sink hears when an answer comes in these pieces, none of them while nothing is to be read."""

    async def drive() -> Memory:
        upstream = HttpClient("http://127.0.0.1:1", timeouts=PATIENT, response_bytes=4096)
        connection, memory, transport = ClientConnection(upstream), Memory(), FakeTransport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection.send(Exchange(upstream, b"POST / HTTP/1.1\r\n\r\n", b"", memory, 0))
        for piece in data:
            while transport.paused and not transport.closing:
                await asyncio.sleep(0)
            connection.data_received(piece)
        if lost:
            connection.connection_lost(None)
        return memory

    return asyncio.run(drive())


ANSWER = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream"
    b"\r\nX-Empty:\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
)


@pytest.mark.parametrize("long_ns", [connection_module.LONG_NS, -1], ids=["quick", "slow"])
def test_an_answer_means_the_same_wherever_it_is_split(long_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LONG_NS", long_ns)

    def heard(memory: Memory) -> tuple[object, ...]:
        return memory.ends, memory.status, memory.body, list(memory.headers), memory.calls[0], memory.calls[-1]

    whole = heard(_driven([ANSWER]))
    assert whole[0] == ["end"]
    assert whole[2] == b"hello world"
    assert whole[3] == [(b"content-type", b"text/event-stream"), (b"x-empty", b"")]
    for at in range(1, len(ANSWER)):
        assert heard(_driven([ANSWER[:at], ANSWER[at:]])) == whole
    assert heard(_driven([ANSWER[i : i + 1] for i in range(len(ANSWER))])) == whole


def test_an_answer_that_stops_early_is_never_whole() -> None:
    for at in range(len(ANSWER)):
        begun = at > ANSWER.index(b"hello")
        assert _driven([ANSWER[:at]]).ends == ["cut" if begun else "reset"]


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200\r\n",
        b"HTTP/1.1 304 x\r\n",
        b"HTTP/1.1 100\r\n\r\n",
        b"content-length: 3\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"connection: close\r\n",
        b"upgrade: h2c\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
        b"\x00",
        b"x: " + b"y" * 70_000,
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=40), max_size=14), st.data())
def test_no_answer_however_odd_breaks_anything_or_ends_twice(parts: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    memory = _driven([piece for piece in pieces if piece])
    assert len(memory.ends) == 1
    assert memory.calls[-1] == "last"
    assert memory.calls.count("head") <= 1
    assert len(memory.body) <= 4096
    assert "body" not in memory.calls or memory.calls[0] == "head"
