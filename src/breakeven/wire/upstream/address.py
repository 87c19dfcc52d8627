"""Which addresses a backend may have: everything but link-local and metadata services, unless the operator says so.

A metadata service hands a machine's credentials to whoever can send it a request from that machine. Names are looked
up once and pinned, so that a name cannot pass the check with one address and be used with another.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

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
