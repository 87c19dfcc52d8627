"""An edge on a real socket, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import pytest
import uvloop

from breakeven.gateway.plan.limits import Limits
from breakeven.wire.listen import open_sockets
from breakeven.wire.message import Judge, Request, Responder
from breakeven.wire.server import HttpServer

TEXT = ((b"content-type", b"text/plain"),)
both_loops = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
Loop = Callable[[], asyncio.AbstractEventLoop]


def on(loop: Loop, work: Callable[[], Awaitable[None]], limit_s: float = 120.0) -> None:
    """Run `work` on a new loop; a hang fails."""

    async def bounded() -> None:
        await asyncio.wait_for(work(), limit_s)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(bounded())


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Request, Responder], None], *, judge: Judge | None = None, **limits: Any
) -> AsyncIterator[tuple[HttpServer, int]]:
    """A server on a free port of this machine, and that port."""
    server = HttpServer(handler, Limits(**limits), judge)
    sockets = open_sockets("127.0.0.1", 0, 1)
    port = sockets[0].getsockname()[1]
    await server.start(sockets)
    try:
        yield server, port
    finally:
        await server.drain(0.0)
        assert server.connections == 0
        assert server.under_way == 0
        assert server.bodies.held == 0


def echo(request: Request, responder: Responder) -> None:
    """Answer with what was asked."""
    body = b"%s %s %s %s" % (
        request.method.encode(),
        request.path.encode("latin-1"),
        request.query.encode(),
        request.body,
    )
    responder.respond(200, TEXT, body)


@dataclass
class Reply:
    """One answer as a client's parser saw it."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False


class _Parser:
    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.replies.append(Reply())

    def on_header(self, name: bytes, value: bytes) -> None:
        self.replies[-1].headers[name] = value

    def on_headers_complete(self) -> None:
        self.replies[-1].status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.replies[-1].body += data

    def on_message_complete(self) -> None:
        self.replies[-1].whole = True


def replies(data: bytes) -> list[Reply]:
    """Everything a server sent, taken apart by llhttp's side for clients. Raises when it is not HTTP."""
    parser = _Parser()
    if data:
        parser.parser.feed_data(data)
    return parser.replies


async def talk(port: int, pieces: bytes | Sequence[bytes], *, pause_s: float = 0.0, end: bool = False) -> bytes:
    """Send the pieces, then read until the server closes. `end`: end our half after sending."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in [pieces] if isinstance(pieces, bytes) else pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        if end:
            writer.write_eof()
        return await reader.read(-1)
    finally:
        writer.close()
