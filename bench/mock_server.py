"""A scripted OpenAI server that a load client cannot tell from a fast engine: truth to measure clients against.

    python bench/mock_server.py [--port 0] [--core 0]

It prints one JSON line with its URL. `PUT /mock/script` (a JSON `Script`) sets what it does next and forgets what it
counted; `GET /mock/stats` says what it counted; `GET /mock/arrivals` gives the arrival of every request and
`GET /mock/writes` every scripted chunk as written: packed little-endian int64 nanoseconds of CLOCK_MONOTONIC.

Every chunk of a timed stream carries when it was written (`t_ns`) and which request it belongs to (`r`; a prompt that
starts with `q17 ` is request 17), also in its text, so that what a client received can be set against what was sent.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import heapq
import json
import os
import socket
import time
from collections import deque
from dataclasses import asdict, dataclass, field

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SPIN_S = 0.0015
"""Timers of the event loop are whole milliseconds: this long before a chunk is due the loop spins instead."""
HIGH_WATER = 1 << 16


@dataclass
class Script:
    """How requests are answered until the next script.

    `ttft_s` None: unthrottled streams, one chunk a stream in turn, as fast as the sockets take them; otherwise chunk k
    of a stream is written `ttft_s + k * itl_s` after its request arrived. `chunks` 0: as many as `max_tokens` asks.
    `per_write` chunks go into one write of an unthrottled stream. `stall_at_s`: this long after the first request the
    whole server sleeps for `stall_s`.
    """

    ttft_s: float | None = None
    itl_s: float = 0.0
    chunks: int = 0
    reply_bytes: int = 2048
    per_write: int = 1
    stall_at_s: float = 0.0
    stall_s: float = 0.0
    keep_writes: bool = False


@dataclass
class Counts:
    """What has happened since the script was set. Lists are packed int64."""

    requests: int = 0
    answered: int = 0
    events: int = 0
    arrivals: array.array[int] = field(default_factory=lambda: array.array("q"))
    writes: array.array[int] = field(default_factory=lambda: array.array("q"))
    """Three numbers a chunk: request, chunk (-1: its arrival), nanoseconds."""
    last_ns: int = 0
    cpu_first_s: float = 0.0
    cpu_last_s: float = 0.0
    stall_ns: tuple[int, int] = (0, 0)


class State:
    """All that connections share: the script, the counts, and the one clockwork that writes chunks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.timed: list[tuple[int, int, Stream]] = []
        self.free: deque[Stream] = deque()
        self.spinning = False
        self.timer: asyncio.TimerHandle | None = None
        self.serial = 0
        self.set(Script())

    def set(self, script: Script) -> None:
        self.script = script
        self.counts = Counts()
        text = "x" * max(1, script.reply_bytes - 250)
        usage = {"prompt_tokens": 16, "completion_tokens": 1, "total_tokens": 17}
        self.replies = {}
        for chat in (False, True):
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            kind = "chat.completion" if chat else "text_completion"
            body = _json({"id": "c", "object": kind, "created": 1, "model": "mock",
                          "choices": [{"index": 0, **choice, "finish_reason": "length"}], "usage": usage})  # fmt: skip
            self.replies[chat] = _response(body)
        self.plain = {chat: _frame(_event("0", chat)) * max(1, script.per_write) for chat in (False, True)}

    def arrived(self) -> None:
        now = time.monotonic_ns()
        counts = self.counts
        if not counts.requests:
            counts.cpu_first_s = time.process_time()
            if self.script.stall_s:
                self.loop.call_later(self.script.stall_at_s, self._stall)
        counts.requests += 1
        counts.arrivals.append(now)

    def _stall(self) -> None:
        began = time.monotonic_ns()
        time.sleep(self.script.stall_s)
        self.counts.stall_ns = (began, time.monotonic_ns())

    def begin(self, stream: Stream) -> None:
        """Let a stream run by the clockwork."""
        if self.script.ttft_s is None:
            self.free.append(stream)
        else:
            self.serial += 1
            heapq.heappush(self.timed, (stream.start_ns + round(self.script.ttft_s * 1e9), self.serial, stream))
        if not self.spinning:
            if self.timer:
                self.timer.cancel()
            self.spinning = True
            self.loop.call_soon(self._tick)

    def _tick(self) -> None:
        now = time.monotonic_ns()
        timed = self.timed
        while timed and timed[0][0] <= now:
            due, serial, stream = timed[0]
            if stream.write_timed():
                heapq.heapreplace(timed, (due + round(self.script.itl_s * 1e9), serial, stream))
            else:
                heapq.heappop(timed)
            now = time.monotonic_ns()
        for _ in range(len(self.free)):
            stream = self.free.popleft()
            if stream.connection.paused or stream.write_free():
                self.free.append(stream)
        self.spinning = bool(self.free) or (bool(timed) and timed[0][0] - now < SPIN_S * 1e9)
        if self.spinning:
            self.loop.call_soon(self._tick)
        elif timed:
            self.timer = self.loop.call_later((timed[0][0] - now) / 1e9 - SPIN_S, self._tick)


class Stream:
    """One streaming answer under way on a connection."""

    __slots__ = ("chat", "connection", "request", "start_ns", "total", "usage", "written")

    def __init__(self, connection: Connection, chat: bool, total: int, usage: bool, request: int) -> None:
        self.connection, self.chat, self.total, self.usage, self.request = connection, chat, total, usage, request
        self.written = 0
        self.start_ns = time.monotonic_ns()

    def write_timed(self) -> bool:
        """Write the next chunk with its time in it; False when the stream is over."""
        counts = self.connection.state.counts
        transport = self.connection.transport
        if transport.is_closing():
            return False
        now = time.monotonic_ns()
        event = _event(f"r{self.request} " if not self.written else f"{self.written} ", self.chat)
        frame = _frame(b'data: {"t_ns":%d,"r":%d,%s' % (now, self.request, event[7:]))
        if self.connection.state.script.keep_writes:
            counts.writes.extend((self.request, self.written, now))
        transport.write(HEADERS + frame if not self.written else frame)
        self.written += 1
        counts.events += 1
        if self.written < self.total:
            return True
        self._finish()
        return False

    def write_free(self) -> bool:
        """Write as many chunks as go into one write; False when the stream is over."""
        state = self.connection.state
        if self.connection.transport.is_closing():
            return False
        per_write = state.script.per_write
        plain = state.plain[self.chat]
        if self.total - self.written < per_write:
            per_write = self.total - self.written
            plain = _frame(_event("0", self.chat)) * per_write
        self.connection.transport.write(plain if self.written else HEADERS + plain)
        self.written += per_write
        state.counts.events += per_write
        if self.written < self.total:
            return True
        self._finish()
        return False

    def _finish(self) -> None:
        end = b""
        if self.usage:
            usage = {"prompt_tokens": 16, "completion_tokens": self.total, "total_tokens": self.total + 16}
            end = _frame(b"data: " + _json({"id": "c", "object": "text_completion", "created": 1, "model": "mock",
                                            "choices": [], "usage": usage}) + b"\n\n")  # fmt: skip
        self.connection.transport.write(end + _frame(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self.connection.answered()


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection; requests are small and parsed by hand."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = b""
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            low = head.lower()
            at = low.find(b"content-length:")
            if b"expect: 100-continue" in low and len(self.buffer) == end + 4:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = int(low[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            method, path, _ = head.split(b" ", 2)
            self.answer(method, path, body)

    def answer(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"POST" and path.endswith(b"completions"):
            self.complete(path.endswith(b"chat/completions"), body)
        elif path.startswith(b"/mock/"):
            self.transport.write(self.control(path[6:], body))
        elif path == b"/v1/models":
            model = {"id": "mock", "object": "model", "owned_by": "mock", "created": 1, "root": "mock"}
            self.transport.write(_response(_json({"object": "list", "data": [model]})))
        elif path == b"/health":
            self.transport.write(_response(b'{"status":"ok"}'))
        else:
            self.transport.write(_response(b'{"error":{"message":"no such path"}}', b"404 Not Found"))

    def complete(self, chat: bool, body: bytes) -> None:
        state = self.state
        state.arrived()
        packed = body.replace(b" ", b"") if b'"stream": ' in body else body
        if b'"stream":true' not in packed:
            self.transport.write(state.replies[chat])
            self.answered()
            return
        total = state.script.chunks
        if not total:
            asked = json.loads(body)
            total = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
        number = _number(body)
        if number < 0:
            number = state.counts.requests - 1
        stream = Stream(self, chat, total, b"include_usage" in body, number)
        if state.script.keep_writes:
            state.counts.writes.extend((number, -1, state.counts.arrivals[-1]))
        state.begin(stream)

    def answered(self) -> None:
        counts = self.state.counts
        counts.answered += 1
        counts.last_ns = time.monotonic_ns()
        if counts.answered % 64 == 0 or counts.answered == counts.requests:
            counts.cpu_last_s = time.process_time()

    def control(self, path: bytes, body: bytes) -> bytes:
        counts = self.state.counts
        if path == b"script":
            self.state.set(Script(**json.loads(body)))
            return _response(_json(asdict(self.state.script)))
        if path == b"arrivals":
            return _response(counts.arrivals.tobytes())
        if path == b"writes":
            return _response(counts.writes.tobytes())
        first = counts.arrivals[0] if counts.arrivals else 0
        return _response(_json({
            "requests": counts.requests, "answered": counts.answered, "events": counts.events,
            "first_ns": first, "last_ns": counts.last_ns, "cpu_s": counts.cpu_last_s - counts.cpu_first_s,
                    "stall_from_ns": counts.stall_ns[0],
                    "stall_to_ns": counts.stall_ns[1],
        }))  # fmt: skip


def _number(body: bytes) -> int:
    """The number in a prompt that starts with `q17 `, so that a request is known whatever order it came in; else -1."""
    at = body.find(b'"q')
    digits = body[at + 2 : at + 12].partition(b" ")[0] if at >= 0 else b""
    return int(digits) if digits.isdigit() else -1


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _response(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def _event(text: str, chat: bool) -> bytes:
    """One server-sent event as an OpenAI server writes it; `text` needs no escaping."""
    if chat:
        choice = (
            b'"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]'
        )
    else:
        choice = b'"object":"text_completion","choices":[{"index":0,"text":"%s","logprobs":null,"finish_reason":null}]'
    return b'data: {"id":"cmpl-1","created":1,"model":"mock",' + choice % text.encode() + b"}\n\n"


def _frame(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve(port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    state = State(loop)
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", port, backlog=4096)
    print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "pid": os.getpid(),
                      "loop": type(loop).__module__}), flush=True)  # fmt: skip
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, help="pin to this core")
    asked = parser.parse_args()
    if asked.core is not None:
        os.sched_setaffinity(0, {asked.core})
    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    import gc

    gc.collect()
    gc.freeze()
    gc.disable()
    loop.run_until_complete(serve(asked.port))


if __name__ == "__main__":
    main()
