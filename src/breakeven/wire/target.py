"""Where a server is that we ask, which addresses it may have, and which headers cross on the way there and back.

An address may be anything but link-local and metadata services, unless the operator says so: a metadata service hands
a machine's credentials to whoever can send it a request from that machine. Names are looked up once and pinned, so
that a name cannot pass the check with one address and be used with another.

Hop-by-hop headers and framing belong to one connection (RFC 9110, 7.6.1). A client's credentials and cookies are for
the gateway, never for a backend; a backend's cookies are for the gateway, never for a client.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from urllib.parse import SplitResult, urlencode, urlsplit

from breakeven.errors import UserError
from breakeven.wire.message import Headers

METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "169.254.169.254",  # AWS, Google Cloud, Azure, and most others
        "fd00:ec2::254",  # AWS over IPv6
        "100.100.100.200",  # Alibaba Cloud
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"cookie"})
"""What clients of OpenAI, Azure, Anthropic and Google send their key in."""
NOT_SENT = HOP_BY_HOP | CREDENTIALS | {b"host", b"content-length", b"expect"}
NOT_PASSED_ON = HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"alt-svc",
    b"strict-transport-security",
    b"clear-site-data",
    b"nel",
    b"report-to",
    b"refresh",
    b"www-authenticate",
    b"authentication-info",
    b"proxy-authentication-info",
    b"x-request-id",
    b"openai-organization",
    b"openai-project",
    b"x-accel-redirect",
    b"x-sendfile",
    b"x-reproxy-url",
}
"""What a backend tells browsers about its own origin, which here would be read as ours; `alt-svc` would even tell a
client to go round the gateway. So would CORS: a backend that lets every page read its answers must not let every page
read the gateway's. A challenge (`www-authenticate`) asks for the operator's key, not the client's, whose account there
is the operator's too; a request's id is ours to give; and `x-accel-redirect` and its like have a proxy in front of the
gateway send its own files. `content-length` stays: the edge may keep it."""
_NOT_THEIRS = (b"access-control-", b"x-breakeven-", b"x-breakeven_")
"""Names that begin so: who may read answers here, and what was decided here, is not a backend's to say. Some servers
read an underscore as a hyphen."""

_HARMLESS = (b"close", b"keep-alive")


def parts_of(base_url: str) -> tuple[SplitResult, int]:
    """An address and its port. Raises UserError for what is no address of a backend; its text holds no password."""
    try:
        parts = urlsplit(base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise UserError(f"a backend's url cannot be read ({error}); write it as http://HOST:PORT") from error
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"the url of the backend at {parts.hostname} holds a password; put it in an environment variable and "
            "name that in `api_key_env`"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"{base_url!r} is no address of a backend; write it as http://HOST:PORT or https://HOST/PATH")
    if not (base_url.isascii() and base_url.isprintable() and " " not in base_url):
        raise UserError(f"{base_url!r} holds characters that no request can hold; write them percent-encoded")
    return parts, port


def fixed_lines(netloc: str, secret: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The header lines that every request carries. Raises UserError for a key that no header can hold."""
    for name, value in secret:
        if not all(32 <= byte < 127 for byte in name + value):
            raise UserError(
                f"the key for {netloc} ({name.decode(errors='replace')}) holds a line break or another character "
                "that no header can hold; set its environment variable anew"
            )
    return b"".join(b"%s: %s\r\n" % pair for pair in ((b"host", netloc.encode()), *secret))


class ForbiddenAddressError(OSError):
    """A backend whose name leads to an address that may not be asked."""


def is_forbidden(address: str) -> bool:
    """Whether a numeric address is link-local (169.254/16, fe80::/10) or of a metadata service, in whatever guise.

    IPv4 written inside IPv6 (mapped, 6to4, NAT64) counts as what it leads to. Raises ValueError for what is no address.
    """
    return any(each.is_link_local or each in METADATA for each in _guises(ipaddress.ip_address(address)))


def _guises(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    plain = ipaddress.IPv6Address(int(address))  # without a zone, which would keep it from being equal to anything
    found: list[Address] = [plain]
    found += [inner for inner in (plain.ipv4_mapped, plain.sixtofour) if inner is not None]
    if plain in _NAT64:
        found.append(ipaddress.IPv4Address(int(plain) & 0xFFFFFFFF))
    return found


async def addresses_of(host: str, port: int, *, allow_link_local: bool) -> list[str]:
    """Numeric addresses of a name or literal, at least one, those that may be asked.

    Raises ForbiddenAddressError when all of them are forbidden, OSError when the name has none.
    """
    found = await _look_up(host, port)
    allowed = found if allow_link_local else [address for address in found if not is_forbidden(address)]
    if not allowed:
        raise ForbiddenAddressError(
            f"{host} leads to {_some(found)}, a link-local or metadata address; "
            "set `allow_link_local: true` for this backend if that is meant"
        )
    return allowed


async def _look_up(host: str, port: int) -> list[str]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [host]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long
        raise OSError(f"{host!r} is no host name") from error
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if not addresses:
        raise OSError(f"{host} has no address")
    return addresses


def _some(addresses: Sequence[str]) -> str:
    return ", ".join(addresses[:3])


def request_lines(headers: Headers) -> bytes:
    """The lines of a request's own headers, each ended by CRLF. Raises ValueError for a line break inside one."""
    parts: list[bytes] = []
    lines = 0
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name in NOT_SENT:
            if name == b"connection" and value.lower() not in _HARMLESS:
                named |= _tokens(value)
            continue
        parts += (name, b": ", value, b"\r\n")
        lines += 1
    if named:
        return request_lines([(name, value) for name, value in headers if name not in named and name != b"connection"])
    block = b"".join(parts)
    if block.count(b"\n") != lines or block.count(b"\r") != lines or b"\0" in block:
        raise ValueError("a header of the request holds a line break")
    return block


def answer_headers(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Of an answer's headers, those to pass on; names are in lower case already."""
    gone: frozenset[bytes] = NOT_PASSED_ON
    for name, value in headers:
        if name == b"connection" and value.lower() not in _HARMLESS:
            gone |= _tokens(value)
    return [pair for pair in headers if pair[0] not in gone and not pair[0].startswith(_NOT_THEIRS)]


def _tokens(value: bytes) -> frozenset[bytes]:
    """What a `Connection` header names. The framing is ours, whatever it says."""
    return frozenset(token.strip().lower() for token in value.split(b",")) - {b"content-length", b"content-type"}


V1 = "/v1"
"""Begins every endpoint's name, and ends most base URLs."""


def split_base(base_url: str) -> tuple[str, str]:
    """A base URL, as OpenAI's clients are given one, before its /v1; and what stands before endpoints: "/v1" or ""."""
    whole = base_url.rstrip("/")
    root = whole.removesuffix(V1)
    return root, V1 if root != whole else ""


def endpoint_at(under: str, path: str, query: Mapping[str, str] = MappingProxyType({})) -> str:
    """Where an endpoint is asked, below `split_base`'s root: joined as OpenAI's clients do, with these parameters.

    What is no endpoint (`/tokenize`, `/metrics`) stands below the root itself, and gets none.
    """
    if not path.startswith(f"{V1}/"):
        return path
    joined = under + path.removeprefix(V1)
    return f"{joined}?{urlencode(query)}" if query else joined
