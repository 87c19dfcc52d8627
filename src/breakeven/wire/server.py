"""The HTTP/1.1 server: its listening sockets, its connections, and one timer for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate

from breakeven.wire.accepted import ServerConnection
from breakeven.wire.answer import HttpAnswer
from breakeven.wire.bounds import Bounds, Crowds, HeldBodies, Lookout, ServerLimits
from breakeven.wire.listen import BACKLOG
from breakeven.wire.message import Headers, Judge, Refused, Request
from breakeven.wire.tls import TlsConnection

_S = 1_000_000_000
_SWEEP_S = 1.0
"""Longest time between two looks at who is late. Shorter where a limit is: a tenth of it, at least `_SWEEP_MIN_S`."""
_SWEEP_MIN_S = 0.02
_RESTED_NS = _S // 2
"""How long a connection must have been idle to be closed by a drain."""


class HttpServer:
    """Speaks HTTP/1.1 with clients and calls `handler` for each whole request. To be used on one loop.

    `judge` says of a head whether the body behind it is to be kept. `shared_with`: headers by which a page of this
    origin may read what the server refuses by itself. `under_way`: requests whose answer has not ended.
    """

    def __init__(
        self,
        handler: Callable[[Request, HttpAnswer], None],
        limits: Bounds | None = None,
        judge: Judge | None = None,
        shared_with: Callable[[bytes], Headers] = lambda _: (),
    ) -> None:
        """Opens nothing yet."""
        limits = limits or ServerLimits()
        self.handler, self.limits, self.judge, self.shared_with = handler, limits, judge, shared_with
        waits = (limits.read_s, limits.idle_s, limits.write_s, min(limits.unasked_s, limits.idle_s))
        self.read_ns, self.idle_ns, self.write_ns, self.unasked_ns = (round(seconds * _S) for seconds in waits)
        self.bodies = HeldBodies(max(limits.bodies_bytes, limits.body_bytes))
        self.crowds = Crowds(limits)
        self.under_way = 0
        self.tls: ssl.SSLContext | None = None
        """What connections show that are accepted from now on; None: they come without TLS."""
        self.draining = False
        self.date_line = b""
        self._servers: list[asyncio.Server] = []
        self._connections: set[ServerConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._sweep_s = max(_SWEEP_MIN_S, min(_SWEEP_S, min(waits) / 10))
        self._lookout = Lookout()

    @property
    def connections(self) -> int:
        """Open ones, idle and closing ones included."""
        return len(self._connections)

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Accept on these listening sockets; again after `stop_accepting`, if need be."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._tick()

        self.tls = tls

        def accepted() -> asyncio.Protocol:
            connection = ServerConnection(self)
            return connection if self.tls is None else TlsConnection(connection, self.tls)

        for one in sockets:
            self._servers.append(await loop.create_server(accepted, sock=one, backlog=BACKLOG))

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
        """A connection is there; refused when too many are at work, of its address or in all."""
        self._connections.add(connection)
        told = self.crowds.admit(connection, connection.address, time.monotonic_ns())
        if told is None:
            connection.reset()
        elif told:
            connection.refuse(Refused(503, "too_many_connections", told, retry_s=1))

    def lost(self, connection: ServerConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self.crowds.leaves(connection, connection.address)
        if self._empty is not None and not self._connections:
            self._empty.set()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._sweep_s, self._tick)
        self.date_line = f"date: {formatdate(usegmt=True)}\r\n".encode()
        now_ns = time.monotonic_ns()
        away_ns = self._lookout.away_ns(now_ns)
        for connection in list(self._connections):
            if away_ns:
                connection.excuse(away_ns, now_ns)
            else:
                connection.sweep(now_ns)
        self._lookout.due_in(self._sweep_s)
