"""An OpenAI-compatible server whose every delay and every fault is written in a script: truth to test the client on.

It sleeps exactly as told before the first piece and between pieces, and remembers when it wrote each of them on the
same monotonic clock the client uses. Requests that do not ask for a stream get the same answer in one piece, after the
same time. It can die and come back at its port, and stand still as a whole.
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
    "slow_loris",
    "hang_up",
    "no_close",
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
    retry_after: str | None = None
    """`Retry-After` header of a scripted status."""


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
    connections: list[str] = field(default_factory=list)
    """Where each request came from; a kept connection keeps its port."""
    metrics_text: str | None = None
    """What `/metrics` answers; None: there is no such path."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _runner: web.AppRunner | None = None
    _port: int = 0

    def start(self) -> None:
        """Listen; at the port it had, if it had one. Call it from outside the server's thread."""

        async def listen() -> None:
            self._runner = web.AppRunner(self.application(), shutdown_timeout=0.1)
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
            self._port = self._runner.addresses[0][1]
            self.url = f"http://127.0.0.1:{self._port}"

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)

    def die(self) -> None:
        """Break every connection and stop listening. `start` brings it back."""

        async def end() -> None:
            runner, self._runner = self._runner, None
            if runner is None:
                return
            for connection in list(runner.server.connections) if runner.server else []:
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)

    def pause(self, seconds: float) -> None:
        """Stand still: nothing is read, written or timed for so long."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        if not self.chat_only:
            app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/tokenize", self._tokenize)
        if self.metrics_text is not None:
            app.router.add_get("/metrics", self._metrics)
        return app

    async def _tokenize(self, request: web.Request) -> web.Response:
        """A token a word, in llama.cpp's dialect ("content") or vLLM's ("prompt")."""
        body = await request.json()
        words = str(body.get("content", body.get("prompt", ""))).split()
        tokens = [sum(word.encode()) for word in words]
        return web.json_response({"tokens": tokens, "count": len(tokens)})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics_text)

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
        assert request.transport is not None
        self.connections.append(str(request.transport.get_extra_info("peername")))
        self.wrote_ns.append([])
        if denied := self._denied(request):
            return denied
        if self.refuse_extra_fields and "ignore_eos" in body:
            return web.json_response({"error": {"message": "unrecognized argument: ignore_eos"}}, status=400)
        script = self.scripts[min(index, len(self.scripts) - 1)]
        if script.fault and script.fault.startswith("status_"):
            status = int(script.fault.removeprefix("status_"))
            headers = {"Retry-After": script.retry_after} if script.retry_after else None
            return web.json_response({"error": {"message": f"scripted {status}"}}, status=status, headers=headers)
        if script.fault == "hang_up":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if not body.get("stream"):
            return await self._whole(request, body, script, index)
        return await self._stream(request, body, script, index)

    async def _whole(
        self, request: web.Request, body: dict[str, object], script: Script, index: int
    ) -> web.StreamResponse:
        asked = body["max_tokens"]
        assert isinstance(asked, int)
        total = asked // 2 if script.fault == "short" else asked
        await asyncio.sleep(script.ttft_s + script.itl_s * max(0, total - 1))
        text = "tok " * total
        answer = {"message": {"content": text}} if "messages" in body else {"text": text}
        event: dict[str, object] = {"choices": [{"index": 0, "finish_reason": "length", **answer}]}
        if script.fault != "no_usage":
            event["usage"] = _usage(script, total)
        if script.count_aloud:
            event["timings"] = _timings(total)
        if script.fault == "engine_error":
            event = {"error": {"message": "out of memory", "code": 500}}
        data = b"<html>oops</html>" if script.fault == "garbage" else json.dumps(event).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
        await response.prepare(request)
        self.wrote_ns[index].append(time.monotonic_ns())
        await response.write(data[: len(data) // 2])
        if script.fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return response
        if script.fault == "stall":
            await asyncio.sleep(60)
        await response.write(data[len(data) // 2 :])
        await response.write_eof()
        return response

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
                    case "slow_loris":
                        while True:
                            await response.write(b"data:x"[piece % 6 :][:1])
                            piece += 1
                            await asyncio.sleep(0.02)
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
        usage = _usage(script, total)
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
        if script.fault == "no_close":
            await asyncio.sleep(60)
        await response.write_eof()
        return response


def _usage(script: Script, total: int) -> dict[str, object]:
    details = {"cached_tokens": script.cached_tokens}
    return {"prompt_tokens": 7, "completion_tokens": total, "prompt_tokens_details": details}


def _timings(predicted: int) -> dict[str, float]:
    return {"prompt_n": 7, "prompt_ms": 1.0, "predicted_n": predicted, "predicted_ms": 10.0 * max(predicted - 1, 0)}


@contextmanager
def golden_server(*scripts: Script, **settings: object) -> Iterator[GoldenServer]:
    """Serve the scripts on a free loopback port, from a thread with an event loop of its own."""
    server = GoldenServer(list(scripts) or [Script()], **settings)  # type: ignore[arg-type]
    loop = server._loop
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        server.start()
        yield server
    finally:
        server.die()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
