"""What tests of the client of backends share: a sink that remembers, both kinds of loop, a server of given bytes."""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from breakeven.gateway.plan.model import Timeouts
from breakeven.wire.client import HttpClient
from breakeven.wire.connection import Exchange
from breakeven.wire.message import Headers, Trouble

CHAT = "/v1/chat/completions"
JSON = ((b"content-type", b"application/json"),)
PATIENT = Timeouts(connect_s=20, first_byte_s=20, idle_s=20, total_s=60)
HASTY = Timeouts(connect_s=20, first_byte_s=0.2, idle_s=0.2, total_s=20)
"""For servers that stay silent; everything else uses PATIENT, so that a busy machine is no failure."""


class Memory:
    """A sink that keeps what it hears. `ends`: every ending; one is right."""

    def __init__(self, then: Callable[[Memory], None] | None = None) -> None:
        self.status = 0
        self.headers: Headers = ()
        self.pieces: list[bytes] = []
        self.ends: list[str] = []
        self.detail = ""
        self.calls: list[str] = []
        self.done = asyncio.Event()
        self.then = then
        self.exchange: Exchange | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def on_head(self, status: int, headers: Headers) -> None:
        self.calls.append("head")
        self.status, self.headers = status, headers
        self._next()

    def on_body(self, data: bytes) -> None:
        self.calls.append("body")
        self.pieces.append(data)
        self._next()

    def on_end(self) -> None:
        self._end("end")

    def on_trouble(self, trouble: Trouble, detail: str) -> None:
        self.detail = detail
        self._end(trouble)

    def _end(self, how: str) -> None:
        self.calls.append("last")
        self.ends.append(how)
        self.done.set()
        self._next()

    def _next(self) -> None:
        if self.then is not None:
            self.then(self)


def body_of(ident: str = "i", *, stream: bool = False, **fields: Any) -> bytes:
    return json.dumps({"model": "mock", "stream": stream, "chaos_id": ident, "messages": [], **fields}).encode()


async def ask(upstream: HttpClient, body: bytes | None = None, *, headers: Headers = JSON, path: str = CHAT) -> Memory:
    """Send and wait for the end."""
    memory = Memory()
    memory.exchange = upstream.send(path, headers, body_of() if body is None else body, memory)
    await memory.done.wait()
    return memory


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or the next round of the loop brings; the test's own time limit is the bound."""
    while not condition():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def upstream_of(url: str, timeouts: Timeouts = PATIENT, **settings: Any) -> AsyncIterator[HttpClient]:
    upstream = HttpClient(url, timeouts=timeouts, **settings)
    try:
        yield upstream
    finally:
        await upstream.close()
        assert (upstream.open, upstream.idle, upstream.under_way) == (0, 0, 0)


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test on asyncio's own loop, then on uvloop's."""

    def run(**fixtures: Any) -> None:
        for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(_bounded(test(**fixtures)))

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__dict__.update(test.__dict__)
    return run


async def _bounded(test: Awaitable[None]) -> None:
    async with asyncio.timeout(300):
        await test


class RawServer:
    """Sends given bytes, one answer a request. `then`, when they are used up: "close", "wait", "deaf" (reads no more).

    `questions` are the bytes of each request; `connections` counts.
    """

    def __init__(self, answers: list[bytes], then: str) -> None:
        self.left, self.then = list(answers), then
        self.questions: list[bytes] = []
        self.connections = 0
        self.peers: list[asyncio.Transport] = []
        self.url = ""


@asynccontextmanager
async def raw_server(
    *answers: bytes, then: str = "wait", tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    raw = RawServer(list(answers), then)

    class Raw(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            raw.peers.append(transport)
            raw.connections += 1

        def data_received(self, data: bytes) -> None:
            raw.questions.append(data)
            if raw.then == "deaf":
                self.transport.pause_reading()
            if raw.left:
                self.transport.write(raw.left.pop(0))
            elif raw.then == "close":
                self.transport.close()

    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", 0, ssl=tls)
    raw.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        for peer in raw.peers:
            peer.abort()


class FakeTransport:
    """Enough of a transport for `Connection` to be driven by hand."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
