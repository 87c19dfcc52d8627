"""The server of one worker: its listening sockets, its connections, and one timer for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate

from breakeven.gateway.plan.model import Limits
from breakeven.wire.server.connection import Connection
from breakeven.wire.server.errors import Refused
from breakeven.wire.server.types import Handler

_S = 1_000_000_000
_SWEEP_S = 1.0
"""Longest time between two looks at who is late. Shorter where a limit is: a tenth of it, at least `_SWEEP_MIN_S`."""
_SWEEP_MIN_S = 0.02
_LINGER_NS = _S // 2
"""How long a connection must have been idle to be closed by a drain."""
_REFUSALS = 256
"""Connections beyond the limit that are told so at one time; more are closed without a word."""


class EdgeServer:
    """Speaks HTTP/1.1 with clients and calls `handler` for each whole request. To be used on one loop.

    `under_way`: requests whose answer has not ended.
    """

    def __init__(self, handler: Handler, limits: Limits) -> None:
        """Opens nothing yet."""
        self.handler, self.limits = handler, limits
        self.read_ns, self.idle_ns, self.write_ns = (
            round(seconds * _S) for seconds in (limits.read_s, limits.idle_s, limits.write_s)
        )
        self.under_way = 0
        self.draining = False
        self.date_line = b""
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._sweep_s = max(_SWEEP_MIN_S, min(_SWEEP_S, min(limits.read_s, limits.idle_s, limits.write_s) / 10))

    @property
    def connections(self) -> int:
        """Open ones, idle and closing ones included."""
        return len(self._connections)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these listening sockets."""
        loop = asyncio.get_running_loop()
        self._tick()
        for one in sockets:
            self._servers.append(await loop.create_server(lambda: Connection(self), sock=one))

    def stop_accepting(self) -> None:
        """Close this process's hold of the listening sockets. Connections go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

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
                connection.close_if_idle(now_ns - _LINGER_NS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), min((until_ns - now_ns) / _S, _LINGER_NS / _S / 5))
        for connection in list(self._connections):
            connection.close_if_idle(time.monotonic_ns())
        cut = self.under_way
        for connection in list(self._connections):
            connection.reset()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), 1.0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return cut

    # Called by connections.

    def made(self, connection: Connection) -> None:
        """A connection is there; refused when there are too many."""
        open_ones = len(self._connections)
        self._connections.add(connection)
        most = self.limits.connections
        if open_ones >= most + _REFUSALS:
            connection.reset()
        elif open_ones >= most:
            connection.refuse(Refused(503, "too_many_connections", "too many connections are open here; try again"))

    def lost(self, connection: Connection) -> None:
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
