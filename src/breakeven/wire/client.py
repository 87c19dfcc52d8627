"""The HTTP/1.1 client of one server: kept connections, one look at all time limits, bytes handed on as they come.

No task a request, no stream reader, no redirect: a request goes to the address it is for or nowhere, and a
key with it. Nothing is capped here, as many connections are opened as requests are under way; limits are the affair of
whoever asks. The gateway and whoever measures differ in a few options only (`HttpClient`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from breakeven.errors import BreakevenError
from breakeven.version import __version__
from breakeven.wire.bounds import Lookout
from breakeven.wire.connection import ClientConnection, Exchange
from breakeven.wire.message import Headers, Sink, Trouble
from breakeven.wire.target import (
    ForbiddenAddressError,
    addresses_of,
    answer_headers,
    fixed_lines,
    request_lines,
)
from breakeven.wire.tls import SYSTEMS, TlsFiles, client_tls
from breakeven.wire.way import connected, way_to

__all__ = ["Exchange", "GetError", "HttpClient"]

_S = 1_000_000_000
_SWEEP_S = 1.0
"""Longest time between two looks at who is late. Shorter for short limits: a tenth, at least `_SWEEP_MIN_S`."""
_SWEEP_MIN_S = 0.02
_REST_S = 60.0
"""A connection that rested this long is closed: most servers close theirs sooner."""
_HASTY_S = 1.0
_HASTY = 2
"""A server that closed this many connections within `_HASTY_S` of a stream's end closes them always (llama.cpp's
server does, whatever its headers say): from then on none is kept after a stream."""
_RESPONSE_BYTES = 256 * 2**20
_HEADS = 64
"""Request lines kept ready."""
_JSON = ((b"content-type", b"application/json"),)
_AGENT = (b"user-agent", b"breakeven/" + __version__.encode())
"""Some servers and what guards them refuse requests that name none."""


class Waits(Protocol):
    """Seconds. `first_byte_s` from sending to the first byte of the answer's body; `idle_s` between two bytes."""

    @property
    def connect_s(self) -> float: ...

    @property
    def first_byte_s(self) -> float | None: ...

    @property
    def idle_s(self) -> float: ...

    @property
    def total_s(self) -> float: ...


class GetError(BreakevenError):
    """A backend did not answer a question of ours; `trouble` says how."""

    def __init__(self, trouble: Trouble, detail: str) -> None:
        super().__init__(detail)
        self.trouble = trouble


class HttpClient:
    """Connections to one server. Use it on one running loop."""

    def __init__(
        self,
        base_url: str,
        *,
        timeouts: Waits,
        secret: Sequence[tuple[bytes, bytes]] = (),
        tls: TlsFiles = SYSTEMS,
        proxy: str | None = None,
        socket: str | None = None,
        allow_link_local: bool = False,
        response_bytes: int = _RESPONSE_BYTES,
        wary: bool = True,
        redirects: bool = False,
        passes_on: Callable[[Headers], Headers] | None = answer_headers,
    ) -> None:
        """Opens nothing yet. `base_url` ends before /v1; `secret`: headers of every request that hold the
        server's key, or are its own; a `user-agent` among them goes in the place of ours.

        `wary`: asks the system whether a resting connection is still good, and learns of a server that closes them;
        both cost time. `redirects`: hands them on as answers. `passes_on`: of an answer's headers, those to tell of.
        A first byte may take as long as any other where `timeouts` set no time for it. Raises UserError for an
        address that is none, a key that no header can hold, or files of `tls` that cannot be used. `proxy`: an HTTP
        proxy that opens the way to a server by TLS; it sees no more than that server's name. `socket`: a unix socket to
        go through instead of the address.
        """
        self.response_bytes, self.wary, self.redirects, self.passes_on = response_bytes, wary, redirects, passes_on
        first_s = timeouts.first_byte_s
        self.first_byte_ns = None if first_s is None else round(first_s * _S)
        self.connect_s, self._connect_ns = timeouts.connect_s, round(timeouts.connect_s * _S)
        self.idle_ns, self.total_ns = round(timeouts.idle_s * _S), round(timeouts.total_s * _S)
        self._shortest_s = min(timeouts.connect_s, first_s or timeouts.idle_s, timeouts.idle_s, timeouts.total_s)
        self._way = way = way_to(base_url, proxy, socket)
        agent = () if any(name == b"user-agent" for name, _ in secret) else (_AGENT,)
        self._fixed = fixed_lines(way.netloc, (*secret, *agent))
        self._tls = client_tls(tls) if way.secure else None
        self._allow_link_local = allow_link_local
        self._addresses: list[str] = []
        self._resolving: asyncio.Task[list[str]] | None = None
        self._heads: dict[tuple[bytes, str], bytes] = {}
        self._idle: dict[ClientConnection, None] = {}
        self._open: set[ClientConnection] = set()
        self.live: set[Exchange] = set()
        self._hasty = 0
        self._closed = False
        self._sweep_s = _SWEEP_S
        self._sweeper: asyncio.TimerHandle | None = None
        self._lookout = Lookout()

    def renew(self, tls: ssl.SSLContext) -> None:
        """Trust and show this from the next connection on."""
        if self._tls is not None:
            self._tls = tls

    @property
    def open(self) -> int:
        """Connections there are."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """Connections that rest."""
        return len(self._idle)

    @property
    def under_way(self) -> int:
        """Requests that have not ended."""
        return len(self.live)

    def send(self, path: str, headers: Headers, body: bytes, sink: Sink, method: bytes = b"POST") -> Exchange:
        """Issue a request and return at once; the sink hears of it later, never during this call.

        `path` begins with / and may carry a query. Of `headers` (names in lower case) those that cross are sent;
        `host`, framing and the key are ours.
        """
        try:
            head = self._head(method, path, body) + request_lines(headers) + b"\r\n"
        except ValueError as error:
            exchange = Exchange(self, b"", b"", sink, time.monotonic_ns())
            self._refuse(exchange, "forbidden", str(error))
            return exchange
        exchange = Exchange(self, head, body, sink, time.monotonic_ns())
        exchange.head_only = method == b"HEAD"
        self.start(exchange)
        return exchange

    def start(self, exchange: Exchange) -> None:
        """Issue a request that is made already; otherwise as `send`."""
        if self._closed:
            self._refuse(exchange, "unreachable", "the gateway is stopping")
            return
        self.live.add(exchange)
        if self._sweeper is None:
            self.watch(self._shortest_s)
        idle = self._idle
        while idle:
            connection, _ = idle.popitem()
            if connection.usable:
                connection.send(exchange)
                return
            self._note_hasty(connection)
            connection.close()
        self._connect(exchange)

    async def get(
        self, path: str, *, body: bytes = b"", timeout_s: float = 2.0, limit_bytes: int = 1 << 20
    ) -> tuple[int, bytes]:
        """Status and body of a short answer, such as `/metrics`, or the one to `body`, a JSON document that is posted.

        Raises GetError when none came.
        """
        method, headers = (b"POST", _JSON) if body else (b"GET", ())
        gathered = _Gather()
        exchange = self.send(path, headers, body, gathered, method)
        exchange.total_ns = min(exchange.total_ns, round(timeout_s * _S))
        exchange.limit_bytes = min(exchange.limit_bytes, limit_bytes)
        self.watch(exchange.total_ns / _S)
        try:
            return await gathered.future
        finally:
            exchange.cancel()

    async def close(self) -> None:
        """Cancel what is under way, close every connection, and wait until they are."""
        self._closed = True
        tasks: list[asyncio.Task[None] | asyncio.Task[list[str]]] = [one.task for one in self.live if one.task]
        for exchange in list(self.live):
            exchange.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._resolving is not None:
            self._resolving.cancel()
            tasks.append(self._resolving)
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        give_up_s = time.monotonic() + 1.0
        while self._open and time.monotonic() < give_up_s:  # each leaves in one of the loop's next rounds
            await asyncio.sleep(0)

    # Called by exchanges and connections.

    def release(self, connection: ClientConnection) -> None:
        """A connection is free. The one used last is used next: it is the least likely to have been closed."""
        if self._closed or (self._hasty >= _HASTY and connection.streamed):
            connection.close()
        else:
            self._idle[connection] = None

    def lost(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection in self._idle:
            del self._idle[connection]
            self._note_hasty(connection)

    def send_again(self, exchange: Exchange, connection: ClientConnection) -> None:
        """Send once more what met a connection that the server was just closing. Happens once an exchange."""
        self._note_hasty(connection)
        self._connect(exchange)

    def watch(self, timeout_s: float) -> None:
        """Look often enough at who is late for a limit as short as this."""
        period_s = max(_SWEEP_MIN_S, timeout_s / 10)
        if period_s < self._sweep_s:
            self._sweep_s = period_s
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None
        if self._sweeper is None:
            self._sweep_later()

    def _sweep_later(self) -> None:
        self._lookout.due_in(self._sweep_s)
        self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _refuse(self, exchange: Exchange, trouble: Trouble, why: str) -> None:
        self.live.add(exchange)
        asyncio.get_running_loop().call_soon(exchange.trouble, trouble, why)

    def _note_hasty(self, connection: ClientConnection) -> None:
        if self.wary and connection.streamed and time.monotonic_ns() - connection.rested_ns < _HASTY_S * _S:
            self._hasty += 1

    def _head(self, method: bytes, path: str, body: bytes) -> bytes:
        """Request line and our own headers, without the empty line."""
        head = self._heads.get((method, path))
        if head is None:
            if not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
                raise ValueError("a path that no request line can hold")
            head = method + b" " + self._way.path + path.encode() + b" HTTP/1.1\r\n" + self._fixed
            if len(self._heads) < _HEADS:
                self._heads[method, path] = head
        return head if method == b"GET" and not body else b"%scontent-length: %d\r\n" % (head, len(body))

    def _connect(self, exchange: Exchange) -> None:
        # A task, but one a connection: requests on a kept connection need none.
        exchange.heard_ns = time.monotonic_ns()
        exchange.task = asyncio.get_running_loop().create_task(self._connect_and_send(exchange))

    async def _connect_and_send(self, exchange: Exchange) -> None:
        trouble: Trouble = "unreachable"
        try:
            connection = await self._open_connection()
        except ForbiddenAddressError as error:
            trouble, detail = "forbidden", str(error)
        except ConnectionRefusedError as error:
            # Without its traceback, whose frames hold the exchange: both go at once, not with the next collection.
            exchange.failure = error.with_traceback(None)
            trouble, detail = "refused", f"nobody listens at {self._way.place}"
        except (OSError, ValueError) as error:
            exchange.failure = error.with_traceback(None)
            detail = f"no connection to {self._way.host}:{self._way.port}: {str(error) or type(error).__name__}"
        else:
            exchange.task = None
            if exchange.over:
                connection.close()
            else:
                connection.send(exchange)
            return
        exchange.task = None
        exchange.trouble(trouble, detail)

    async def _open_connection(self) -> ClientConnection:
        addresses = await self._resolve()
        failure: OSError | None = None
        for address in addresses:
            try:
                # Each address gets its part of the time, so that a dead first one leaves some for the second.
                async with asyncio.timeout(self.connect_s / len(addresses) if len(addresses) > 1 else None):
                    connection = await connected(self._way, address, self._tls, lambda: ClientConnection(self))
            except (OSError, TimeoutError) as error:
                failure = error
                continue
            if not connection.is_open:
                failure = ConnectionResetError("closed as soon as it was opened")
                continue
            # Not in connection_made: uvloop tells a connection whose making is cancelled of its beginning alone.
            self._open.add(connection)
            if address != addresses[0]:
                self._addresses = [address, *(other for other in addresses if other != address)]
            return connection
        self._addresses = []  # the next one asks for the name anew
        assert failure is not None
        raise failure

    async def _resolve(self) -> list[str]:
        """Addresses of the host, or of its proxy; asked for once, however many requests wait for it."""
        if self._addresses:
            return self._addresses
        if self._way.socket is not None:
            return [self._way.socket]
        if self._resolving is None:
            self._resolving = asyncio.get_running_loop().create_task(
                addresses_of(*self._way.at, allow_link_local=self._allow_link_local)
            )
            self._resolving.add_done_callback(self._resolved)
        return await asyncio.shield(self._resolving)

    def _resolved(self, task: asyncio.Task[list[str]]) -> None:
        self._resolving = None
        if not task.cancelled() and task.exception() is None:
            self._addresses = task.result()

    def _sweep(self) -> None:
        """End whatever is late. One timer for all: a timer a request would cost more than the request."""
        self._sweeper = None
        now_ns = time.monotonic_ns()
        live = () if self._lookout.away_ns(now_ns) else self.live
        late = [(exchange, why) for exchange in live if (why := exchange.late(now_ns, self._connect_ns))]
        for exchange, why in late:
            if exchange.task is not None:
                self._addresses = []  # a black hole: the next one asks for the name anew
            exchange.trouble("timeout", why)
        for connection in [idle for idle in self._idle if now_ns - idle.rested_ns > _REST_S * _S]:
            del self._idle[connection]
            connection.close()
        if self._sweeper is None and (self.live or self._idle):
            self._sweep_later()


class _Gather:
    """A sink that keeps a whole answer."""

    def __init__(self) -> None:
        self.future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._pieces: list[bytes] = []

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_end(self) -> None:
        if not self.future.done():
            self.future.set_result((self._status, b"".join(self._pieces)))

    def on_trouble(self, trouble: Trouble, detail: str) -> None:
        if not self.future.done():
            self.future.set_exception(GetError(trouble, detail))
