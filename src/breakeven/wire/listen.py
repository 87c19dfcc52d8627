"""Where a server listens, and whether a request was meant for this machine.

A listener that asks for no key trusts whoever can reach it. So it must not be reached through a browser: a page on the
web may have its own name point at 127.0.0.1 (DNS rebinding; it then stands in `Host`), or send a form or a `fetch`
without looking at the answer (it then stands in `Origin`).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

from breakeven.errors import UserError
from breakeven.hardware.system import reuse_address, share_port

_WEB = (b"http://", b"https://")
BACKLOG = 4096


def open_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on `host` (name, IPv4 or IPv6 address) and `port` (0: any free one), not blocking.

    Raises UserError when the host is none of this machine's or the port is taken, also by another gateway.
    """
    family, address = _resolve(host, port)
    opened: list[socket.socket] = []
    try:
        # With SO_REUSEPORT two gateways of one user could share a port unnoticed; a bind without it finds the other.
        # A free port is chosen by it as well, and given up just before it is taken again.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            _bind(probe, address, shared=False)
            address = (address[0], probe.getsockname()[1], *address[2:])
        for _ in range(count):
            one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            opened.append(one)
            _bind(one, address, shared=count > 1)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections inherit it
            one.listen(BACKLOG)
            one.setblocking(False)
    except OSError as error:
        for one in opened:
            one.close()
        raise UserError(_advice(error, host, port)) from error
    return opened


def another_socket(address: tuple[str | int | bytes, ...]) -> socket.socket:
    """One more socket at an address that others of ours share; nobody comes before it listens. Raises OSError."""
    one = socket.socket(socket.AF_INET if len(address) == 2 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        _bind(one, address, shared=True)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _resolve(host: str, port: int) -> tuple[int, tuple[str | int | bytes, ...]]:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not 0 <= port <= 65535:
        raise UserError(f"port {port}: a port is a number from 0 (any free one) to 65535")
    try:
        found = socket.getaddrinfo(bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot listen on '{host}': the name has no address here; "
            "use 127.0.0.1 for this machine alone, or 0.0.0.0 for all its networks"
        ) from error
    # A name with both families, localhost say, is served on IPv4: clients try it in every case.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), *address[1:])


def _bind(one: socket.socket, address: tuple[str | int | bytes, ...], *, shared: bool) -> None:
    reuse_address(one)
    if shared:
        share_port(one)
    if one.family == socket.AF_INET6:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)


def _advice(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken: stop what listens there, or choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on '{host}': it is no address of this machine; use 127.0.0.1, 0.0.0.0 or one of its own"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is for the system's administrator alone; choose one above 1023"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"


def names_here(host: bytes | None) -> bool:
    """Whether a Host header names this machine's loopback; its port does not matter."""
    name = without_port((host or b"").decode("latin-1"))
    return name.lower().rstrip(".") == "localhost" or is_loopback_address(name)


def sent_from_here(origin: bytes | None, named: frozenset[bytes] = frozenset()) -> bool:
    """Whether an Origin header is absent, or of a page of this machine, or one of those `named` in lower case.

    A file, an extension and a frame without an origin ("null") are pages too, and may be anybody's.
    """
    if origin is None:
        return True
    origin = origin.lower()
    scheme, slashes, host = origin.partition(b"://")
    return origin in named or (scheme + slashes in _WEB and names_here(host))


def is_loopback_address(text: str) -> bool:
    """Whether an address, in any of its spellings, is this machine's own."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def without_port(text: str) -> str:
    """The host of `host`, `host:port`, `[v6]` or `[v6]:port`."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
