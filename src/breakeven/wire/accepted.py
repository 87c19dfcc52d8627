"""One accepted connection: bytes come in, requests go to the handler one at a time, answers go back in order.

Reading goes on while a request is answered, since only so a client that leaves is seen at once. What arrives meanwhile
(pipelining) is kept unread up to a bound, beyond which reading stops until the answer's end.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol, cast

from breakeven.wire.answer import LINES, HttpAnswer
from breakeven.wire.bounds import Bounds, Crowds, HeldBodies, neighbours
from breakeven.wire.message import Headers, HeldBytes, Judge, Refused, Request, error_body
from breakeven.wire.reader import Reader

_log = logging.getLogger("breakeven.gateway.edge")

_LATER_BYTES = 1 << 16
"""Kept for after the present answer; then reading stops."""
_LINGER_NS = 2_000_000_000
"""After a refusal the client is read so long, unheeded: bytes that meet a closed socket would destroy the answer."""
_RESET = struct.pack("ii", 1, 0)
_JSON = ((b"content-type", b"application/json"),)
_LEAST_TAKEN = 1 << 12
"""Bytes that a client must take in `write_s` while more wait for it: one that sips is as late as one that sleeps."""


class Keeper(Protocol):
    """What a connection needs of its server. `under_way`: requests whose answer has not ended.

    `shared_with`: headers of answers that a page of this origin may read.
    """

    handler: Callable[[Request, HttpAnswer], None]
    judge: Judge | None
    shared_with: Callable[[bytes], Headers]
    limits: Bounds
    bodies: HeldBodies
    crowds: Crowds
    under_way: int
    date_line: bytes
    draining: bool
    read_ns: int
    idle_ns: int
    write_ns: int
    unasked_ns: int

    def made(self, connection: ServerConnection) -> None:
        """A connection is there."""

    def lost(self, connection: ServerConnection) -> None:
        """A connection is gone."""


class ServerConnection(asyncio.Protocol):
    """From accept to close. `keep`: the connection stays open after the present answer. `old`: it is for HTTP/1.0."""

    __slots__ = (
        "_answer", "_asked", "_deaf", "_idle_ns", "_later", "_later_bytes", "_linger_ns", "_out", "_paused",
        "_pumping", "_reader", "_reading_paused", "_share", "_taken", "_taken_ns", "_transport", "address", "keep",
        "old", "server",
    )  # fmt: skip

    def __init__(self, server: Keeper) -> None:
        self.server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reader: Reader = cast(Reader, None)
        self._answer: HttpAnswer | None = None
        self._later: list[bytes] = []
        self._later_bytes = 0
        self._deaf = self._pumping = self._paused = self._reading_paused = self._asked = False
        self._share: HeldBytes | None = None
        self._linger_ns = 0
        self._idle_ns = self._taken_ns = time.monotonic_ns()
        self._out = self._taken = 0
        self.address = ""
        self.keep = True
        self.old = False

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        server, address = self.server, peer[0] if isinstance(peer, tuple) else ""
        self.address = neighbours(address)
        self._reader = Reader(server.limits, address, server.bodies, server.judge)
        server.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._reader.release()
        self.server.lost(self)

    def eof_received(self) -> None:
        # A client that has closed and one that has only ended its half look alike; answers are for those who listen.
        self._leave()

    def _leave(self) -> None:
        self._deaf = True
        self._reader.forget()
        self._later.clear()
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self._over()
        try:
            answer.lose()
        except Exception:
            _log.exception("telling of a client that left failed")

    def _over(self) -> None:
        self.server.under_way -= 1
        if self._share is not None:
            self._share.free()
            self._share = None

    def pause_writing(self) -> None:
        self._paused = True
        if (answer := self._answer) is not None:
            answer.paused = True
            if answer.on_pause is not None:
                answer.on_pause()

    def resume_writing(self) -> None:
        self._paused = False
        if (answer := self._answer) is not None:
            answer.paused = False
            if answer.on_resume is not None:
                answer.on_resume()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._answer is None:
            self._reader.feed(data)
            self._pump()
            return
        self._later.append(data)
        self._later_bytes += len(data)
        if self._later_bytes > _LATER_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    # One request after the other.

    def _pump(self) -> None:
        if self._pumping:  # an answer given at once comes back here through `ended`
            return
        self._pumping = True
        reader = self._reader
        while self._answer is None and not self._deaf:
            if reader.ahead:
                self._begin(*reader.ahead.popleft())
            elif self._later:
                data = b"".join(self._later)
                self._later.clear()
                self._later_bytes = 0
                reader.feed(data)
            else:
                break
        self._pumping = False
        if self._answer is not None or self._deaf:
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if reader.failure is not None:
            self.refuse(reader.failure, reader.origin)
        elif reader.waits:
            reader.waits = False
            if not reader.body_begun:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin(self, request: Request, keep: bool, old: bool) -> None:
        self.keep, self.old, self._share, self._asked = keep, old, request.share, True
        self.server.under_way += 1
        answer = self._answer = HttpAnswer(self, request.method == "HEAD", self._paused)
        try:
            self.server.handler(request, answer)
        except Exception:
            _log.exception("a request to %.200r could not be handled", request.path)
            if answer.begun:
                answer.abort()
            else:
                message = "the gateway failed on this request; its log says more"
                answer.respond(500, _JSON, error_body(500, message, code="internal_error"))

    # The answers' side.

    def peer(self) -> str:
        """Address and port of the client."""
        return str(self._transport.get_extra_info("peername"))

    def send(self, data: bytes) -> None:
        """Hand bytes to the socket."""
        self._out += len(data)
        self._transport.write(data)

    def send_all(self, parts: tuple[bytes, ...]) -> None:
        """Hand several pieces to the socket, uncopied."""
        for part in parts:
            self._out += len(part)
        self._transport.writelines(parts)

    def ended(self) -> None:
        """The present answer is whole."""
        self._answer = None
        reader = self._reader
        self.server.under_way -= 1  # as in `_over`; every good end comes by here
        if self._share is not None:
            self._share.free()
            self._share = None
        if not self.keep:
            self.close()
            return
        self._idle_ns = time.monotonic_ns()
        if reader.begun_ns:  # half a request waited: its time runs from now
            reader.begun_ns = self._idle_ns
        if not self._pumping:
            self._pump()

    def cut(self, *, reset: bool) -> None:
        """The present answer ends here. `reset`: an ordinary close would look like its end."""
        self._answer = None
        self._over()
        if reset:
            self.reset()
        else:
            self.close()

    def close(self) -> None:
        """Close when everything is sent."""
        self._deaf = True
        self._reader.forget()
        if self._later or self._reader.full or self._reader.begun_ns:  # more may come
            self._later.clear()
            self._linger()
        else:
            self._transport.close()

    def close_if_idle(self, since_ns: int) -> None:
        """Close unless an answer is under way, a request is arriving, or an answer ended after `since_ns`."""
        if self._answer is None and not self._reader.begun_ns and not self._deaf and self._idle_ns <= since_ns:
            self._transport.close()

    def reset(self) -> None:
        """Close now; the client gets a reset, and nothing that was not sent yet."""
        self._deaf = True
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def refuse(self, refused: Refused, origin: bytes | None = None) -> None:
        """Answer for the server itself, and close. `origin`: the page that asked."""
        self._deaf = True
        body = error_body(refused.status, refused.message, code=refused.code)
        retry = b"retry-after: %d\r\n" % refused.retry_s if refused.retry_s else b""
        shared = b"".join(b"%b: %b\r\n" % pair for pair in (() if origin is None else self.server.shared_with(origin)))
        rest = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.send(LINES[refused.status] + self.server.date_line + retry + shared + rest + body)
        self._linger()

    def _linger(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._linger_ns = time.monotonic_ns() + _LINGER_NS
        self._transport.write_eof()

    # When there are too many.

    def spare(self) -> tuple[int, int] | None:
        """First to go are those that never asked, then others between two requests, the longest idle first."""
        if self._linger_ns:
            return 0, -self._linger_ns
        if self._answer is not None or self._deaf:
            return None
        reader = self._reader
        if reader.begun_ns:
            return (1, -reader.begun_ns) if reader.dropping or (reader.in_head and not self._asked) else None
        if self._transport.get_write_buffer_size():
            return 0, -self._idle_ns
        return 2 + (not self._asked), -self._idle_ns

    def give_way(self) -> None:
        """Close for another."""
        self._deaf = True
        self.server.crowds.leaves(self, self.address)
        self._transport.abort()

    # The server's sweep.

    def excuse(self, away_ns: int, now_ns: int) -> None:
        """Time in which nobody was here to read or to write is not the client's; what came since has had none of it."""
        self._idle_ns = min(now_ns, self._idle_ns + away_ns)
        self._taken_ns = min(now_ns, self._taken_ns + away_ns)
        if self._reader.begun_ns:
            self._reader.begun_ns = min(now_ns, self._reader.begun_ns + away_ns)

    def sweep(self, now_ns: int) -> None:
        """Close what is late: see `Limits`."""
        transport, server, reader = self._transport, self.server, self._reader
        waiting = transport.get_write_buffer_size()
        taken = self._out - waiting
        if not waiting or taken - self._taken >= _LEAST_TAKEN:
            self._taken, self._taken_ns = taken, now_ns
        elif now_ns - self._taken_ns > server.write_ns:
            self.reset()
            return
        if self._linger_ns:
            if now_ns > self._linger_ns and not waiting:
                transport.close()
        elif self._answer is not None or self._deaf:
            return
        elif reader.begun_ns:
            if now_ns - reader.begun_ns <= server.read_ns:
                return
            if reader.dropping:  # it has its answer
                transport.close()
            else:
                reader.fail(Refused(408, "request_timeout", "the request did not arrive in time; send it faster"))
                self._pump()
        elif not waiting and now_ns - self._idle_ns > (server.idle_ns if self._asked else server.unasked_ns):
            transport.close()
