"""An OpenAI-compatible server whose every delay and every fault is written in a script: truth to test the client on.

It sleeps exactly as told before the first piece and between pieces, and remembers when it wrote each of them on the
same monotonic clock the client uses.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

FAULTS = (
    "garbage",
    "half_event",
    "no_usage",
    "two_usages",
    "no_newline",
    "output_after_done",
    "no_done",
    "reset",
    "stall",
    "slow_headers",
    "short",
    "engine_error",
    "status_401",
    "status_404",
    "status_429",
    "status_500",
)


@dataclass
class Script:
    """How one request is answered. `tokens_per_piece` cycles; `count_aloud` sends a running count as llama.cpp does."""

    ttft_s: float = 0.0
    itl_s: float = 0.0
    fault: str | None = None
    tokens_per_piece: tuple[int, ...] = (1,)
    count_aloud: bool = False
    newline: str = "\n"
    split_bytes: int = 0
    """Write the stream in pieces of this many bytes (0: one write an event)."""
    cached_tokens: int = 0


@dataclass
class GoldenServer:
    """What was served: `scripts` by order of arrival (the last one repeats), `wrote_ns` one list a request."""

    scripts: list[Script]
    url: str = ""
    model: str = "golden"
    owned_by: str = "golden"
    key: str | None = None
    refuse_extra_fields: bool = False
    chat_only: bool = False
    models: list[str] = field(default_factory=lambda: ["golden", "other"])
    bodies: list[dict[str, object]] = field(default_factory=list)
    received_ns: list[int] = field(default_factory=list)
    wrote_ns: list[list[int]] = field(default_factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        if not self.chat_only:
            app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    def _denied(self, request: web.Request) -> web.Response | None:
        if self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        # Echoing the key is what a careless gateway does; ours must not pass it on.
        return web.json_response({"error": {"message": f"bad {request.headers.get('Authorization')}"}}, status=401)

    async def _models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "owned_by": self.owned_by} for name in self.models]
        return self._denied(request) or web.json_response({"object": "list", "data": data})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.received_ns.append(time.monotonic_ns())
        index = len(self.bodies)
        body = await request.json()
        self.bodies.append(body)
        self.wrote_ns.append([])
        if denied := self._denied(request):
            return denied
        if self.refuse_extra_fields and "ignore_eos" in body:
            return web.json_response({"error": {"message": "unrecognized argument: ignore_eos"}}, status=400)
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1}})
        script = self.scripts[min(index, len(self.scripts) - 1)]
        if script.fault and script.fault.startswith("status_"):
            status = int(script.fault.removeprefix("status_"))
            return web.json_response({"error": {"message": f"scripted {status}"}}, status=status)
        return await self._stream(request, body, script, index)

    async def _stream(
        self, request: web.Request, body: dict[str, object], script: Script, index: int
    ) -> web.StreamResponse:
        if script.fault == "slow_headers":
            await asyncio.sleep(60)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        end = script.newline * 2

        async def send(payload: str, ending: str = end) -> None:
            data = f"data: {payload}{ending}".encode()
            step = script.split_bytes or len(data)
            self.wrote_ns[index].append(time.monotonic_ns())
            for start in range(0, len(data), step):
                await response.write(data[start : start + step])

        def reset() -> None:
            assert request.transport is not None
            request.transport.abort()

        chat = "messages" in body
        asked = body["max_tokens"]
        assert isinstance(asked, int)
        total = asked // 2 if script.fault == "short" else asked
        await asyncio.sleep(script.ttft_s)
        sent, piece = 0, 0
        while sent < total:
            if sent:
                await asyncio.sleep(script.itl_s)
            if sent >= total // 2:
                match script.fault:
                    case "garbage":
                        await send('{"choices": [oops')
                    case "half_event":
                        await response.write(b'data: {"choices": [{"te')
                        await response.write_eof()
                        return response
                    case "reset":
                        reset()
                        return response
                    case "stall":
                        await asyncio.sleep(60)
                    case "engine_error":
                        await send(json.dumps({"error": {"message": "out of memory", "code": 500}}))
            count = min(script.tokens_per_piece[piece % len(script.tokens_per_piece)], total - sent)
            sent, piece = sent + count, piece + 1
            text = "tok " * count
            choice = {"index": 0, "finish_reason": None, **({"delta": {"content": text}} if chat else {"text": text})}
            event: dict[str, object] = {"choices": [choice]}
            if script.count_aloud:
                event["timings"] = _timings(sent)
            await send(json.dumps(event), "" if script.fault == "no_newline" else end)
        final = {"index": 0, "finish_reason": "length", **({"delta": {}} if chat else {"text": ""})}
        usage = {
            "prompt_tokens": 7,
            "completion_tokens": total,
            "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
        }
        last: dict[str, object] = {"choices": [final]}
        if script.count_aloud:
            last["timings"] = _timings(sent)
        await send(json.dumps(last))
        if script.fault != "no_usage":
            await send(json.dumps({"choices": [], "usage": usage}))
        if script.fault == "two_usages":
            await send(json.dumps({"choices": [], "usage": usage}))
        if script.fault != "no_done":
            await send("[DONE]")
        if script.fault == "output_after_done":
            await asyncio.sleep(0.01)
            await send(json.dumps({"choices": [{"text": "late"}]}))
        await response.write_eof()
        return response


def _timings(predicted: int) -> dict[str, float]:
    return {"prompt_n": 7, "prompt_ms": 1.0, "predicted_n": predicted, "predicted_ms": 10.0 * max(predicted - 1, 0)}


@contextmanager
def golden_server(*scripts: Script, **settings: object) -> Iterator[GoldenServer]:
    """Serve the scripts on a free loopback port, from a thread with an event loop of its own."""
    server = GoldenServer(list(scripts) or [Script()], **settings)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
