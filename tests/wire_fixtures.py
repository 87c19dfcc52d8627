"""What the tests of the HTTP client share: both kinds of event loop, calls, and a server that sends given bytes."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from golden_server import GoldenServer

from breakeven.engines.backend import Backend
from breakeven.measure.events import RequestDone
from breakeven.measure.pool import Call, Pool
from breakeven.wire.loop import new_loop

DONE = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test on asyncio's own loop, then on the one that runs use."""

    def run(**fixtures: Any) -> None:
        for factory in (asyncio.new_event_loop, new_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(_bounded(test(**fixtures)))

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__dict__.update(test.__dict__)
    return run


async def _bounded(test: Awaitable[None]) -> None:
    async with asyncio.timeout(300):
        await test


def backend_of(url: str, pid: int | None = None, key: str | None = None) -> Backend:
    return Backend(url, "golden", key, {"engine": "unknown"}, pid, None)


def call_of(index: int = 0, **changes: Any) -> Call:
    fields: dict[str, Any] = {
        "block": "b",
        "index": index,
        "path": "/v1/completions",
        "prompt_tokens": 5,
        "max_tokens": 8,
        "due_ns": None,
    }
    fields |= changes
    stream = str(fields.get("stream", True)).lower()
    prompt = '"messages": []' if "chat" in fields["path"] else '"prompt": "a"'
    fields.setdefault("body", f'{{"max_tokens": {fields["max_tokens"]}, "stream": {stream}, {prompt}}}'.encode())
    return Call(**fields)


async def send(pool: Pool, call: Call) -> RequestDone:
    future: asyncio.Future[RequestDone] = asyncio.get_running_loop().create_future()
    pool.start(call, future.set_result)
    return await asyncio.wait_for(future, 120)


@asynccontextmanager
async def pool_of(server: GoldenServer | str, pid: int | None = None, **settings: Any) -> AsyncIterator[Pool]:
    pool = Pool(backend_of(server if isinstance(server, str) else server.url, pid), **settings)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def raw_server(*answers: bytes, then: str = "close", tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that sends exactly these bytes, one answer a request, and then closes, aborts or waits."""
    left = list(answers)
    loop = asyncio.get_running_loop()

    class Raw(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if left:
                self.transport.write(left.pop(0))
            if not left and then == "close":
                self.transport.close()
            elif not left and then == "abort":
                loop.call_later(0.05, self.transport.abort)

    server = await loop.create_server(Raw, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def answer_to(answer: bytes, *, then: str = "close", **changes: Any) -> RequestDone:
    async with raw_server(answer, then=then) as url, pool_of(url) as pool:
        return await send(pool, call_of(**changes))
