"""A server whose behaviour under load is a few numbers, schedules by hand, and bodies that need no tokenizer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from breakeven.engines.backend import Backend
from breakeven.measure.events import Event, EventWriter, LoadDone, LoadStarted, RequestDone, read_events
from breakeven.measure.player.run import run_load
from breakeven.traffic.schedule import DEPENDS, Schedule
from breakeven.traffic.workload import Arrivals, Workload

MS = 1_000_000


@dataclass
class PlainServer:
    """Answers every POST with a stream of as many pieces as were asked for, `gap_s` apart, the first after `wait_s`.

    While `held` is set nothing is answered; `refusing` statuses are given instead of an answer, by request number.
    """

    wait_s: float = 0.0
    gap_s: float = 0.0
    url: str = ""
    port: int = 0
    indices: list[int] = field(default_factory=list)
    """"i" of each body, in order of arrival."""
    in_flight: int = 0
    most_in_flight: int = 0
    stall_at: int | None = None
    """From this request on, for `stall_s`, nobody is answered."""
    stall_s: float = 0.0
    fail: frozenset[int] = frozenset()
    """Indices answered with status 500."""
    hang: frozenset[int] = frozenset()
    """Indices never answered."""
    stalled_until: float = 0.0
    stalled_ns: tuple[int, int] = (0, 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lower = head.lower()
                if not lower.startswith(b"post"):
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    await self.answer(body, writer)
                finally:
                    self.in_flight -= 1
                if b"connection: close" in lower:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        index = int(body["i"])
        if len(self.indices) == self.stall_at:
            now = time.monotonic_ns()
            self.stalled_until = time.monotonic() + self.stall_s
            self.stalled_ns = now, now + round(self.stall_s * 1e9)
        self.indices.append(index)
        if index in self.hang:
            await asyncio.sleep(3600)
        if index in self.fail:
            writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")
            return
        if (wait := self.stalled_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.wait_s:
            await asyncio.sleep(self.wait_s)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        n = int(body["max_tokens"])
        for number in range(n):
            if number and self.gap_s:
                await asyncio.sleep(self.gap_s)
            finish = '"length"' if number == n - 1 else "null"
            self._chunk(writer, f'{{"choices":[{{"text":"t","finish_reason":{finish}}}]}}')
        self._chunk(writer, f'{{"choices":[],"usage":{{"prompt_tokens":{body["n"]},"completion_tokens":{n}}}}}')
        self._chunk(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _chunk(self, writer: asyncio.StreamWriter, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))


class ServerThread:
    """A PlainServer on a loop of its own; `down` and `up` make the port vanish and come back."""

    def __init__(self, server: PlainServer) -> None:
        self.server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.up()

    def up(self) -> None:
        async def listen() -> None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.server.port, backlog=1000)
            self.server.port = self._listener.sockets[0].getsockname()[1]
            self.server.url = f"http://127.0.0.1:{self.server.port}"

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)

    def down(self) -> None:
        """Close the port and reset every connection."""

        async def close() -> None:
            assert self._listener is not None
            self._listener.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)

    def stop(self) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self.server.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)


@contextmanager
def plain_server(**settings: Any) -> Iterator[ServerThread]:
    thread = ServerThread(PlainServer(**settings))
    try:
        yield thread
    finally:
        thread.stop()


@dataclass(frozen=True)
class PlainBodies:
    """What `prepare_bodies` would give, without a tokenizer."""

    schedule: Schedule
    path: str = "/v1/completions"
    exact: bool = True
    ignore_eos: bool = True

    def body(self, i: int) -> bytes:
        return json.dumps({"i": i, "n": self.prompt_tokens(i), "max_tokens": self.max_tokens(i)}).encode()

    def max_tokens(self, i: int) -> int:
        return int(self.schedule.output_N[i % len(self.schedule)])

    def prompt_tokens(self, i: int) -> int:
        return int(self.schedule.prompt_N[i % len(self.schedule)])


def schedule_of(
    due_s: Sequence[float | None],
    *,
    output: int = 3,
    workload: Workload | None = None,
    session: Sequence[int] | None = None,
    turn: Sequence[int] | None = None,
    think_s: float = 0.0,
) -> Schedule:
    """A schedule from due times in seconds (None: depends)."""
    n = len(due_s)
    workload = workload or Workload(arrivals=Arrivals(process="constant", rate_per_s=1.0))
    due_ns_N = np.array([DEPENDS if due is None else round(due * 1e9) for due in due_s], dtype=np.int64)
    return Schedule(
        workload=workload,
        due_ns_N=due_ns_N,
        prompt_N=np.full(n, 7, np.int32),
        output_N=np.full(n, output, np.int32),
        warm_N=(due_ns_N >= 0) & (due_ns_N < workload.warm_up_s * 1e9),
        session_N=np.array(session if session is not None else [-1] * n, dtype=np.int64),
        turn_N=np.array(turn if turn is not None else [0] * n, dtype=np.int32),
        think_ns_N=np.full(n, round(think_s * 1e9), np.int64),
    )


def closed_schedule(
    n: int, concurrency: int, *, think_s: float = 0.0, duration_s: float | None = None, requests: int | None = None
) -> Schedule:
    workload = Workload(
        arrivals=Arrivals(process="closed", concurrency=concurrency, think_s=think_s),
        duration_s=duration_s,
        requests=requests,
    )
    return schedule_of([None] * n, workload=workload, think_s=think_s)


def backend_at(url: str) -> Backend:
    return Backend(url=url, model="plain", api_key_env=None, settings={"engine": "unknown"}, pid=None, load_s=None)


@dataclass
class Played:
    """A run and its log."""

    done: LoadDone
    events: list[Event]

    @property
    def started(self) -> LoadStarted:
        return next(event for event in self.events if isinstance(event, LoadStarted))

    @property
    def requests(self) -> list[RequestDone]:
        return [event for event in self.events if isinstance(event, RequestDone)]

    def by_index(self) -> dict[int, RequestDone]:
        found = {request.stream: request for request in self.requests}
        assert len(found) == len(self.requests), "an index came twice"
        return found


def play(url: str, schedule: Schedule, path: Path, **options: Any) -> Played:
    """Play `schedule` and read the log back."""
    with EventWriter(path) as log:
        done = run_load(
            backend_at(url),
            schedule,
            options.pop("bodies", None) or PlainBodies(schedule),  # type: ignore[arg-type]
            log,
            block="b",
            model="plain",
            load="test",
            schedule_file="schedule.jsonl",
            **options,
        )
    return Played(done, read_events(path))
