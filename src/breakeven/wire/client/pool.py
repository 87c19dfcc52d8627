"""HTTP/1.1 to one backend, lean enough that the client is not what is measured.

No task per request, no stream reader in between: bytes are stamped in the callback that brings them, and the answer
is taken apart there. No proxy is used and no redirect followed, so a key goes nowhere but to the URL it is for.
Nothing is capped: as many connections are opened as requests are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from breakeven.engines.backend import LLAMA_CPP, Backend
from breakeven.errors import UserError
from breakeven.measure.events import RequestDone
from breakeven.version import __version__
from breakeven.wire.client.connection import Connection
from breakeven.wire.client.exchange import Call, Exchange
from breakeven.wire.client.request import STALL_TIMEOUT_S

__all__ = ["Call", "Exchange", "Pool", "new_loop"]

_CONNECT_TIMEOUT_S = 10.0
_SWEEP_S = 1.0
"""Longest time between two looks at who is late. Shorter where a timeout is: a tenth of it, at least `_SWEEP_MIN_S`."""
_SWEEP_MIN_S = 0.02
_S = 1_000_000_000
_CLOSE_NS = _S


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop: uvloop's where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


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
        self._stall_ns = round(stall_timeout_s * _S)
        self._total_ns = None if total_timeout_s is None else round(total_timeout_s * _S)
        self._sweep_s = _SWEEP_S
        self._sweeper: asyncio.TimerHandle | None = None
        parts = urlsplit(backend.url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._keep = backend.pid is None and backend.engine != LLAMA_CPP
        self._base = parts.path
        self._netloc = parts.netloc
        self._headers = _header_lines(backend)
        self._secrets = [value.removeprefix("Bearer ") for value in backend.headers().values()]
        self._heads: dict[tuple[str, bool], bytes] = {}
        self._addresses: list[str] = []
        self._resolving: asyncio.Task[list[str]] | None = None
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._live: set[Exchange] = set()
        self._connecting: dict[Exchange, asyncio.Task[None]] = {}
        _allow_many_files()

    def start(
        self, call: Call, on_done: Callable[[RequestDone], None], on_first: Callable[[], None] | None = None
    ) -> Exchange:
        """Issue a request and return at once. Call it on the running loop.

        `on_done` is called once, on the loop, whatever happens; `on_first` before it, when the first output arrived.
        Neither may raise. Both may start further requests.
        """
        exchange = Exchange(self, call, time.monotonic_ns(), on_done, on_first)
        stall_s, total_s = call.stall_timeout_s, call.total_timeout_s
        exchange.stall_ns = self._stall_ns if stall_s is None else round(stall_s * _S)
        exchange.total_ns = self._total_ns if total_s is None else round(total_s * _S)
        self._live.add(exchange)
        self._watch(min(exchange.stall_ns, exchange.total_ns or exchange.stall_ns))
        self._send(exchange)
        return exchange

    async def close(self) -> None:
        """Cancel what is under way, close every connection, and wait until they are."""
        for exchange in list(self._live):
            exchange.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        tasks: list[asyncio.Task[object]] = list(self._connecting.values())
        if self._resolving is not None:
            tasks.append(self._resolving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        give_up_ns = time.monotonic_ns() + _CLOSE_NS
        while self._open and time.monotonic_ns() < give_up_ns:  # each leaves in one of the loop's next rounds
            await asyncio.sleep(0)

    def tidy(self, detail: str) -> str:
        """`detail` on one line, and without the key should the server have echoed it."""
        for secret in self._secrets:
            detail = detail.replace(secret, "***")
        return " ".join(detail.split())

    # Called by exchanges and connections.

    def forget(self, exchange: Exchange) -> None:
        """An exchange is over."""
        self._live.discard(exchange)
        task = self._connecting.pop(exchange, None)
        if task is not None:
            task.cancel()

    def made(self, connection: Connection) -> None:
        """A connection is there."""
        self._open.add(connection)

    def release(self, connection: Connection) -> None:
        """A connection is free. The one used last is used next: it is the least likely to have been closed."""
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def reconnect(self, exchange: Exchange) -> None:
        """Send once more what met a connection that the server was just closing. Happens once an exchange."""
        exchange.reconnected = True
        self._connect(exchange)

    def _send(self, exchange: Exchange) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                self._send_on(connection, exchange)
                return
        self._connect(exchange)

    def _send_on(self, connection: Connection, exchange: Exchange) -> None:
        call = exchange.call
        head = self._heads.get((call.path, call.stream))
        if head is None:
            head = self._heads[call.path, call.stream] = self._head(call)
        connection.send(exchange, head % len(call.body), call.body)

    def _head(self, call: Call) -> bytes:
        lines = [
            f"POST {self._base}{call.path} HTTP/1.1",
            f"Host: {self._netloc}",
            f"User-Agent: breakeven/{__version__}",  # some gateways refuse requests without one
            "Content-Type: application/json",
            f"Accept: {'text/event-stream' if call.stream else 'application/json'}",
            *self._headers,
            *([] if self._keep else ["Connection: close"]),
        ]
        text = "\r\n".join(lines).replace("%", "%%")
        return f"{text}\r\nContent-Length: %d\r\n\r\n".encode("latin-1")

    def _connect(self, exchange: Exchange) -> None:
        # A task, but one a connection: requests on a kept connection need none.
        exchange.heard_ns = time.monotonic_ns()
        self._connecting[exchange] = asyncio.get_running_loop().create_task(self._connect_and_send(exchange))

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._open_connection()
        except (OSError, ValueError) as error:
            self._connecting.pop(exchange, None)
            exchange.end("unreachable", f"no connection to {self._netloc}: {error or type(error).__name__}")
            return
        self._connecting.pop(exchange, None)
        self._send_on(connection, exchange)

    async def _open_connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        why = "the name has no address"
        for address in await self._resolve():
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self),
                    address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
            except OSError as error:
                why = str(error)
                continue
            self._addresses = [address]
            return connection
        self._addresses = []  # the next one asks for the name anew
        raise OSError(why)

    async def _resolve(self) -> list[str]:
        """Addresses of the host; asked for once, however many requests wait for it."""
        if not self._addresses:
            with contextlib.suppress(ValueError):
                self._addresses = [str(ipaddress.ip_address(self._host))]
        if self._addresses:
            return self._addresses
        if self._resolving is None:
            self._resolving = asyncio.get_running_loop().create_task(_look_up(self._host, self._port))
        try:
            self._addresses = await asyncio.shield(self._resolving)
        finally:
            if self._resolving is not None and self._resolving.done():
                self._resolving = None
        return self._addresses

    def _watch(self, timeout_ns: int) -> None:
        period_s = max(_SWEEP_MIN_S, timeout_ns / _S / 10)
        if period_s < self._sweep_s:
            self._sweep_s = period_s
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        """End whatever is late. One timer for all: a timer a chunk would cost more than the chunk."""
        self._sweeper = None
        now_ns = time.monotonic_ns()
        late: list[tuple[Exchange, str, str]] = []
        for exchange in self._live:
            silent_ns = now_ns - exchange.heard_ns
            if exchange.total_ns is not None and now_ns - exchange.issued_ns > exchange.total_ns:
                late.append((exchange, "timeout", f"not finished within {exchange.total_ns / _S:g} s"))
            elif exchange.connection is None and silent_ns > _CONNECT_TIMEOUT_S * _S:
                late.append((exchange, "unreachable", f"no connection within {_CONNECT_TIMEOUT_S:g} s"))
            elif silent_ns > exchange.stall_ns:
                late.append((exchange, "timeout", f"no byte for {exchange.stall_ns / _S:g} s"))
            elif exchange.drain_until_ns is not None and now_ns > exchange.drain_until_ns:
                late.append((exchange, "", ""))
        if len(self._live) > len(late):
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        for exchange, kind, detail in late:
            exchange.cut(detail, kind)


async def _look_up(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _header_lines(backend: Backend) -> list[str]:
    lines = [f"{name}: {value}" for name, value in backend.headers().items()]
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise UserError(
            f"the key in {backend.api_key_env} holds a line break or other unprintable character; set it anew"
        )
    return lines


def _allow_many_files() -> None:
    """Raise this process's soft limit of open files to the hard one: every request under way needs a connection."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
