"""Requests to one backend and what came of each, stamped: `wire`'s client, lean enough not to be what is measured.

Bytes are stamped in the callback that brings them, before anybody looked at them, and the answer is taken apart there.
A request ends exactly once, with a RequestDone handed to whoever started it. No proxy is used but the one that a
backend names and no redirect followed, so a key goes nowhere but to the URL it is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from breakeven.engines.backend import Backend
from breakeven.errors import printable
from breakeven.hardware.system import allow_many_files
from breakeven.measure.events import RequestDone
from breakeven.version import __version__
from breakeven.wire.client import HttpClient
from breakeven.wire.connection import Exchange
from breakeven.wire.message import Headers, Trouble, asked_wait_s
from breakeven.wire.reply import BrokenStreamError, Reply

STALL_TIMEOUT_S = 600.0
"""No byte for this long ends a request. Generous: a long prompt on a slow CPU is silent for minutes."""
MAX_WHOLE_BYTES = 64 << 20
"""An answer in one piece that is longer than this is no completion."""
_CONNECT_TIMEOUT_S = 10.0
_DRAIN_NS = 1_000_000_000
"""How long to wait for the end of the body after the stream has announced its own."""
_FOREVER_S = 1e9
_ANY_SIZE = 1 << 62
_DETAIL_CHARS = 300
_REFUSAL_BYTES = 4 * _DETAIL_CHARS
_WAIT_STATUSES = (429, 503)
_S = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to make: the bytes to send and what to write down about it.

    `index` becomes `RequestDone.stream`. `prompt_tokens` and `max_tokens` are what is asked for; `stream` False when
    `body` asks for the answer in one piece. `ignore_eos`: fewer than `max_tokens` tokens is an error ("short").
    A timeout of None means the pool's own.
    """

    block: str
    index: int
    path: str
    body: bytes
    prompt_tokens: int
    max_tokens: int
    due_ns: int | None
    """None: due when it is issued."""
    stream: bool = True
    ignore_eos: bool = False
    warm: bool = False
    session: int | None = None
    turn: int = 0
    worker: int = 0
    stall_timeout_s: float | None = None
    total_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Waits:
    """Any byte of an answer may take as long as any other."""

    idle_s: float
    total_s: float
    connect_s: float = _CONNECT_TIMEOUT_S
    first_byte_s: None = None


class Recording(Exchange):
    """A request under way, its own sink. Made by `Pool.start`; the only thing to do with it is to cancel it."""

    __slots__ = (
        "_headers_ns", "_on_done", "_on_first", "_pool", "_retry_after_s", "_whole", "call", "reply", "status",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool,
        head: bytes,
        call: Call,
        on_done: Callable[[RequestDone], None],
        on_first: Callable[[], None] | None,
    ) -> None:
        super().__init__(pool.client, head, call.body, self, time.monotonic_ns())
        self._pool, self.call = pool, call
        self._on_done: Callable[[RequestDone], None] | None = on_done
        self._on_first = on_first
        self._whole: list[bytes] = []
        """Pieces of a body that is not a stream: an answer in one piece, or the text of a refusal."""
        self.reply = Reply(counts_believed=pool.dialect.several_usages or pool.backend.pid is not None)
        self.status = 0
        """HTTP status of the answer, 0 while there is none."""
        self._headers_ns: int | None = None
        self._retry_after_s: float | None = None
        if call.stall_timeout_s is not None:
            self.idle_ns = round(call.stall_timeout_s * _S)
        if call.total_timeout_s is not None:
            self.total_ns = round(call.total_timeout_s * _S)

    def cancel(self) -> None:
        """End it here and now as "cancelled"; no effect on one that is over."""
        self._finish("cancelled", "cancelled by the client")

    # The sink.

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head."""
        self.status, self._headers_ns = status, self.heard_ns
        if status in _WAIT_STATUSES:
            self._retry_after_s = asked_wait_s(headers, time.time())

    def on_body(self, data: bytes) -> None:
        """Bytes of the body. Ends the exchange when they are no answer."""
        if self.status == 200 and self.call.stream:
            reply = self.reply
            try:
                ended = reply.feed(data, self.heard_ns)
            except BrokenStreamError as error:
                self._first()
                self._finish(error.kind, str(error))
                return
            if self._on_first is not None and reply.chunk_ns:
                self._first()
            if ended:
                self.total_ns = min(self.total_ns, self.heard_ns - self.issued_ns + _DRAIN_NS)
        else:
            self._whole.append(data)
            limit = MAX_WHOLE_BYTES if self.status == 200 else _REFUSAL_BYTES
            if (len(self._whole) > 1 or len(data) > limit) and sum(map(len, self._whole)) > limit:
                if self.status == 200:
                    self._finish("broken_stream", f"the answer is longer than {limit} bytes")
                else:
                    self._end_by_status()

    def on_end(self) -> None:
        """The body is complete."""
        if self.status != 200:
            self._end_by_status()
            return
        reply = self.reply
        try:
            if self.call.stream:
                reply.end()
            else:
                reply.take_whole(b"".join(self._whole), self.heard_ns)
        except BrokenStreamError as error:
            self._finish(error.kind, str(error))
        else:
            self._finish(None, None)

    def on_trouble(self, trouble: Trouble, detail: str) -> None:
        """The connection broke, or time is up: an error, unless what came before says more."""
        if self.reply.done_ns is not None:
            self.reply.note("no_close_after_done")
            self.on_end()
        elif self.status not in (0, 200):
            self._end_by_status()
        elif trouble in ("refused", "unreachable") and self.failure is not None:
            why = str(self.failure) or type(self.failure).__name__
            self._finish("unreachable", f"no connection to {self._pool.place}: {why}")
        elif trouble in ("reset", "cut"):
            where = "before an answer" if self.heard_ns == self.sent_ns else "inside the answer"
            self._finish("reset", f"the connection closed {where}{f' ({self.failure})' if self.failure else ''}")
        elif trouble == "timeout" and detail.startswith("no connection"):
            self._finish("unreachable", detail)
        else:
            self._finish("broken_stream" if trouble in ("garbage", "too_large") else trouble, detail)

    def _end_by_status(self) -> None:
        """The server answered with an HTTP error; what came of its text is kept as the detail."""
        self._finish(f"http_{self.status}", b"".join(self._whole).decode(errors="replace"))

    def _finish(self, error: str | None, detail: str | None) -> None:
        """Over, once. A connection that it still has is of no more use."""
        on_done, self._on_done, self._on_first = self._on_done, None, None
        if on_done is None:
            return
        if not self.over:
            self._leave(keep=False)
        on_done(self._result(error, detail, self._pool))

    def _first(self) -> None:
        on_first, self._on_first = self._on_first, None
        if on_first is not None and self.reply.chunk_ns:
            on_first()

    def _result(self, error: str | None, detail: str | None, pool: Pool) -> RequestDone:
        call, reply, backend = self.call, self.reply, pool.backend
        count = reply.output_tokens
        made = count + reply.hidden_tokens
        if error is None and call.ignore_eos and made < call.max_tokens and reply.counted:
            error, detail = "short", f"{made} tokens came of {call.max_tokens} asked for"
        if self.sent_twice:
            reply.note("reconnected")
        times, usage = reply.chunk_ns, reply.usage
        return RequestDone(
            block=call.block,
            model=backend.model,
            stream=call.index,
            # A server that counts nothing of a prompt (a cached one, to some) has not told what it holds.
            prompt_tokens=(usage.prompt_tokens if usage is not None else 0) or call.prompt_tokens,
            output_tokens=count,
            due_ns=self.issued_ns if call.due_ns is None else call.due_ns,
            sent_ns=self.sent_ns or self.issued_ns,
            done_ns=reply.done_ns or time.monotonic_ns(),
            headers_ns=self._headers_ns,
            first_ns=times[0] if times else None,
            last_ns=times[-1] if times else None,
            chunk_ns=times,
            chunk_tokens=reply.tokens_by_chunk(),
            usage=usage,
            server_timings=reply.timings,
            error=error,
            detail=None if detail is None else pool.tidy(detail)[:_DETAIL_CHARS],
            anomalies=reply.anomalies(call.max_tokens, several_usages_expected=pool.dialect.several_usages),
            issued_ns=self.issued_ns,
            asked_prompt_tokens=call.prompt_tokens,
            asked_output_tokens=call.max_tokens,
            warm=call.warm,
            session=call.session,
            turn=call.turn,
            worker=call.worker,
            retry_after_s=self._retry_after_s,
        )


class Pool:
    """Keep-alive connections to one backend.

    An engine of ours gets a new connection a request: it costs a fraction of a millisecond on loopback, and no
    request can meet a connection that the engine closed while the other candidate was being measured. So does any
    llama.cpp: its server promises to keep a connection and closes it right after a stream.

    `stall_timeout_s`: no byte for this long ends a request; `total_timeout_s` bounds a request from `start` on. Both
    are looked at by a sweep every tenth of the shortest of them, at most every second.
    """

    def __init__(
        self, backend: Backend, *, stall_timeout_s: float = STALL_TIMEOUT_S, total_timeout_s: float | None = None
    ) -> None:
        """Opens nothing yet. Raises UserError for a key that cannot be sent in a header."""
        self.backend = backend
        self.dialect = dialect = backend.dialect
        self._keep = backend.pid is None and self.dialect.keeps_connections
        self._headers = _header_lines(backend)
        self._key = backend.key
        self.place = urlsplit(backend.url).netloc
        self._heads: dict[tuple[str, bool], bytes] = {}
        self.client = HttpClient(
            backend.url,
            timeouts=_Waits(stall_timeout_s, total_timeout_s or _FOREVER_S),
            tls=dialect.tls_files,
            proxy=dialect.proxy or None,
            socket=dialect.socket or None,
            allow_link_local=True,
            response_bytes=_ANY_SIZE,
            wary=False,
            redirects=True,
            passes_on=None,
        )
        allow_many_files()

    def start(
        self, call: Call, on_done: Callable[[RequestDone], None], on_first: Callable[[], None] | None = None
    ) -> Recording:
        """Issue a request and return at once. Call it on the running loop.

        `on_done` is called once, on the loop, whatever happens; `on_first` before it, when the first output arrived.
        Neither may raise. Both may start further requests.
        """
        head = self._heads.get((call.path, call.stream))
        if head is None:
            head = self._heads[call.path, call.stream] = self._head(call)
        recording = Recording(self, head % len(call.body), call, on_done, on_first)
        self.client.start(recording)  # before its own limits: the first one starts the looks for the pool's
        if call.stall_timeout_s is not None:
            self.client.watch(call.stall_timeout_s)
        if call.total_timeout_s is not None:
            self.client.watch(call.total_timeout_s)
        return recording

    async def close(self) -> None:
        """Cancel what is under way, close every connection, and wait until they are."""
        await self.client.close()

    def tidy(self, detail: str) -> str:
        """`detail` on one line, printable, and without the key should the server have echoed it."""
        if self._key:
            detail = detail.replace(self._key, "***")
        return printable(" ".join(detail.split()))

    def _head(self, call: Call) -> bytes:
        lines = [
            f"POST {self.backend.target(call.path)} HTTP/1.1",
            f"Host: {self.place}",
            "Content-Type: application/json",
            f"Accept: {'text/event-stream' if call.stream else 'application/json'}",
            *self._headers,
            *([] if self._keep else ["Connection: close"]),
        ]
        text = "\r\n".join(lines).replace("%", "%%")
        return f"{text}\r\nContent-Length: %d\r\n\r\n".encode("latin-1")


def _header_lines(backend: Backend) -> list[str]:
    # Some gateways refuse requests that name no agent; a dialect's own goes before ours.
    headers = {"User-Agent": f"breakeven/{__version__}", **backend.headers()}
    return [f"{name}: {value}" for name, value in headers.items()]
