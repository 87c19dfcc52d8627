"""The HTTP/1.1 server: its listening sockets, its connections, and one timer for all of them.

A connection takes bytes in, hands requests to the handler one at a time, and gives answers back in order. Reading goes
on while a request is answered, since only so a client that leaves is seen at once. What arrives meanwhile (pipelining)
is kept unread up to a bound, beyond which reading stops until the answer's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import cast

from breakeven.wire.answer import LINES, HttpAnswer
from breakeven.wire.message import Refused, Request, error_body
from breakeven.wire.reader import Bounds, Reader

_log = logging.getLogger("breakeven.gateway.edge")

_LATER_BYTES = 1 << 16
"""Kept for after the present answer; then reading stops."""
_LINGER_NS = 2_000_000_000
"""After a refusal the client is read so long, unheeded: bytes that meet a closed socket would destroy the answer."""
_RESET = struct.pack("ii", 1, 0)
_JSON = ((b"content-type", b"application/json"),)
_S = 1_000_000_000
_SWEEP_S = 1.0
"""Longest time between two looks at who is late. Shorter where a limit is: a tenth of it, at least `_SWEEP_MIN_S`."""
_SWEEP_MIN_S = 0.02
_RESTED_NS = _S // 2
"""How long a connection must have been idle to be closed by a drain."""
_REFUSALS = 256
"""Connections beyond the limit that are told so at one time; more are closed without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """`Bounds` for a server that nobody set any for."""

    body_bytes: int = 32 * 2**20
    header_bytes: int = 64 * 2**10
    connections: int = 4096
    read_s: float = 30.0
    idle_s: float = 75.0
    write_s: float = 60.0


class ServerConnection(asyncio.Protocol):
    """From accept to close. `keep`: the connection stays open after the present answer. `old`: it is for HTTP/1.0."""

    __slots__ = (
        "_answer", "_deaf", "_idle_ns", "_later", "_later_bytes", "_linger_ns", "_out", "_paused", "_pumping",
        "_reader", "_reading_paused", "_taken", "_taken_ns", "_transport", "keep", "old", "server",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reader: Reader = cast(Reader, None)
        self._answer: HttpAnswer | None = None
        self._later: list[bytes] = []
        self._later_bytes = 0
        self._deaf = self._pumping = self._paused = self._reading_paused = False
        self._linger_ns = 0
        self._idle_ns = self._taken_ns = time.monotonic_ns()
        self._out = self._taken = 0
        self.keep = True
        self.old = False

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._reader = Reader(self.server.limits, peer[0] if isinstance(peer, tuple) else "")
        self.server.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._reader.release()
        self.server.lost(self)

    def eof_received(self) -> None:
        # A client that has closed and one that has only ended its half look alike; answers are for those who listen.
        self._leave()

    def _leave(self) -> None:
        self._deaf = True
        self._reader.ahead.clear()
        self._later.clear()
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.server.under_way -= 1
        try:
            answer.lose()
        except Exception:
            _log.exception("telling of a client that left failed")

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
            self.refuse(reader.failure)
        elif reader.waits:
            reader.waits = False
            if not reader.body_begun:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin(self, request: Request, keep: bool, old: bool) -> None:
        self.keep, self.old = keep, old
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
        server, reader = self.server, self._reader
        server.under_way -= 1
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
        self.server.under_way -= 1
        if reset:
            self.reset()
        else:
            self.close()

    def close(self) -> None:
        """Close when everything is sent."""
        self._deaf = True
        self._reader.ahead.clear()
        if self._later:
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

    def refuse(self, refused: Refused) -> None:
        """Answer for the server itself, and close."""
        self._deaf = True
        body = error_body(refused.status, refused.message, code=refused.code)
        rest = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.send(LINES[refused.status] + self.server.date_line + rest + body)
        self._linger()

    def _linger(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._linger_ns = time.monotonic_ns() + _LINGER_NS
        self._transport.write_eof()

    # The server's sweep.

    def sweep(self, now_ns: int) -> None:
        """Close what is late: see `Limits`."""
        transport, server, reader = self._transport, self.server, self._reader
        waiting = transport.get_write_buffer_size()
        taken = self._out - waiting
        if not waiting or taken != self._taken:
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
            if now_ns - reader.begun_ns > server.read_ns:
                reader.fail(Refused(408, "request_timeout", "the request did not arrive in time; send it faster"))
                self._pump()
        elif not waiting and now_ns - self._idle_ns > server.idle_ns:
            transport.close()


class HttpServer:
    """Speaks HTTP/1.1 with clients and calls `handler` for each whole request. To be used on one loop.

    `under_way`: requests whose answer has not ended.
    """

    def __init__(self, handler: Callable[[Request, HttpAnswer], None], limits: Bounds | None = None) -> None:
        """Opens nothing yet."""
        limits = limits or ServerLimits()
        self.handler, self.limits = handler, limits
        self.read_ns, self.idle_ns, self.write_ns = (
            round(seconds * _S) for seconds in (limits.read_s, limits.idle_s, limits.write_s)
        )
        self.under_way = 0
        self.draining = False
        self.date_line = b""
        self._servers: list[asyncio.Server] = []
        self._connections: set[ServerConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._sweep_s = max(_SWEEP_MIN_S, min(_SWEEP_S, min(limits.read_s, limits.idle_s, limits.write_s) / 10))

    @property
    def connections(self) -> int:
        """Open ones, idle and closing ones included."""
        return len(self._connections)

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Accept on these listening sockets; again after `stop_accepting`, if need be."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._tick()
        for one in sockets:
            self._servers.append(await loop.create_server(lambda: ServerConnection(self), sock=one, ssl=tls))

    def stop_accepting(self) -> None:
        """Close this process's hold of the listening sockets. Connections go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def close_idle(self) -> None:
        """Close every connection that waits for a request."""
        now_ns = time.monotonic_ns()
        for connection in list(self._connections):
            connection.close_if_idle(now_ns)

    def reset_all(self) -> None:
        """Close every connection now; whoever waits for an answer gets a reset."""
        for connection in list(self._connections):
            connection.reset()

    async def drain(self, timeout_s: float) -> int:
        """Stop accepting, close what is idle, let answers end, and cut what has not ended after `timeout_s`.

        A request that is still arriving is waited for and answered. Returns how many answers were cut.
        """
        self.stop_accepting()
        self.draining = True
        self._empty = asyncio.Event()
        until_ns = time.monotonic_ns() + round(timeout_s * _S)
        while self._connections and (now_ns := time.monotonic_ns()) < until_ns:
            # A client whose last answer did not announce the end sends its next question at once: it is answered, and
            # that answer announces it. Only who has been silent for a while is closed without a word.
            for connection in list(self._connections):
                connection.close_if_idle(now_ns - _RESTED_NS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), min((until_ns - now_ns) / _S, _RESTED_NS / _S / 5))
        self.close_idle()
        cut = self.under_way
        self.reset_all()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), 1.0)
        self.stop_looking()
        return cut

    def stop_looking(self) -> None:
        """No more timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Called by connections.

    def made(self, connection: ServerConnection) -> None:
        """A connection is there; refused when there are too many."""
        open_ones = len(self._connections)
        self._connections.add(connection)
        most = self.limits.connections
        if open_ones >= most + _REFUSALS:
            connection.reset()
        elif open_ones >= most:
            connection.refuse(Refused(503, "too_many_connections", "too many connections are open here; try again"))

    def lost(self, connection: ServerConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if self._empty is not None and not self._connections:
            self._empty.set()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._sweep_s, self._tick)
        self.date_line = f"date: {formatdate(usegmt=True)}\r\n".encode()
        now_ns = time.monotonic_ns()
        for connection in list(self._connections):
            connection.sweep(now_ns)
