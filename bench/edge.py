"""The gateway's HTTP server against uvicorn: CPU of the server's process a request and a streamed chunk.

    python bench/edge.py [--rounds 5] [--requests 20000] [--streams 400] [--json FILE]

Both answer the same from a bare handler (ours: a callable; uvicorn: raw ASGI on uvloop and httptools, no access log),
to the same client, taking turns in one run. whole: POST of 2 kB, answer of 2 kB, 32 kept connections. stream: 256
chunks of 150 bytes, each written in a turn of the loop of its own, 32 at once; the answer of no chunk is taken off.
CPU is the process's own clock, which does not run while others use the core. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil
import uvloop

ANSWER = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "text": "x" * 2000}).encode()
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "y" * 2000}]}).encode()
CHUNKS, CHUNK = (
    256,
    b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [{"delta": {"content": "z" * 70}}]}).encode(),
)
STREAMS = 32
HEAD = (
    b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer bek-0123456789abcdef\r\nUser-Agent: bench/1\r\n"
    b"Accept: application/json\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


def serve_ours(pipe: Pipe) -> None:
    """Breakeven's edge until killed; sends its port."""
    from breakeven.gateway.plan.limits import Limits
    from breakeven.wire.listen import open_sockets
    from breakeven.wire.message import Request, Responder
    from breakeven.wire.server import HttpServer

    kind, sse = ((b"content-type", b"application/json"),), ((b"content-type", b"text/event-stream"),)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def stream(responder: Responder, left: int) -> None:
            if not left:
                responder.finish()
                return
            responder.write(CHUNK)
            loop.call_soon(stream, responder, left - 1)

        def handler(request: Request, responder: Responder) -> None:
            if request.path == "/whole":
                responder.respond(200, kind, ANSWER)
            else:
                responder.start(200, sse)
                stream(responder, CHUNKS if request.path == "/stream" else 0)

        server = HttpServer(handler, Limits())
        sockets = open_sockets("127.0.0.1", 0, 1)
        await server.start(sockets)
        pipe.send(sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(main())


def serve_uvicorn(pipe: Pipe) -> None:
    """uvicorn until killed; sends its port."""
    import socket

    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/whole":
            length = (b"content-length", b"%d" % len(ANSWER))
            headers = [(b"content-type", b"application/json"), length]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": ANSWER})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(CHUNKS if scope["path"] == "/stream" else 0):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    options = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False, "log_level": "warning"}
    uvicorn.Server(uvicorn.Config(app, **options)).run([listener])  # type: ignore[arg-type]


class Client(asyncio.Protocol):
    """Asks again as soon as an answer is whole."""

    def __init__(self, request: bytes, end: Callable[[bytes], bool], todo: list[int], done: asyncio.Event) -> None:
        self.request, self.end, self.todo, self.done = request, end, todo, done
        self.tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.tail = b""
        if self.todo[0] > 0:
            self.todo[0] -= 1
            self.transport.write(self.request)
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.tail = self.tail + data if len(self.tail) < 4096 else self.tail[-16:] + data
        if self.end(self.tail):
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.todo[1] -= 1
        if not self.todo[1]:
            self.done.set()


async def load(port: int, path: bytes, requests: int) -> None:
    """Ask so often on `STREAMS` connections."""
    end = (lambda tail: tail.endswith(b'xx"}')) if path == b"/whole" else (lambda tail: tail.endswith(b"\r\n0\r\n\r\n"))
    todo, done = [requests, STREAMS], asyncio.Event()
    request = HEAD % (path, len(BODY)) + BODY
    loop = asyncio.get_running_loop()
    for _ in range(STREAMS):
        await loop.create_connection(lambda: Client(request, end, todo, done), "127.0.0.1", port)
    await done.wait()


def cpu_us(pid: int, port: int, path: bytes, requests: int) -> float:
    """Microseconds of the server's process clock a request."""
    clock = (~pid << 3) | 2  # Linux: the clock of another process's CPU time
    uvloop.run(load(port, path, max(STREAMS, requests // 10)))
    before = time.clock_gettime_ns(clock)
    uvloop.run(load(port, path, requests))
    return (time.clock_gettime_ns(clock) - before) / requests / 1000


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    servers: dict[str, tuple[int, int]] = {}
    processes = []
    for name, serve in (("breakeven", serve_ours), ("uvicorn", serve_uvicorn)):
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        processes.append(process)
        servers[name] = (process.pid or 0, mine.recv())
    time.sleep(1.0)  # uvicorn tells its port before it listens with its own backlog
    figures: dict[str, dict[str, list[float]]] = {name: {"request": [], "chunk": []} for name in servers}
    for _ in range(given.rounds):
        for name, (pid, port) in servers.items():
            figures[name]["request"].append(cpu_us(pid, port, b"/whole", given.requests))
            bare = cpu_us(pid, port, b"/none", given.streams * 5)
            figures[name]["chunk"].append((cpu_us(pid, port, b"/stream", given.streams) - bare) / CHUNKS)
    print(f"{given.rounds} rounds, {os.cpu_count()} cores; median (least to most), microseconds of CPU\n")
    print("| server | a request of 2 kB, answer of 2 kB | a streamed chunk | memory, MB |\n|---|---|---|---|")
    for name, (pid, _) in servers.items():
        cells = [
            f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in figures[name].values()
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {psutil.Process(pid).memory_info().rss / 1e6:.0f} |")
    for what in ("request", "chunk"):
        pairs = zip(figures["breakeven"][what], figures["uvicorn"][what], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        print(f"\nbreakeven over uvicorn, a {what}, round by round: {statistics.median(ratios):.2f} ", end="")
        print(f"({ratios[0]:.2f} to {ratios[-1]:.2f})")
    if given.json:
        given.json.write_text(json.dumps({"schema": "breakeven.bench_edge/1", "cpu_us": figures}, indent=2) + "\n")
    for process in processes:
        process.kill()


if __name__ == "__main__":
    main()
