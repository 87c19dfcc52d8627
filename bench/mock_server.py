"""The scripted server as a load client cannot tell it from a fast engine: truth to measure clients against.

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
import gc
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial

from breakeven.wire.answer import HttpAnswer
from breakeven.wire.behaviours import chunk, whole
from breakeven.wire.message import Request
from breakeven.wire.playing import TURN, Piece, Play, Scene, Then
from breakeven.wire.scripted import ScriptedServer
from breakeven.wire.sse import DONE, event

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SPIN_S = 0.0015
"""Timers of the event loop are whole milliseconds: this long before a chunk is due the loop spins instead."""


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


class MockServer(ScriptedServer):
    """Completions by its own script, as cheaply as can be; everything else as ever."""

    def __init__(self, port: int) -> None:
        pages = {f"/mock/{name}": partial(self._control, name) for name in ("script", "stats", "arrivals", "writes")}
        super().__init__(port=port, owned_by="mock", pages=pages, exact=True, spin_s=SPIN_S)
        self.set(Script())

    def set(self, script: Script) -> None:
        """Do this from now on, and forget what was counted."""
        self.mock, self.counts = script, Counts()
        text = "x" * max(1, script.reply_bytes - 250)
        usage = {"prompt_tokens": 16, "completion_tokens": 1, "total_tokens": 17}
        self.replies = {}
        for chat in (False, True):
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            kind = "chat.completion" if chat else "text_completion"
            body = _json({"id": "c", "object": kind, "created": 1, "model": "mock",
                          "choices": [{"index": 0, **choice, "finish_reason": "length"}], "usage": usage})  # fmt: skip
            self.replies[chat] = _response(body)
        self.plain = {chat: chunk(_event("0", chat)) * max(1, script.per_write) for chat in (False, True)}

    def handle(self, request: Request, answer: HttpAnswer) -> None:
        """A completion; anything else is a page."""
        path, body = request.path, request.body
        if request.method != "POST" or not path.endswith("completions"):
            super().handle(request, answer)
            return
        self._arrived()
        chat = path.endswith("chat/completions")
        packed = body.replace(b" ", b"") if b'"stream": ' in body else body
        if b'"stream":true' not in packed:
            answer.raw(self.replies[chat])
            answer.finish()
            self._answered()
            return
        total = self.mock.chunks
        if not total:
            asked = json.loads(body)
            total = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
        number = _number(body)
        if number < 0:
            number = self.counts.requests - 1
        if self.mock.keep_writes:
            self.counts.writes.extend((number, -1, self.counts.arrivals[-1]))
        Play(self, answer, self._stream(chat, total, number, b"include_usage" in body), []).begin()

    def _stream(self, chat: bool, total: int, number: int, usage: bool) -> Scene:
        script = self.mock
        end = b""
        if usage:
            told = {"prompt_tokens": 16, "completion_tokens": total, "total_tokens": total + 16}
            end = chunk(event(_json({"id": "c", "object": "text_completion", "created": 1, "model": "mock",
                                     "choices": [], "usage": told})))  # fmt: skip
        end += chunk(DONE) + b"0\r\n\r\n"
        pieces: list[Piece]
        if script.ttft_s is not None:
            pieces = [partial(self._stamped, chat, number, k) for k in range(total)]
            return Scene([*pieces, end], [script.ttft_s, *[script.itl_s] * (total - 1), 0.0])
        writes, rest = divmod(total, script.per_write)
        pieces = [self.plain[chat]] * writes + [chunk(_event("0", chat)) * rest] * bool(rest)
        pieces[0] = HEADERS + pieces[0]  # type: ignore[operator]
        self.counts.events += total
        return Scene([*pieces, end], [*[TURN] * len(pieces), 0.0])

    def _stamped(self, chat: bool, number: int, k: int, now_ns: int) -> bytes:
        """A chunk with its time in it."""
        counts = self.counts
        if self.mock.keep_writes:
            counts.writes.extend((number, k, now_ns))
        counts.events += 1
        said = _event(f"{k} " if k else f"r{number} ", chat)
        frame = chunk(b'data: {"t_ns":%d,"r":%d,%s' % (now_ns, number, said[7:]))
        return frame if k else HEADERS + frame

    def gone(self) -> None:
        """A client left: nothing is counted."""

    def ended(self, then: Then, answer: HttpAnswer) -> None:
        """A stream is whole."""
        answer.finish()
        self._answered()

    def _arrived(self) -> None:
        now = time.monotonic_ns()
        counts = self.counts
        if not counts.requests:
            counts.cpu_first_s = time.process_time()
            if self.mock.stall_s:
                self.loop.call_later(self.mock.stall_at_s, self._stall)
        counts.requests += 1
        counts.arrivals.append(now)

    def _stall(self) -> None:
        began = time.monotonic_ns()
        time.sleep(self.mock.stall_s)
        self.counts.stall_ns = (began, time.monotonic_ns())

    def _answered(self) -> None:
        counts = self.counts
        counts.answered += 1
        counts.last_ns = time.monotonic_ns()
        if counts.answered % 64 == 0 or counts.answered == counts.requests:
            counts.cpu_last_s = time.process_time()

    def _control(self, name: str, request: Request) -> Scene:
        counts = self.counts
        if name == "script":
            self.set(Script(**json.loads(request.body)))
            return whole(_json(asdict(self.mock)))
        if name == "arrivals":
            return whole(counts.arrivals.tobytes())
        if name == "writes":
            return whole(counts.writes.tobytes())
        return whole(_json({
            "requests": counts.requests, "answered": counts.answered, "events": counts.events,
            "first_ns": counts.arrivals[0] if counts.arrivals else 0, "last_ns": counts.last_ns,
            "cpu_s": counts.cpu_last_s - counts.cpu_first_s,
            "stall_from_ns": counts.stall_ns[0], "stall_to_ns": counts.stall_ns[1],
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


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, help="pin to this core")
    asked = parser.parse_args()
    if asked.core is not None:
        os.sched_setaffinity(0, {asked.core})
    server = MockServer(asked.port)
    try:
        import uvloop

        server.new_loop = uvloop.new_event_loop
    except ImportError:
        pass
    gc.collect()
    gc.freeze()
    gc.disable()
    with server:
        told = {"url": server.url, "pid": os.getpid(), "loop": type(server.loop).__module__}
        print(json.dumps(told), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
