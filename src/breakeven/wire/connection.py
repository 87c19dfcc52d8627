"""One HTTP/1.1 connection to a server: a request out, its answer in, nothing in between.

The framing (status line, headers, chunks) is httptools' affair, which is llhttp, the parser of Node.js. A connection
belongs to one exchange at a time; whatever arrives while it belongs to none closes it. Every time is of
`time.monotonic_ns`, taken when the system handed us the bytes, before anybody looked at them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from breakeven.hardware.system import readiness
from breakeven.wire.message import LONG_NS, Headers, Sink, Trouble, give_way

HEADER_BYTES = 64 * 2**10
"""Most bytes of an answer's head, interim answers included, and of what comes after it and is nobody's body."""
_MOST_HEADERS, _PER_BYTE = 256, 64
"""`_PER_BYTE`: on the wire for one of a chunked body: the size, line ends and extension of the smallest piece."""
_STALE_S, _S = 1.0, 1_000_000_000
"""A kept connection that closes without a byte so soon after a request was closed before it was read."""
_JOINED_BYTES = 64 * 2**10
"""Up to here one write of head and body is cheaper than two; beyond, copying the body costs more."""


class Owner(Protocol):
    """The client that connections and exchanges belong to.

    `first_byte_ns` None: the time between two bytes holds for the first as well. `wary`: it asks the system whether a
    resting connection is still good. `passes_on`: makes the headers that a sink is told of those that came; None: all
    of them. `redirects`: a redirect is an answer like any other, not a trouble. `live`: exchanges that have not ended.
    """

    live: set[Exchange]
    first_byte_ns: int | None
    idle_ns: int
    total_ns: int
    response_bytes: int
    wary: bool
    redirects: bool
    passes_on: Callable[[Headers], Headers] | None

    def release(self, connection: ClientConnection) -> None:
        """A connection is free."""

    def lost(self, connection: ClientConnection) -> None:
        """A connection is gone."""

    def send_again(self, exchange: Exchange, connection: ClientConnection) -> None:
        """Send once more what met a connection that the server was just closing."""


class Exchange:
    """One request under way. Ends once: by `end`, `trouble` or `cancel`, whichever is first; then its sink is let go.

    `sent_ns` 0: not sent yet. `heard_ns`: when it last moved on (issued, sent, bytes came). `sent_twice`: its first
    connection was just being closed. `failure`: what broke it. `by_close`: its answer had no other end.
    """

    __slots__ = (
        "body", "by_close", "client", "connection", "failure", "first_byte_ns", "head", "head_only", "heard_ns",
        "idle_ns", "issued_ns", "limit_bytes", "over", "paused", "sent_ns", "sent_twice", "sink", "task", "total_ns",
        "waiting_body",
    )  # fmt: skip

    def __init__(self, client: Owner, head: bytes, body: bytes, sink: Sink | None, now_ns: int) -> None:
        self.client, self.head, self.body, self.sink = client, head, body, sink
        self.issued_ns, self.heard_ns, self.sent_ns = now_ns, now_ns, 0
        self.first_byte_ns, self.idle_ns, self.total_ns = client.first_byte_ns, client.idle_ns, client.total_ns
        self.limit_bytes = client.response_bytes
        self.connection: ClientConnection | None = None
        self.task: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        self.over = self.paused = self.head_only = self.sent_twice = self.by_close = False
        self.waiting_body = True

    def cancel(self) -> None:
        """Close its connection now; the sink hears nothing more."""
        if not self.over:
            self._leave(keep=False)

    def pause(self) -> None:
        """Take no more bytes until `resume`; a pause does not count as the server's silence."""
        if not self.over and not self.paused:
            self.paused = True
            if self.connection is not None:
                self.connection.pause()

    def resume(self) -> None:
        """Take bytes again."""
        if not self.over and self.paused:
            self.paused = False
            self.heard_ns = time.monotonic_ns()
            if self.connection is not None:
                self.connection.resume()

    # Called by the connection and the client.

    def end(self, *, keep: bool) -> None:
        """The answer is whole. `keep`: its connection may serve again."""
        self.over = True  # as in `_leave`; a good end is worth its own lines
        sink, self.sink = self.sink, None
        connection, self.connection = self.connection, None
        self.client.live.discard(self)
        if connection is not None:
            connection.leave(keep)
        if sink is not None:
            sink.on_end()

    def trouble(self, trouble: Trouble, detail: str) -> None:
        """The answer will not be whole. Does nothing when the exchange is over."""
        if self.over:
            return
        sink = self._leave(keep=False)
        if sink is not None:
            sink.on_trouble(trouble, detail)

    def late(self, now_ns: int, connect_ns: int) -> str:
        """Which limit it has passed; empty: none."""
        if now_ns - self.issued_ns > self.total_ns:
            return f"not finished within {self.total_ns / _S:g} s"
        silent_ns = now_ns - self.heard_ns
        if self.connection is None and silent_ns > connect_ns:
            return f"no connection within {connect_ns / _S:g} s"
        first_ns = self.first_byte_ns
        if first_ns is not None:
            if self.connection is None or self.paused:
                return ""
            if self.waiting_body:
                return f"no first byte within {first_ns / _S:g} s" if now_ns - self.sent_ns > first_ns else ""
        return f"no byte for {self.idle_ns / _S:g} s" if silent_ns > self.idle_ns else ""

    def _leave(self, *, keep: bool) -> Sink | None:
        # Everything is let go before the sink is told, so that it may send the next request right there.
        self.over = True
        sink, self.sink = self.sink, None
        connection, self.connection = self.connection, None
        task, self.task = self.task, None
        self.client.live.discard(self)
        if task is not None:
            task.cancel()
        if connection is not None:
            connection.leave(keep)
        self.body = self.head = b""
        return sink


class ClientConnection(asyncio.Protocol):
    """A connection of a client. `exchange` is what it works on, None while it rests."""

    __slots__ = (
        "_body_bytes", "_client", "_complete", "_fed_bytes", "_framed", "_head_done", "_head_told",
        "_headers", "_heard", "_interim", "_keep", "_length", "_odd", "_parser", "_pieces", "_poll", "_served",
        "_status", "_streamed", "_transport", "_unseen", "exchange", "rested_ns",
    )  # fmt: skip

    def __init__(self, client: Owner) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._poll: Callable[[], bool] | None = None
        self._served = 0
        self._streamed = False
        self._pieces: list[bytes] = []
        self.exchange: Exchange | None = None
        self.rested_ns = 0
        self._begin()

    def _begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._status = self._fed_bytes = self._body_bytes = self._unseen = 0
        self._heard = self._framed = self._interim = self._complete = self._keep = False
        self._head_done = self._head_told = False
        self._length, self._odd = -1, ""
        if self._pieces:
            self._pieces = []

    @property
    def is_open(self) -> bool:
        """It was made and has not been lost, as far as the loop has told."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def usable(self) -> bool:
        """Another request can be sent: it is open, and the server, if the system is asked, has not spoken unasked."""
        transport, poll = self._transport, self._poll
        return transport is not None and not transport.is_closing() and (poll is None or not poll())

    @property
    def streamed(self) -> bool:
        """Its last answer was a stream of events."""
        return self._streamed

    def send(self, exchange: Exchange) -> None:
        """Send a request, whole. `sent_ns` is the moment before its bytes are handed to the system."""
        assert self._transport is not None
        self._begin()
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self.exchange, exchange.connection = exchange, self
        joined = len(exchange.body) <= _JOINED_BYTES
        message = exchange.head + exchange.body if joined else exchange.head
        # Before, not after: the server may have answered by the time that the call returns, and a delay must never
        # come out too short. Both kinds of loop write at once when nothing is waiting to be written.
        exchange.sent_ns = exchange.heard_ns = time.monotonic_ns()
        self._transport.write(message)
        if not joined:
            self._transport.write(exchange.body)
        if exchange.paused:
            self.pause()

    def leave(self, keep: bool) -> None:
        """The exchange is over: rest if the server lets us keep the connection, else close."""
        paused = self.exchange is not None and self.exchange.paused
        self.exchange = None
        if self._length < 0:
            # httptools hands the trailers of one answer to the next as its headers. Only chunked ones have any.
            self._parser = None
        self._served += 1
        transport = self._transport
        if keep and transport is not None and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            if paused:
                transport.resume_reading()
            self.rested_ns = time.monotonic_ns()
            self._client.release(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once, dropping what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Take no more bytes; the server notices when the system's buffers are full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take bytes again, unless its exchange is paused."""
        wanted = self.exchange is None or not self.exchange.paused
        if wanted and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        socket = transport.get_extra_info("socket") if self._client.wary else None
        if socket is not None:
            self._poll = readiness(socket.fileno())

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        exchange, parser = self.exchange, self._parser
        if exchange is None or parser is None:  # nobody asked: what else it says could be taken for the next answer
            self.close()
            return
        self._heard = True
        exchange.heard_ns = now_ns
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._odd = self._odd or f"the answer is no HTTP/1.1 ({error or type(error).__name__})"
        if not self._head_told:
            self._fed_bytes += len(data)
            if not self._tell_head(exchange):
                return
        elif self._length < 0:
            self._unseen += len(data)
        pieces = self._pieces
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._body_bytes += len(body)
            self._unseen = max(0, self._unseen - _PER_BYTE * len(body))
            if self._body_bytes > exchange.limit_bytes:
                exchange.trouble("too_large", f"the answer is larger than {exchange.limit_bytes} bytes")
                return
            exchange.waiting_body = False
            exchange.sink.on_body(body)  # type: ignore[union-attr]
            if exchange.over:
                return
            if time.monotonic_ns() - now_ns > LONG_NS:
                give_way(self)
        if self._complete:
            exchange.end(keep=self._keep and not self._odd)
        elif self._odd:
            exchange.trouble("garbage", self._odd)
        elif self._unseen > HEADER_BYTES:  # llhttp may be gathering one trailer of it all
            exchange.trouble("garbage", f"the answer has over {HEADER_BYTES} bytes beside its body")

    def _tell_head(self, exchange: Exchange) -> bool:
        """Pass the head on once it is whole; False when there is nothing more to do for now."""
        if not self._head_done:
            if self._odd:
                exchange.trouble("garbage", self._odd)
            elif self._fed_bytes > HEADER_BYTES:
                exchange.trouble("too_large", f"the head of the answer is larger than {HEADER_BYTES} bytes")
            return False
        headers = self._headers
        large = self._fed_bytes > HEADER_BYTES and sum(len(n) + len(v) + 4 for n, v in headers) > HEADER_BYTES
        if large or len(headers) > _MOST_HEADERS:
            exchange.trouble("too_large", f"the head of the answer: over {HEADER_BYTES} bytes or {_MOST_HEADERS} lines")
            return False
        if self._odd and not self._complete:  # nothing was passed on, so another backend can still be asked
            exchange.trouble("garbage", self._odd)
            return False
        client = self._client
        if 300 <= self._status < 400 and not client.redirects:
            # Without its destination: that may hold whatever the server was sent.
            detail = f"answered {self._status}; redirects are not followed, set `url` to the last one"
            exchange.trouble("forbidden", detail)
            return False
        if self._length > exchange.limit_bytes:
            exchange.trouble("too_large", f"the answer is larger than {exchange.limit_bytes} bytes")
            return False
        self._head_told = True
        passed = headers if client.passes_on is None else client.passes_on(headers)
        exchange.sink.on_head(self._status, passed)  # type: ignore[union-attr]
        if exchange.over:
            return False
        if exchange.head_only:
            exchange.end(keep=False)
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        # The parser holds our methods: without this, each connection would be a cycle that only the collector frees.
        self._parser = self._transport = self._poll = None
        exchange = self.exchange
        self._client.lost(self)
        if exchange is None:
            return
        stale = self._served > 0 and not self._heard and time.monotonic_ns() - exchange.sent_ns < _STALE_S * _S
        why = f" ({exc})" if exc else ""
        if stale:  # at most once: the second time its connection is a fresh one
            self.exchange = exchange.connection = None
            exchange.sent_twice = True
            self._client.send_again(exchange, self)
        elif exc is None and self._head_told and not self._framed:
            exchange.by_close = True  # a body without a length lasts until the connection ends
            exchange.end(keep=False)
        else:
            exchange.failure = exc
            if self._body_bytes:
                exchange.trouble("cut", f"the connection closed in the middle of the answer{why}")
            else:
                where = "before the body of the answer" if self._heard else "before an answer"
                exchange.trouble("reset", f"the connection closed {where}{why}")

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._complete:
            self._odd = self._odd or "a second answer to one question"
        else:
            self._streamed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:  # a trailer, or a second answer
            return
        name = name.lower()
        if name == b"content-length":
            self._framed, self._length = True, int(value)  # llhttp took digits alone
        elif name == b"content-type":
            self._streamed = value.startswith(b"text/event-stream")
        elif name == b"transfer-encoding":
            self._framed = True
            if value.strip().lower() != b"chunked":
                self._odd = "the answer has a transfer-encoding other than chunked"
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        self._interim = status < 200  # such as 100 Continue: the answer is yet to come
        if status == 101:
            self._odd = "the answer switches to another protocol"
        elif not self._interim:
            self._status, self._head_done = status, True

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self._interim:
            self._interim = self._framed = False
            self._headers, self._length = [], -1
        else:
            self._complete = True
            self._keep = self._parser is not None and self._parser.should_keep_alive()
