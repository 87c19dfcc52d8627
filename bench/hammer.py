"""A load of HTTP requests over kept connections, lean enough to be shared by every gateway that is measured.

    python bench/hammer.py URL BODY_FILE --requests 10000 --connections 32 [--rate 500] [--header "Name: value"]

Closed loop over `--connections`, or open loop at `--rate` (Poisson). Prints one JSON line: how many were answered with
200 and whole, seconds, bytes, and latencies in ms (first byte and whole) as percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpResponseParser(self)

    def send(self, due_ns: int) -> None:
        self.due_ns, self.first_ns = due_ns, 0
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        if not self.first_ns:
            self.first_ns = time.monotonic_ns()
        self.load.bytes += len(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.load.done(self, self.parser.get_status_code() == 200)
        self.parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost += 1


class Load:
    """All connections of one run."""

    def __init__(self, request: bytes, total: int, rate: float | None) -> None:
        self.request, self.total, self.rate = request, total, rate
        self.sent = self.good = self.bad = self.bytes = self.lost = 0
        self.first_ms: list[float] = []
        self.whole_ms: list[float] = []
        self.free: deque[Connection] = deque()
        self.due: deque[int] = deque()
        self.ended = asyncio.get_running_loop().create_future()

    def start(self, connections: list[Connection]) -> None:
        self.free.extend(connections)
        if self.rate is None:
            while self.free and self.sent < self.total:
                self._send(time.monotonic_ns())
        else:
            self.dice = random.Random(1)
            self._arrive()

    def _arrive(self) -> None:
        self.due.append(time.monotonic_ns())
        self._pump()
        if self.sent + len(self.due) < self.total:
            asyncio.get_running_loop().call_later(self.dice.expovariate(self.rate or 1.0), self._arrive)

    def _pump(self) -> None:
        while self.free and self.due:
            self._send(self.due.popleft())

    def _send(self, due_ns: int) -> None:
        self.sent += 1
        self.free.popleft().send(due_ns)

    def done(self, connection: Connection, good: bool) -> None:
        now_ns = time.monotonic_ns()
        self.first_ms.append((connection.first_ns - connection.due_ns) / 1e6)
        self.whole_ms.append((now_ns - connection.due_ns) / 1e6)
        self.good += good
        self.bad += not good
        self.free.append(connection)
        if self.good + self.bad >= self.total:
            self.ended.set_result(None)
        elif self.rate is None:
            if self.sent < self.total:
                self._send(now_ns)
        else:
            self._pump()


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest."""
    values = sorted(values)
    return {name: values[min(len(values) - 1, int(q * len(values)))] for name, q in
            (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0))}  # fmt: skip


async def run(asked: argparse.Namespace) -> dict[str, object]:
    """One run; see the module."""
    parts = urlsplit(asked.url)
    body = Path(asked.body).read_bytes()
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json", *asked.header,
             f"Content-Length: {len(body)}"]  # fmt: skip
    load = Load("\r\n".join(lines).encode() + b"\r\n\r\n" + body, asked.requests, asked.rate)
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(asked.connections):
        _, connection = await loop.create_connection(lambda: Connection(load), parts.hostname, parts.port)
        connections.append(connection)
    began = time.monotonic()
    load.start(connections)
    await asyncio.wait_for(load.ended, asked.timeout)
    seconds = time.monotonic() - began
    for connection in connections:
        connection.transport.close()
    return {"good": load.good, "bad": load.bad, "lost": load.lost, "seconds": seconds, "bytes": load.bytes,
            "first_ms": percentiles(load.first_ms), "whole_ms": percentiles(load.whole_ms)}  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("body")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--timeout", type=float, default=600.0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
