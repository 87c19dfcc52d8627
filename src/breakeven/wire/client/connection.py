"""One HTTP/1.1 connection: bytes out, stamped bytes in, one exchange at a time.

The framing (status line, headers, chunks) is httptools' affair, which is llhttp, the parser of Node.js.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from breakeven.wire.client.exchange import Exchange
    from breakeven.wire.client.pool import Pool

_STALE_NS = 1_000_000_000
"""A kept connection that breaks without a byte within this time of a request was closed before it arrived."""
_DRAIN_NS = 1_000_000_000
"""How long to wait for the end of the body after the stream has announced its own."""


class Connection(asyncio.Protocol):
    """A connection of a pool. `exchange` is what it works on, None while it rests."""

    __slots__ = (
        "_complete",
        "_date",
        "_framed",
        "_heard",
        "_interim",
        "_keep",
        "_now_ns",
        "_parser",
        "_pieces",
        "_pool",
        "_retry_after",
        "_served",
        "_transport",
        "exchange",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._pieces: list[bytes] = []
        self._served = 0
        self._now_ns = 0
        self.exchange: Exchange | None = None
        self._begin()

    def _begin(self) -> None:
        self._heard = self._framed = self._interim = self._complete = self._keep = False
        self._retry_after = self._date = b""

    @property
    def usable(self) -> bool:
        """True while another request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        """Send a request. `sent_ns` of the exchange is the moment before its bytes are handed to the system."""
        self._begin()
        self.exchange, exchange.connection = exchange, self
        assert self._transport is not None
        message = head + body
        # Before, not after: the server may have answered by the time that the call returns, and a delay must never
        # come out too short. Both kinds of loop write at once when nothing is waiting to be written.
        exchange.sent_ns = exchange.heard_ns = time.monotonic_ns()
        self._transport.write(message)

    def leave(self, *, keep: bool) -> None:
        """The exchange is over: back to the pool if the server lets us keep the connection, else close it."""
        self.exchange = None
        self._served += 1
        if keep and self._keep and self.usable:
            self._pool.release(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once, dropping what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        exchange, parser = self.exchange, self._parser
        if exchange is None or parser is None:  # nobody asked: no request may be sent after this
            self.close()
            return
        exchange.heard_ns = self._now_ns = now_ns
        self._heard = True
        broken: str | None = None
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = f"the answer is no HTTP/1.1 ({error or type(error).__name__})"
        pieces = self._pieces
        if pieces:
            exchange.take(pieces[0] if len(pieces) == 1 else b"".join(pieces), now_ns)
            pieces.clear()
            if exchange.over:
                return
        if self._complete:
            exchange.end_of_body(now_ns)
        elif broken is not None:
            exchange.cut(broken, "broken_stream")
        elif exchange.drain_until_ns is None and exchange.reply.done_ns is not None:
            exchange.drain_until_ns = now_ns + _DRAIN_NS

    def connection_lost(self, exc: Exception | None) -> None:
        # The parser holds our methods: without this, each connection would be a cycle that only the collector frees.
        self._parser = self._transport = None
        self._pool.lost(self)
        exchange = self.exchange
        if exchange is None:
            return
        now_ns = time.monotonic_ns()
        stale = self._served and not self._heard and now_ns - exchange.sent_ns < _STALE_NS
        if stale and not exchange.reconnected:
            self.exchange = exchange.connection = None
            self._pool.reconnect(exchange)
        elif exc is None and exchange.headers_ns is not None and not self._framed:
            exchange.end_of_body(now_ns)  # a body without a length lasts until the connection ends
        else:
            where = "inside the answer" if self._heard else "before an answer"
            exchange.cut(f"the connection closed {where}{f' ({exc})' if exc else ''}")

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == b"retry-after":
            self._retry_after = value
        elif name == b"date":
            self._date = value

    def on_headers_complete(self) -> None:
        exchange, parser = self.exchange, self._parser
        if exchange is None or parser is None or self._complete:
            return
        status = parser.get_status_code()
        self._interim = status < 200  # such as 100 Continue: the answer is yet to come
        if self._interim:
            return
        exchange.headers_ns, exchange.status = self._now_ns, status
        if self._retry_after:
            exchange.note_retry_after(self._retry_after.decode("latin-1"), self._date.decode("latin-1"))

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._complete:  # a second answer to one question
            self._keep = False
        elif self._interim:
            self._begin()
            self._heard = True
        else:
            self._complete = True
            self._keep = self._parser is not None and self._parser.should_keep_alive()
