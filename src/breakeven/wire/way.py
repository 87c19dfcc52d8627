"""The way to one server: its address, a proxy or a socket of this machine before it, and how a connection is opened.

A proxy sees a name and a port, and no byte of what is said. A unix socket stands in the place of a host's address: the
URL still says what the server is called, for its `host` header and its certificate.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from breakeven.errors import UserError
from breakeven.hardware.system import unix_connected
from breakeven.wire.target import parts_of

_HEAD_BYTES = 8 << 10
"""Most that a proxy may say before the way is open."""

P = TypeVar("P", bound=asyncio.Protocol)


class Way(NamedTuple):
    """`host`, `port`, `netloc` and `path` are the server's. `at`: where connections go, to it or to its proxy.

    `socket`: a unix socket's path, where connections go there instead. `secure`: by TLS.
    """

    host: str
    port: int
    netloc: str
    path: bytes
    at: tuple[str, int]
    secure: bool
    proxied: bool = False
    socket: str | None = None

    @property
    def place(self) -> str:
        """Where connections go, in words."""
        return f"the socket {self.socket}" if self.socket else f"{self.at[0]}:{self.at[1]}"


def way_to(base_url: str, proxy: str | None = None, socket: str | None = None) -> Way:
    """How the server at `base_url` is reached. Raises UserError for an address that is none, or ways that exclude
    each other."""
    parts, port = parts_of(base_url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    at = host, port
    if proxy is not None:
        if socket is not None:
            raise UserError(f"{base_url}: a proxy and a socket lead to two places; give one of them")
        if not secure:
            raise UserError(f"a proxy is for https:// alone; {base_url} begins otherwise")
        between, between_port = parts_of(proxy)
        at = (between.hostname or "", between_port)
    path = parts.path.rstrip("/").encode()
    return Way(host, port, parts.netloc, path, at, secure, proxy is not None, socket)


async def connected(way: Way, address: str, tls: ssl.SSLContext | None, factory: Callable[[], P]) -> P:
    """One connection to `address`, of those that `way.at` has. Raises OSError."""
    if way.socket is not None:
        return await unix_connected(factory, way.socket, tls, way.host)
    if way.proxied and tls is not None:
        return await through_proxy(factory, address, way.at[1], way.host, way.port, tls)
    _, protocol = await asyncio.get_running_loop().create_connection(
        factory, address, way.port, ssl=tls, server_hostname=way.host if tls else None
    )
    return protocol


class ProxyError(OSError):
    """A proxy did not open a way."""


class _Asking(asyncio.Protocol):
    """Hears what a proxy answers to CONNECT. `answered`: its status line."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        line, end, _ = self._head.partition(b"\r\n")
        if self.answered.done():
            return
        whole = self._head.find(b"\r\n\r\n")
        if whole >= 0 and end:
            if len(self._head) > whole + 4 and line[9:12] == b"200":
                self.answered.set_exception(ProxyError("the proxy sent bytes that nobody asked for"))
            else:
                self.answered.set_result(line)
        elif len(self._head) > _HEAD_BYTES:
            self.answered.set_exception(ProxyError("the proxy's answer has no end"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ProxyError("the proxy closed the connection without opening a way"))


async def through_proxy(
    factory: Callable[[], P], address: str, port: int, host: str, host_port: int, context: ssl.SSLContext
) -> P:
    """Connect to the proxy at `address` and `port`, have it open a way to `host`, and speak TLS with that.

    The proxy sees a name and a port, and no byte of what is said. Raises OSError (ProxyError where it is the proxy's).
    """
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_connection(_Asking, address, port)
    try:
        place = f"[{host}]:{host_port}" if ":" in host else f"{host}:{host_port}"
        transport.write(f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n\r\n".encode())
        line = await asking.answered
        version, _, told = line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or told[:3] != b"200":
            raise ProxyError(f"the proxy answered {told[:40].decode('latin-1')!r} when asked for {place}")
        protocol = factory()
        through = await loop.start_tls(transport, protocol, context, server_hostname=host)
        assert through is not None
        protocol.connection_made(through)
    except BaseException:
        transport.abort()
        raise
    return protocol
