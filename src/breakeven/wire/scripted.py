"""A server of OpenAI's kind that does what a script says: for tests, benchmarks, and judges of the gateway.

    with ScriptedServer("ok") as server:                        # every request answered
    with ScriptedServer({"ok": 0.9, "reset_mid_body": 0.1}, seed=1) as server:    # seeded shares
    with ScriptedServer(["503", "ok"]) as server:               # in order; the last one goes on
    with ScriptedServer(lambda question: "ok") as server:       # a name, or a `Scene` of one's own
    with scripted_process("ok", "--chunk-s", "0.01") as url:    # the same in a process of its own, for benchmarks

`server.url` has no /v1. A request overrides the script by its header `x-chaos` or its body field "chaos" (names:
`behaviours.BEHAVIOURS`), and sets the id that every piece of its answer holds by `x-chaos-id` or "chaos_id". The
server runs on a loop in a thread of its own. GET /scripted/seen tells a process's counts, PUT /scripted/script changes
what it does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from breakeven.hardware.system import pin_to_core
from breakeven.wire.accepted import ServerConnection
from breakeven.wire.answer import HttpAnswer
from breakeven.wire.behaviours import BEHAVIOURS, answers_of, whole
from breakeven.wire.bounds import ServerLimits
from breakeven.wire.completions import ENDPOINTS, Body, ScriptedRequest
from breakeven.wire.listen import open_sockets
from breakeven.wire.message import Request
from breakeven.wire.playing import Clock, Play, Scene, Then
from breakeven.wire.server import HttpServer

Step = str | Scene | Mapping[str, Any] | None
"""A behaviour's name, an answer, or settings of this one `ScriptedRequest`, "do" among them for the name."""
Script = str | Mapping[str, float] | Sequence[Step] | Callable[[ScriptedRequest], Step]
Page = Scene | Callable[[Request], Scene]
PATIENT = ServerLimits(body_bytes=2**30, connections=2**20, read_s=3600.0, idle_s=3600.0, write_s=3600.0)
_KEPT = 2000
_decode = msgspec.json.Decoder(Body).decode


class Seen:
    """What the server saw. `cancelled`: questions whose connection the client closed before the answer was whole.

    `wrote_ns`: for each question, by number, when each piece of its answer was written.
    """

    def __init__(self) -> None:
        self.requests = self.answered = self.cancelled = self.broken = 0
        self.connections = self.open = self.under_way = self.most_under_way = self.polls = 0
        self.behaviours: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.headers: deque[dict[str, str]] = deque(maxlen=_KEPT)
        self.bodies: deque[bytes] = deque(maxlen=_KEPT)
        self.received_ns: deque[int] = deque(maxlen=_KEPT)
        self.peers: deque[str] = deque(maxlen=_KEPT)
        """Where each question came from; a kept connection keeps its port."""
        self.wrote_ns: deque[list[int]] = deque(maxlen=_KEPT)


class _Http(HttpServer):
    """Counts connections."""

    def __init__(self, owner: ScriptedServer) -> None:
        super().__init__(owner.handle, PATIENT)
        self.owner = owner

    def made(self, connection: ServerConnection) -> None:
        self.owner.seen.connections += 1
        self.owner.seen.open += 1
        super().made(connection)

    def lost(self, connection: ServerConnection) -> None:
        self.owner.seen.open -= 1
        super().lost(connection)


class ScriptedServer:
    """The server. `settings` are fields of `ScriptedRequest` (chunks, first_s, chunk_s, ...).

    `pages`: what other paths answer, beside the usual ones. `key`: who does not send it as a bearer is refused.
    `at_once`: so many answers are under way at a time, the others wait. `exact`: waits count from when a piece was due,
    not from when it was written; `spin_s`: so long before, the loop spins.
    """

    def __init__(
        self,
        script: Script = "ok",
        *,
        seed: int = 0,
        port: int = 0,
        models: Sequence[str] = ("mock",),
        owned_by: str = "chaos",
        engine: str = "llama.cpp",
        slots: int = 4,
        die_s: float = 0.2,
        tls: ssl.SSLContext | None = None,
        key: str | None = None,
        pages: Mapping[str, Page] | None = None,
        at_once: int | None = None,
        exact: bool = False,
        spin_s: float = 0.0,
        **settings: Any,
    ) -> None:
        self.script: Script = script
        self.models, self.owned_by, self.engine, self.slots = list(models), owned_by, engine, slots
        self.die_s, self.tls, self.key, self.at_once = die_s, tls, key, at_once
        self.pages: dict[str, Page] = dict(pages or {})
        self.settings = settings
        self.seen = Seen()
        self.port = port
        self.listening = False
        self.asked: deque[str] = deque(maxlen=_KEPT)
        self.exact, self._spin_s = exact, spin_s
        self.new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        self._dice = random.Random(seed)
        self._waiting: deque[tuple[Request, HttpAnswer, int]] = deque()
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop
        self.clock: Clock
        self._http: _Http

    @property
    def url(self) -> str:
        """Without /v1."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        ready = threading.Event()
        failed: list[BaseException] = []

        def serve() -> None:
            self.loop = self.new_loop()
            self.clock, self._http = Clock(self.loop, self._spin_s), _Http(self)
            try:
                self.loop.run_until_complete(self._listen())
            except BaseException as error:
                failed.append(error)
                return
            finally:
                ready.set()
            self.loop.run_forever()
            self._close()
            self._http.stop_looking()
            self.loop.run_until_complete(asyncio.sleep(0.01))
            self.loop.close()

        self._thread = threading.Thread(target=serve, name="scripted", daemon=True)
        self._thread.start()
        ready.wait(10)
        if failed:
            raise failed[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        assert self._thread is not None
        self._thread.join(10)

    # Called from other threads.

    def down(self) -> None:
        """Nobody listens from now on, and every connection is reset."""
        self._on_loop(self._close)

    def up(self) -> None:
        """Listen again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)

    def drop_idle(self) -> None:
        """Close every connection that waits for a question, as servers do after a while."""
        self._on_loop(self._http.close_idle)

    def stand_still(self, seconds: float) -> None:
        """Nothing is read, written or timed for so long."""
        self.loop.call_soon_threadsafe(time.sleep, seconds)

    def _on_loop(self, action: Callable[[], object]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(action)
        self.loop.call_soon_threadsafe(done.set)
        done.wait(10)

    # On the loop.

    async def _listen(self) -> None:
        sockets = open_sockets("127.0.0.1", self.port, 1)
        self.port = sockets[0].getsockname()[1]
        await self._http.start(sockets, self.tls)
        self.listening = True

    def _close(self) -> None:
        self.listening = False
        self._http.stop_accepting()
        self._http.reset_all()

    def handle(self, request: Request, answer: HttpAnswer) -> None:
        """One request."""
        seen = self.seen
        if self.key is not None and request.header(b"authorization") != b"Bearer " + self.key.encode():
            # Echoing the key is what a careless server does; ours must not pass it on.
            sent = (request.header(b"authorization") or b"").decode("latin-1")
            self._give(answer, whole(json.dumps({"error": {"message": f"bad {sent}"}}).encode(), status=401))
            return
        if request.path not in ENDPOINTS or request.path in self.pages:
            seen.polls += 1
            self._give(answer, self._page(request))
            return
        seen.received_ns.append(time.monotonic_ns())
        seen.requests += 1
        seen.paths[request.path] += 1
        self.asked.append(request.path)
        seen.headers.append({name.decode(): value.decode("latin-1") for name, value in request.headers})
        seen.bodies.append(request.body)
        seen.peers.append(answer.peer)
        wrote_ns: list[int] = []
        seen.wrote_ns.append(wrote_ns)
        if self.at_once is not None and seen.under_way >= self.at_once:
            self._waiting.append((request, answer, seen.requests))
        else:
            self._begin(request, answer, seen.requests, wrote_ns)

    def _begin(self, request: Request, answer: HttpAnswer, number: int, wrote_ns: list[int]) -> None:
        self.seen.under_way += 1
        self.seen.most_under_way = max(self.seen.most_under_way, self.seen.under_way)
        Play(self, answer, self._scene(request, number), wrote_ns).begin()

    def gone(self) -> None:
        """A client left before its answer was whole."""
        self.seen.cancelled += 1
        self.left()

    def left(self) -> None:
        """One answer fewer is under way."""
        self.seen.under_way -= 1
        while self._waiting:
            request, answer, number = self._waiting.popleft()
            if not answer.gone:
                self._begin(request, answer, number, [])
                return

    def ended(self, then: Then, answer: HttpAnswer) -> None:
        """An answer is over."""
        if then in ("keep", "close"):
            self.seen.answered += 1
            if then == "keep":
                answer.finish()
            else:
                answer.abort()
        else:
            self.seen.broken += 1
            if then == "die":
                answer.on_gone = None
                self._close()
                self.loop.call_later(self.die_s, lambda: self.loop.create_task(self._listen()))
            else:
                answer.abort(reset=True)
        self.left()

    def _give(self, answer: HttpAnswer, scene: Scene) -> None:
        for piece in scene.pieces:
            answer.raw(piece if isinstance(piece, bytes) else piece(time.monotonic_ns()))
        answer.finish()

    def _scene(self, request: Request, number: int) -> Scene:
        seen = self.seen
        try:
            asked = _decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return BEHAVIOURS["400"](ScriptedRequest(request.path, "?"))
        ident = _text(request, b"x-chaos-id") or asked.chaos_id or f"n{number}"
        question = ScriptedRequest(request.path, ident, asked.model, asked.stream, body=request.body, number=number)
        question.usage = asked.stream_options is not None and asked.stream_options.include_usage
        for name, value in self.settings.items():
            setattr(question, name, value)
        question.chunks = min(asked.max_completion_tokens or asked.max_tokens or question.chunks, 100_000)
        step: Step = _text(request, b"x-chaos") or asked.chaos or self._next(question)
        if isinstance(step, Mapping):
            for name, value in step.items():
                if name != "do":
                    setattr(question, name, value)
            step = step.get("do") or "ok"
        seen.behaviours["scene" if isinstance(step, Scene) else step or "ok"] += 1
        seen.ids[ident] += 1
        return step if isinstance(step, Scene) else BEHAVIOURS[step or "ok"](question)

    def _next(self, question: ScriptedRequest) -> Step:
        script = self.script
        if isinstance(script, str):
            return script
        if isinstance(script, Mapping):
            return self._dice.choices(list(script), list(script.values()))[0]
        if callable(script):
            return script(question)
        return script[min(question.number, len(script)) - 1]

    def _page(self, request: Request) -> Scene:
        path = request.path
        page = self.pages.get(path) or self.pages.get(f"{path.rpartition('/')[0]}/*")
        if page is not None:
            return page if isinstance(page, Scene) else page(request)
        if path == "/v1/models":
            found = [{"id": name, "object": "model", "created": 1, "owned_by": self.owned_by} for name in self.models]
            return whole(json.dumps({"object": "list", "data": found}).encode())
        if path == "/health":
            return whole(b'{"status": "ok"}')
        if path == "/metrics":
            return whole(self._metrics().encode(), kind="text/plain; version=0.0.4")
        if path == "/scripted/seen":
            told = {name: value for name, value in vars(self.seen).items() if isinstance(value, (int, Counter))}
            return whole(json.dumps(told).encode())
        if path == "/scripted/asked":
            bodies = [body.decode(errors="replace") for body in self.seen.bodies]
            asked = list(zip(self.asked, bodies, strict=True))
            self.seen.bodies.clear()
            self.asked.clear()
            return whole(json.dumps(asked).encode())
        if path == "/scripted/script":
            self.script = json.loads(request.body)
            return whole(b"{}")
        missing = b'{"error": {"message": "no such page", "type": "scripted", "param": null, "code": null}}'
        return whole(missing, status=404)

    def _metrics(self) -> str:
        running = self.seen.under_way
        busy, waiting = min(running, self.slots), max(running - self.slots, 0)
        if self.engine == "vllm":
            label = f'{{model_name="{self.models[0]}",engine="0"}}'
            names: dict[str, float] = {"num_requests_running": busy, "num_requests_waiting": waiting}
            names["kv_cache_usage_perc"] = busy / self.slots
            return "".join(f"# TYPE vllm:{name} gauge\nvllm:{name}{label} {value}\n" for name, value in names.items())
        names = {"requests_processing": busy, "requests_deferred": waiting, "n_decode_total": self.seen.requests}
        return "".join(f"# TYPE llamacpp:{name} gauge\nllamacpp:{name} {value}\n" for name, value in names.items())


def _text(request: Request, name: bytes) -> str:
    return (request.header(name) or b"").decode("latin-1")


@contextlib.contextmanager
def scripted_process(script: str | Mapping[str, float] | Sequence[str] = "ok", *arguments: str) -> Iterator[str]:
    """The address of a server in a process of its own. `arguments`: as `python -m breakeven.wire.scripted -h` says."""
    command = [sys.executable, "-m", "breakeven.wire.scripted", "--script", json.dumps(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main() -> None:
    """Serve in this process until it is ended; the first line printed is the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", default='"ok"', help="as JSON: a name, a list of names, or shares")
    parser.add_argument("--answers", type=Path, help="a file of answers by path instead (see `behaviours.answers_of`)")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, help="pin to this core")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--first-s", type=float, default=0.0)
    parser.add_argument("--chunk-s", type=float, default=0.0)
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge-bytes", type=int, default=8 * 2**20)
    given = parser.parse_args()
    if given.core is not None:
        pin_to_core(given.core)
    settings = {"chunks": given.chunks, "first_s": given.first_s, "chunk_s": given.chunk_s}
    settings["huge_bytes"] = given.huge_bytes
    import uvloop

    script: Script = json.loads(given.script)
    pages: Mapping[str, Page] = {}
    if given.answers is not None:
        script, pages = answers_of(given.answers)
    server = ScriptedServer(script, pages=pages, seed=given.seed, port=given.port, engine=given.engine, **settings)
    server.new_loop = uvloop.new_event_loop
    with server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
