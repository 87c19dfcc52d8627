"""The client of one backend: kept connections, one look at all time limits, bytes handed on as they come.

No task a request, no stream reader, no proxy, no redirect: a request goes to the address it is for or nowhere. Nothing
is capped here, as many connections are opened as requests are under way; limits are the gate's affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from breakeven.errors import BreakevenError
from breakeven.gateway.plan.model import Limits, Timeouts
from breakeven.version import __version__
from breakeven.wire.upstream.address import ForbiddenAddressError, addresses_of
from breakeven.wire.upstream.call import Call
from breakeven.wire.upstream.connection import Connection
from breakeven.wire.upstream.headers import request_lines
from breakeven.wire.upstream.target import fixed_lines, parts_of, tls_of
from breakeven.wire.upstream.types import Exchange, Headers, Sink, Trouble

__all__ = ["Exchange", "GetError", "Upstream"]

_SWEEP_S = 1.0
"""Longest time between two looks at who is late. Shorter for short limits: a tenth, at least `_SWEEP_MIN_S`."""
_SWEEP_MIN_S = 0.02
_REST_S = 60.0
"""A connection that rested this long is closed: most servers close theirs sooner."""
_HASTY_S = 1.0
_HASTY = 2
"""A backend that closed this many connections within `_HASTY_S` of a stream's end closes them always (llama.cpp's
server does, whatever its headers say): from then on none is kept after a stream."""
_RESPONSE_BYTES = Limits().response_bytes
_HEADS = 64
"""Request lines kept ready."""


class GetError(BreakevenError):
    """A backend did not answer a question of ours; `trouble` says how."""

    def __init__(self, trouble: Trouble, detail: str) -> None:
        super().__init__(detail)
        self.trouble = trouble


class Upstream:
    """Connections to one backend. Use it on one running loop."""

    def __init__(
        self,
        base_url: str,
        *,
        timeouts: Timeouts,
        secret: Sequence[tuple[bytes, bytes]] = (),
        ca_file: Path | None = None,
        allow_link_local: bool = False,
        response_bytes: int = _RESPONSE_BYTES,
    ) -> None:
        """Opens nothing yet. `base_url` ends before /v1; `secret`: headers that hold the backend's key.

        Raises UserError for an address that is none, a key that no header can hold, or an unreadable `ca_file`.
        """
        self.timeouts, self.response_bytes = timeouts, response_bytes
        self.now_s = time.monotonic
        parts, self._port = parts_of(base_url)
        self._host = parts.hostname or ""
        self._base = parts.path.rstrip("/").encode()
        self._fixed = fixed_lines(parts.netloc, secret)
        self._tls = tls_of(ca_file) if parts.scheme == "https" else None
        self._allow_link_local = allow_link_local
        self._addresses: list[str] = []
        self._resolving: asyncio.Task[list[str]] | None = None
        self._heads: dict[tuple[bytes, str], bytes] = {}
        self._idle: dict[Connection, None] = {}
        self._open: set[Connection] = set()
        self._live: set[Call] = set()
        self._hasty = 0
        self._closed = False
        self._sweep_s = _SWEEP_S
        self._sweeper: asyncio.TimerHandle | None = None

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
        return len(self._live)

    def send(self, path: str, headers: Headers, body: bytes, sink: Sink, method: bytes = b"POST") -> Exchange:
        """Issue a request and return at once; the sink hears of it later, never during this call.

        `path` begins with / and may carry a query. Of `headers` (names in lower case) those that cross are sent;
        `host`, framing and the key are ours.
        """
        return self._send(path, headers, body, sink, method)

    async def get(self, path: str, *, timeout_s: float = 2.0, limit_bytes: int = 1 << 20) -> tuple[int, bytes]:
        """Status and body of a short answer, such as `/metrics`. Raises GetError when none came."""
        gathered = _Gather()
        call = self._send(path, (), b"", gathered, b"GET")
        call.total_s = min(call.total_s, timeout_s)
        call.limit_bytes = min(call.limit_bytes, limit_bytes)
        self._watch(call.total_s)
        try:
            return await gathered.future
        finally:
            call.cancel()

    async def close(self) -> None:
        """Cancel what is under way, close every connection, and wait until they are."""
        self._closed = True
        tasks: list[asyncio.Task[None] | asyncio.Task[list[str]]] = [call.task for call in self._live if call.task]
        for call in list(self._live):
            call.cancel()
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

    # Called by calls and connections.

    def forget(self, call: Call) -> None:
        """A call is over."""
        self._live.discard(call)

    def release(self, connection: Connection) -> None:
        """A connection is free. The one used last is used next: it is the least likely to have been closed."""
        if self._closed or (connection.streamed and self._hasty >= _HASTY):
            connection.close()
        else:
            self._idle[connection] = None

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection in self._idle:
            del self._idle[connection]
            self._note_hasty(connection)

    def send_again(self, call: Call, connection: Connection) -> None:
        """Send once more what met a connection that the backend was just closing. Happens once a call."""
        self._note_hasty(connection)
        self._connect(call)

    def _send(self, path: str, headers: Headers, body: bytes, sink: Sink, method: bytes) -> Call:
        try:
            head = self._head(method, path, body) + request_lines(headers) + b"\r\n"
        except ValueError as error:
            return self._refuse(sink, "forbidden", str(error))
        call = Call(self, head, body, sink, time.monotonic())
        call.head_only = method == b"HEAD"
        if self._closed:
            return self._refuse(sink, "unreachable", "the gateway is stopping")
        self._live.add(call)
        if self._sweeper is None:
            self._watch(self._shortest_s())
        idle = self._idle
        while idle:
            connection, _ = idle.popitem()
            if connection.usable:
                connection.send(call)
                return call
            self._note_hasty(connection)
            connection.close()
        self._connect(call)
        return call

    def _refuse(self, sink: Sink, trouble: Trouble, why: str) -> Call:
        call = Call(self, b"", b"", sink, time.monotonic())
        self._live.add(call)
        asyncio.get_running_loop().call_soon(call.trouble, trouble, why)
        return call

    def _note_hasty(self, connection: Connection) -> None:
        if connection.streamed and time.monotonic() - connection.rested_s < _HASTY_S:
            self._hasty += 1

    def _head(self, method: bytes, path: str, body: bytes) -> bytes:
        """Request line and our own headers, without the empty line."""
        head = self._heads.get((method, path))
        if head is None:
            if not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
                raise ValueError("a path that no request line can hold")
            head = method + b" " + self._base + path.encode() + b" HTTP/1.1\r\n" + self._fixed
            if method == b"GET":
                head += b"user-agent: breakeven/" + __version__.encode() + b"\r\n"
            if len(self._heads) < _HEADS:
                self._heads[method, path] = head
        return head if method == b"GET" and not body else b"%scontent-length: %d\r\n" % (head, len(body))

    def _connect(self, call: Call) -> None:
        # A task, but one a connection: requests on a kept connection need none.
        call.sent_s = time.monotonic()
        call.task = asyncio.get_running_loop().create_task(self._connect_and_send(call))

    async def _connect_and_send(self, call: Call) -> None:
        trouble: Trouble = "unreachable"
        try:
            connection = await self._open_connection()
        except ForbiddenAddressError as error:
            trouble, detail = "forbidden", str(error)
        except ConnectionRefusedError:
            trouble, detail = "refused", f"nobody listens at {self._host}:{self._port}"
        except (OSError, ValueError) as error:
            detail = f"no connection to {self._host}:{self._port}: {error or type(error).__name__}"
        else:
            call.task = None
            if call.over:
                connection.close()
            else:
                connection.send(call)
            return
        call.task = None
        call.trouble(trouble, detail)

    async def _open_connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        addresses = await self._resolve()
        failure: OSError | None = None
        for address in addresses:
            try:
                # Each address gets its part of the time, so that a dead first one leaves some for the second.
                async with asyncio.timeout(self.timeouts.connect_s / len(addresses) if len(addresses) > 1 else None):
                    _, connection = await loop.create_connection(
                        lambda: Connection(self),
                        address,
                        self._port,
                        ssl=self._tls,
                        server_hostname=self._host if self._tls else None,
                    )
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
        """Addresses of the host; asked for once, however many requests wait for it."""
        if self._addresses:
            return self._addresses
        if self._resolving is None:
            self._resolving = asyncio.get_running_loop().create_task(
                addresses_of(self._host, self._port, allow_link_local=self._allow_link_local)
            )
            self._resolving.add_done_callback(self._resolved)
        return await asyncio.shield(self._resolving)

    def _resolved(self, task: asyncio.Task[list[str]]) -> None:
        self._resolving = None
        if not task.cancelled() and task.exception() is None:
            self._addresses = task.result()

    def _shortest_s(self) -> float:
        limits = self.timeouts
        return min(limits.connect_s, limits.first_byte_s, limits.idle_s, limits.total_s)

    def _watch(self, timeout_s: float) -> None:
        period_s = max(_SWEEP_MIN_S, timeout_s / 10)
        if period_s < self._sweep_s:
            self._sweep_s = period_s
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        """End whatever is late. One timer for all: a timer a request would cost more than the request."""
        self._sweeper = None
        now_s = time.monotonic()
        late = [(call, why) for call in self._live if (why := self._late(call, now_s))]
        for call, why in late:
            if call.task is not None:
                self._addresses = []  # a black hole: the next one asks for the name anew
            call.trouble("timeout", why)
        for connection in [idle for idle in self._idle if now_s - idle.rested_s > _REST_S]:
            del self._idle[connection]
            connection.close()
        if self._sweeper is None and (self._live or self._idle):
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _late(self, call: Call, now_s: float) -> str:
        """Which limit a call has passed; empty: none."""
        limits = self.timeouts
        if now_s - call.started_s > call.total_s:
            return f"not finished within {call.total_s:g} s"
        if call.connection is None:
            return f"no connection within {limits.connect_s:g} s" if now_s - call.sent_s > limits.connect_s else ""
        if call.paused:
            return ""
        if call.waiting_body:
            late = now_s - call.sent_s > call.first_byte_s
            return f"no first byte within {call.first_byte_s:g} s" if late else ""
        return f"no byte for {limits.idle_s:g} s" if now_s - call.heard_s > limits.idle_s else ""


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
