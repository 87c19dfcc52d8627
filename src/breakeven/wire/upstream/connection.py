"""One HTTP/1.1 connection to a backend: a request out, its answer in, nothing in between.

The framing (status line, headers, chunks) is httptools' affair, which is llhttp, the parser of Node.js. A connection
belongs to one exchange at a time; whatever arrives while it belongs to none closes it.
"""

from __future__ import annotations

import asyncio
import select
import time
from typing import TYPE_CHECKING, cast

import httptools

from breakeven.wire.upstream.headers import answer_headers

if TYPE_CHECKING:
    from breakeven.wire.upstream.call import Call
    from breakeven.wire.upstream.client import Upstream

HEADER_BYTES = 64 * 2**10
"""Most bytes of an answer's head, interim answers included."""
_STALE_S = 1.0
"""A kept connection that closes without a byte within this time of a request was closed before it was read."""
_JOINED_BYTES = 64 * 2**10
"""Up to here one write of head and body is cheaper than two; beyond, copying the body costs more."""


class Connection(asyncio.Protocol):
    """A connection of an `Upstream`. `call` is what it works on, None while it rests."""

    __slots__ = (
        "_begun",
        "_body_bytes",
        "_client",
        "_complete",
        "_fed_bytes",
        "_framed",
        "_head_done",
        "_head_told",
        "_headers",
        "_heard",
        "_interim",
        "_keep",
        "_odd",
        "_parser",
        "_pieces",
        "_poll",
        "_served",
        "_status",
        "_streamed",
        "_transport",
        "call",
        "rested_s",
    )

    def __init__(self, client: Upstream) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._served = 0
        self._streamed = False
        self.call: Call | None = None
        self.rested_s = 0.0
        self._begin()

    def _begin(self) -> None:
        # A parser for every answer: httptools hands the trailers of one answer to the next as its headers.
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._status = self._fed_bytes = self._body_bytes = 0
        self._heard = self._framed = self._interim = self._complete = self._keep = False
        self._head_done = self._head_told = False
        self._odd = ""

    @property
    def is_open(self) -> bool:
        """It was made and has not been lost, as far as the loop has told."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def usable(self) -> bool:
        """Another request can be sent: it is open, and the other side has neither closed it nor spoken unasked.

        Asks the system, since the loop may not have come round to telling us.
        """
        return self.is_open and (self._poll is None or not self._poll.poll(0))

    @property
    def streamed(self) -> bool:
        """Its last answer was a stream of events."""
        return self._streamed

    def send(self, call: Call) -> None:
        """Send a request, whole."""
        assert self._transport is not None
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        self.call, call.connection = call, self
        call.sent_s = call.heard_s = time.monotonic()
        if len(call.body) <= _JOINED_BYTES:
            self._transport.write(call.head + call.body)
        else:
            self._transport.write(call.head)
            self._transport.write(call.body)
        if call.paused:
            self.pause()

    def leave(self, *, keep: bool) -> None:
        """The call is over: rest if the backend lets us keep the connection, else close."""
        paused = self.call is not None and self.call.paused
        self.call = self._parser = None
        self._served += 1
        transport = self._transport
        if keep and transport is not None and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            if paused:
                transport.resume_reading()
            self.rested_s = time.monotonic()
            self._client.release(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once, dropping what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Take no more bytes; the backend notices when the system's buffers are full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take bytes again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        socket = transport.get_extra_info("socket")
        if socket is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)

    def data_received(self, data: bytes) -> None:
        call, parser = self.call, self._parser
        if call is None or parser is None:  # nobody asked: what else it says could be taken for the next answer
            self.close()
            return
        self._heard = True
        call.heard_s = time.monotonic()
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._odd = self._odd or f"the answer is no HTTP/1.1 ({error or type(error).__name__})"
        if not self._head_told:
            self._fed_bytes += len(data)
            if not self._tell_head(call):
                return
        pieces = self._pieces
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
            self._body_bytes += len(body)
            if self._body_bytes > call.limit_bytes:
                call.trouble("too_large", f"the answer is larger than {call.limit_bytes} bytes")
                return
            call.waiting_body = False
            call.sink.on_body(body)  # type: ignore[union-attr]
            if call.over:
                return
        if self._complete:
            call.end(keep=self._keep and not self._odd)
        elif self._odd:
            call.trouble("garbage", self._odd)

    def _tell_head(self, call: Call) -> bool:
        """Pass the head on once it is whole; False when there is nothing more to do for now."""
        if not self._head_done:
            if self._odd:
                call.trouble("garbage", self._odd)
            elif self._fed_bytes > HEADER_BYTES:
                call.trouble("too_large", f"the head of the answer is larger than {HEADER_BYTES} bytes")
            return False
        if self._fed_bytes > HEADER_BYTES and _size(self._headers) > HEADER_BYTES:
            call.trouble("too_large", f"the head of the answer is larger than {HEADER_BYTES} bytes")
            return False
        if self._odd and not self._complete:  # nothing was passed on, so another backend can still be asked
            call.trouble("garbage", self._odd)
            return False
        if 300 <= self._status < 400:
            # Without its destination: that may hold whatever the backend was sent.
            call.trouble("forbidden", f"answered {self._status}; redirects are not followed, set `url` to the last one")
            return False
        self._streamed = False
        for name, value in self._headers:
            if name == b"content-type":
                self._streamed = value.startswith(b"text/event-stream")
            elif name == b"content-length" and int(value) > call.limit_bytes:  # llhttp took digits alone
                call.trouble("too_large", f"the answer is larger than {call.limit_bytes} bytes")
                return False
        self._head_told = True
        call.sink.on_head(self._status, answer_headers(self._headers))  # type: ignore[union-attr]
        if call.over:
            return False
        if call.head_only:
            call.end(keep=False)
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        # The parser holds our methods: without this, each connection would be a cycle that only the collector frees.
        self._parser = self._transport = self._poll = None
        call = self.call
        self._client.lost(self)
        if call is None:
            return
        stale = self._served > 0 and not self._heard and time.monotonic() - call.sent_s < _STALE_S
        why = f" ({exc})" if exc else ""
        if stale:  # at most once: the second time its connection is a fresh one
            self.call = call.connection = None
            self._client.send_again(call, self)
        elif exc is None and self._head_told and not self._framed:
            call.end(keep=False)  # a body without a length lasts until the connection ends
        elif self._body_bytes:
            call.trouble("cut", f"the connection closed in the middle of the answer{why}")
        else:
            where = "before the body of the answer" if self._heard else "before an answer"
            call.trouble("reset", f"the connection closed {where}{why}")

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._complete:
            self._odd = self._odd or "a second answer to one question"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:  # a trailer, or a second answer
            return
        name = name.lower()
        if name == b"content-length":
            self._framed = True
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
            self._headers = []
        else:
            self._complete = True
            self._keep = self._parser is not None and self._parser.should_keep_alive()


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
