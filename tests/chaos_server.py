"""A backend that speaks the OpenAI API and misbehaves on demand. For tests and benchmarks of the gateway.

    with ChaosServer("ok") as server:                        # every request answered
    with ChaosServer({"ok": 0.9, "reset_mid_body": 0.1}, seed=1) as server:    # seeded shares
    with ChaosServer(["503", "ok"]) as server:               # in order; the last one goes on
    with ChaosServer(lambda body, n: "ok") as server:        # body: chaos_answers.Body, n: count of requests
    with chaos_process("ok", "--chunk-s", "0.01") as url:     # the same in a process of its own, for benchmarks

`server.url` has no /v1. A request overrides the script by its header `x-chaos` or its body field "chaos" (names:
chaos_answers.BEHAVIOURS), and sets the id that every piece of its answer holds by `x-chaos-id` or "chaos_id". The
server runs on a loop in a thread of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httptools
import msgspec
from chaos_answers import BEHAVIOURS, Answer, Body, Question, head

Script = str | Mapping[str, float] | Sequence[str] | Callable[[Body, int], str]
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
_KEPT = 2000
_decode = msgspec.json.Decoder(Body).decode


class Seen:
    """What the server saw. `cancelled`: questions whose connection the client closed before the answer was whole."""

    def __init__(self) -> None:
        self.requests = self.answered = self.cancelled = self.broken = 0
        self.connections = self.open = self.under_way = self.most_under_way = self.polls = 0
        self.behaviours: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.headers: deque[dict[str, str]] = deque(maxlen=_KEPT)
        self.bodies: deque[bytes] = deque(maxlen=_KEPT)


class _Connection(asyncio.Protocol):
    def __init__(self, server: ChaosServer) -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.parser = httptools.HttpRequestParser(self)
        self.waiting: deque[tuple[str, dict[str, str], bytes]] = deque()
        self.answer: Answer | None = None
        self.step = 0
        self.timer: asyncio.TimerHandle | None = None
        self.url = b""
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        server = self.server
        server.seen.connections += 1
        server.seen.open += 1
        server.peers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        server = self.server
        server.seen.open -= 1
        server.peers.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if self.answer is not None:
            self.answer = None
            server.seen.under_way -= 1
            server.seen.cancelled += 1

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.transport.write(head(400, "content-length: 0", "connection: close"))
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.waiting.append((self.url.decode(), self.headers, b"".join(self.body)))
        if self.answer is None:
            self.next()

    def next(self) -> None:
        if self.waiting and not self.transport.is_closing():
            path, headers, body = self.waiting.popleft()
            self.answer, self.step = self.server.answer(path.partition("?")[0], headers, body), 0
            self.server.seen.under_way += 1
            self.server.seen.most_under_way = max(self.server.seen.most_under_way, self.server.seen.under_way)
            self.play()

    def play(self, waited: bool = False) -> None:
        answer = self.answer
        assert answer is not None
        while self.step < len(answer.pieces):
            wait_s = answer.waits_s[self.step] if self.step < len(answer.waits_s) else 0.0
            if wait_s > 0 and not waited:
                self.timer = self.server.loop.call_later(wait_s, self.play, True)
                return
            waited = False
            self.transport.write(answer.pieces[self.step])
            self.step += 1
        if answer.then != "hang":
            self.finish(answer)

    def finish(self, answer: Answer) -> None:
        seen = self.server.seen
        self.answer = None
        seen.under_way -= 1
        if answer.then == "keep":
            seen.answered += 1
            self.next()
        elif answer.then == "close":
            seen.answered += 1
            self.transport.close()
        else:
            seen.broken += 1
            if answer.then == "die":
                self.server.die()
            else:
                self.reset()

    def reset(self) -> None:
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class ChaosServer:
    """The server. `settings` are fields of `chaos_answers.Question` (chunks, first_s, chunk_s, ...)."""

    def __init__(
        self,
        script: Script = "ok",
        *,
        seed: int = 0,
        port: int = 0,
        models: Sequence[str] = ("mock",),
        engine: str = "llama.cpp",
        slots: int = 4,
        die_s: float = 0.2,
        tls: Any = None,
        **settings: Any,
    ) -> None:
        self.script: Script = script
        self.models, self.engine, self.slots, self.die_s, self.tls = list(models), engine, slots, die_s, tls
        self.settings = settings
        self.seen = Seen()
        self.peers: set[_Connection] = set()
        self.port = port
        self.new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        self._dice = random.Random(seed)
        self._listener: asyncio.Server | None = None
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        ready = threading.Event()
        failed: list[BaseException] = []

        def serve() -> None:
            self.loop = self.new_loop()
            try:
                self.loop.run_until_complete(self._listen())
            except BaseException as error:
                failed.append(error)
                return
            finally:
                ready.set()
            self.loop.run_forever()
            self._close()
            self.loop.run_until_complete(asyncio.sleep(0.01))
            self.loop.close()

        self._thread = threading.Thread(target=serve, name="chaos", daemon=True)
        self._thread.start()
        ready.wait(10)
        if failed:
            raise failed[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        assert self._thread is not None
        self._thread.join(10)

    def down(self) -> None:
        """Nobody listens from now on, and every connection is reset. Call from another thread."""
        self._on_loop(self._close)

    def up(self) -> None:
        """Listen again, on the same port. Call from another thread."""
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)

    def drop_idle(self) -> None:
        """Close every connection that waits for a question, as servers do after a while."""
        self._on_loop(lambda: [peer.transport.close() for peer in list(self.peers) if peer.answer is None])

    def _on_loop(self, action: Callable[[], object]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (action(), done.set()))
        done.wait(10)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await self.loop.create_server(
                lambda: _Connection(self), "127.0.0.1", self.port, ssl=self.tls, backlog=4096
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for peer in list(self.peers):
            peer.reset()

    # Called on the loop.

    def die(self) -> None:
        self._close()
        self.loop.call_later(self.die_s, lambda: self.loop.create_task(self._listen()))

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        seen = self.seen
        if path not in ENDPOINTS:
            seen.polls += 1
            return self._page(path, body)
        seen.requests += 1
        seen.paths[path] += 1
        seen.headers.append(headers)
        seen.bodies.append(body)
        try:
            asked = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return BEHAVIOURS["400"](Question(path, "?"))
        name = headers.get("x-chaos") or asked.chaos or self._next(asked)
        seen.behaviours[name] += 1
        ident = headers.get("x-chaos-id") or asked.chaos_id or f"n{seen.requests}"
        seen.ids[ident] += 1
        question = Question(path, ident, asked.model, asked.stream, **self.settings)
        question.chunks = min(asked.max_completion_tokens or asked.max_tokens or question.chunks, 100_000)
        question.usage = asked.stream_options is not None and asked.stream_options.include_usage
        return BEHAVIOURS[name](question)

    def _next(self, body: Body) -> str:
        script = self.script
        if isinstance(script, str):
            return script
        if isinstance(script, Mapping):
            return self._dice.choices(list(script), list(script.values()))[0]
        if callable(script):
            return script(body, self.seen.requests)
        return script[min(self.seen.requests, len(script)) - 1]

    def _page(self, path: str, body: bytes) -> Answer:
        if path == "/v1/models":
            found = [{"id": name, "object": "model", "created": 1, "owned_by": "chaos"} for name in self.models]
            return _document(200, json.dumps({"object": "list", "data": found}).encode())
        if path == "/health":
            return _document(200, b'{"status": "ok"}')
        if path == "/metrics":
            return _document(200, self._metrics().encode(), "text/plain; version=0.0.4")
        if path == "/chaos/seen":
            told = {name: value for name, value in vars(self.seen).items() if isinstance(value, (int, Counter))}
            return _document(200, json.dumps(told).encode())
        if path == "/chaos/script":
            self.script = json.loads(body)
            return _document(200, b"{}")
        return _document(404, b'{"error": {"message": "no such page", "type": "chaos", "param": null, "code": null}}')

    def _metrics(self) -> str:
        running = sum(1 for peer in self.peers if peer.answer is not None)
        busy, waiting = min(running, self.slots), max(running - self.slots, 0)
        if self.engine == "vllm":
            label = f'{{model_name="{self.models[0]}",engine="0"}}'
            names = {"num_requests_running": busy, "num_requests_waiting": waiting}
            names |= {"kv_cache_usage_perc": busy / self.slots}
            return "".join(f"# TYPE vllm:{name} gauge\nvllm:{name}{label} {value}\n" for name, value in names.items())
        names = {"requests_processing": busy, "requests_deferred": waiting, "n_decode_total": self.seen.requests}
        return "".join(f"# TYPE llamacpp:{name} gauge\nllamacpp:{name} {value}\n" for name, value in names.items())


def _document(status: int, body: bytes, kind: str = "application/json") -> Answer:
    return Answer([head(status, f"content-type: {kind}", f"content-length: {len(body)}") + body])


def port_of(url: str) -> int:
    """The port in an address of this machine."""
    return urlsplit(url).port or 80


@contextlib.contextmanager
def chaos_process(script: str | Mapping[str, float] | Sequence[str] = "ok", *arguments: str) -> Iterator[str]:
    """The address of a server in a process of its own. `arguments`: as `python tests/chaos_server.py --help` says.

    GET /chaos/seen tells its counts; POST /chaos/script changes its script.
    """
    command = [sys.executable, __file__, "--script", json.dumps(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main() -> None:
    """Serve in this process until it is ended; the first line printed is the address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script", default='"ok"', help="as JSON: a name, a list of names, or shares")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--first-s", type=float, default=0.0)
    parser.add_argument("--chunk-s", type=float, default=0.0)
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge-bytes", type=int, default=8 * 2**20)
    given = parser.parse_args()
    settings = {"chunks": given.chunks, "first_s": given.first_s, "chunk_s": given.chunk_s}
    settings["huge_bytes"] = given.huge_bytes
    import uvloop

    chaos = ChaosServer(json.loads(given.script), seed=given.seed, port=given.port, engine=given.engine, **settings)
    chaos.new_loop = uvloop.new_event_loop
    with chaos as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
