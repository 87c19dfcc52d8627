"""A server whose capacity is known: so many slots, and a fixed time that an answer holds one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class QueueServer:
    """Answers `slots` requests at a time, each in `service_s`, evenly token by token; the others wait their turn.

    It carries slots / service_s requests a second and not one more. `service_s` may be changed while it runs.
    """

    slots: int
    service_s: float
    url: str = ""
    answered: int = 0
    _free: asyncio.Semaphore = field(init=False)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        tokens = int(body["max_tokens"])
        async with self._free:
            gap_s = self.service_s / tokens
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            for k in range(tokens):
                await asyncio.sleep(gap_s)
                if k == 0 and body.get("stream"):
                    await response.prepare(request)
                if body.get("stream"):
                    await response.write(_event({"choices": [{"index": 0, "finish_reason": None, "text": "tok "}]}))
        self.answered += 1
        usage = {"prompt_tokens": 7, "completion_tokens": tokens}
        end = {"index": 0, "finish_reason": "length"}
        if not body.get("stream"):
            return web.json_response({"choices": [{**end, "text": "tok " * tokens}], "usage": usage})
        await response.write(_event({"choices": [{**end, "text": ""}]}))
        await response.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def models(self, request: web.Request) -> web.Response:
        data = [{"id": "m", "object": "model", "owned_by": "somebody"}]
        return web.json_response({"object": "list", "data": data})

    async def start(self) -> web.AppRunner:
        self._free = asyncio.Semaphore(self.slots)
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/v1#m"
        return runner


def _event(payload: dict[str, object]) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


@contextmanager
def queue_server(slots: int, service_s: float) -> Iterator[QueueServer]:
    """Serve on a free loopback port, from a thread with an event loop of its own."""
    server = QueueServer(slots, service_s)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
